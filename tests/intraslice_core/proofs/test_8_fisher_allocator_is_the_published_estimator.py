"""Proof 8, Fisher allocator: scores equal autograd over explicit masks, shapes a naive ranking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from intraslice_core.allocation.estimators import _fisher_scores
from intraslice_core.allocation.fisher import LayerScores, fisher_plan
from intraslice_core.checkpoints.dense_model import DenseLayerReader
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.plan import ModelGeometry
from intraslice_core.sensitivity.gradients import GradientFiles, loss_gradients
from tests.intraslice_core.tiny_models import save_checkpoint, tiny_family_model

GROUP = 8
"""Number of sequences whose gradients are summed before squaring."""
VARIANTS = ["llama", "phi", "phi_grouped", "phi3", "gemma2"]


def drawn_tokens(sequences: int = 19, length: int = 12) -> Tensor:
    """Return random tokens: two full groups and a part of a third."""
    return torch.randint(3, 250, (sequences, length), generator=torch.Generator().manual_seed(2))


class MaskedModel:
    """A model of the family's own class with masks of ones on the inputs of `Wo` and `Wd`."""

    def __init__(self, model: Any) -> None:
        self._model = model
        layers = model.model.layers
        self.outputs = [
            getattr(layer.self_attn, "o_proj", None) or layer.self_attn.dense for layer in layers
        ]
        downs = [getattr(layer.mlp, "down_proj", None) or layer.mlp.fc2 for layer in layers]
        self.inputs: list[list[Tensor]] = [[] for _ in layers]
        """Recorded inputs of `Wo` by layer, (sequence, heads · head_dim) each."""
        self.bases = [torch.eye(output.in_features) for output in self.outputs]
        """Bases, by columns, in which the masks of the heads act."""
        self.heads = [torch.ones(output.in_features, requires_grad=True) for output in self.outputs]
        self.neurons = [torch.ones(down.in_features, requires_grad=True) for down in downs]
        for number, module in enumerate(self.outputs):
            module.register_forward_pre_hook(
                lambda _m, given, number=number: self._mask_heads(number, given[0])
            )
        for module, mask in zip(downs, self.neurons, strict=True):
            module.register_forward_pre_hook(lambda _m, given, mask=mask: (given[0] * mask,))

    def _mask_heads(self, number: int, inner: Tensor) -> tuple[Tensor]:
        self.inputs[number].append(inner.detach().squeeze(0))
        basis = self.bases[number]
        return (((inner @ basis) * self.heads[number]) @ basis.mT,)

    def gradients(self, sequence: Tensor) -> list[Tensor]:
        """Return gradients of a sequence's summed loss by every mask: heads, then neurons."""
        logits = self._model(input_ids=sequence.unsqueeze(0), use_cache=False).logits[0].float()
        loss = torch.zeros(())
        for position in range(len(sequence) - 1):
            loss = loss - logits[position].log_softmax(-1)[sequence[position + 1]]
        return list(torch.autograd.grad(loss, [*self.heads, *self.neurons]))


def scores_by_autograd(masked: MaskedModel, tokens: Tensor) -> list[NDArray[np.float64]]:
    """Return squared gradient sums of groups, added up: heads of every layer, then neurons."""
    totals = [np.zeros(mask.numel()) for mask in (*masked.heads, *masked.neurons)]
    for start in range(0, len(tokens), GROUP):
        summed = [np.zeros_like(total) for total in totals]
        for sequence in tokens[start : start + GROUP]:
            for total, gradient in zip(summed, masked.gradients(sequence), strict=True):
                total += gradient.double().numpy()
        for total, group in zip(totals, summed, strict=True):
            total += group**2
    return totals


def rotate_into_pca_bases(masked: MaskedModel, tokens: Tensor, heads: int, groups: int) -> None:
    """Use the PCA basis of docs/method.md, section 3b, at full rank for every KV group."""
    for sequence in tokens:
        masked.gradients(sequence)
    for number, inputs in enumerate(masked.inputs):
        rows = torch.cat(inputs).double()
        width = rows.shape[1] // heads
        bases = []
        for group in range(groups):
            moment = torch.zeros(width, width).double()
            for head in range(group * heads // groups, (group + 1) * heads // groups):
                part = rows[:, head * width : (head + 1) * width]
                moment += part.mT @ part
            basis = torch.linalg.eigh(moment).eigenvectors.flip(-1).float()
            bases += [basis] * (heads // groups)
        masked.bases[number] = torch.block_diag(*bases)


@pytest.mark.parametrize("rotated", [False, True], ids=["fisher", "fisher_pca"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_are_squared_gradients_of_masks_of_ones(
    tmp_path: Path, variant: str, rotated: bool
) -> None:
    model, tokens = tiny_family_model(variant), drawn_tokens()
    directory = save_checkpoint(model, tmp_path / "dense")
    files = GradientFiles(directory=tmp_path / "gradients")
    with CheckpointReader(directory) as reader, torch.inference_mode():
        geometry = reader.family.geometry(reader.config)
        layers = DenseLayerReader(reader, torch.device("cpu"), torch.float32)
        loss_gradients(layers, tokens, batch_size=3, files=files, before_batch=lambda done: None)
        scores = [
            _fisher_scores(files.read(layer), geometry, rotated, torch.device("cpu"))
            for layer in range(layers.num_layers)
        ]
    masked = MaskedModel(model)
    if rotated:
        rotate_into_pca_bases(
            masked, tokens, geometry.num_attention_heads, geometry.num_key_value_heads
        )
    expected = scores_by_autograd(masked, tokens)
    flat = [layer.heads.ravel() for layer in scores] + [layer.neurons for layer in scores]
    for actual, reference in zip(flat, expected, strict=True):
        np.testing.assert_allclose(actual, reference, rtol=2e-3, atol=1e-5 * reference.max())


# -- shapes ------------------------------------------------------------------------------------

GEOMETRY = ModelGeometry(
    num_hidden_layers=4,
    hidden_size=24,
    intermediate_size=48,
    num_attention_heads=6,
    num_key_value_heads=3,
    head_dim=16,
    vocab_size=10,
    tie_word_embeddings=True,
)


@dataclass(frozen=True)
class Step:
    """A rounding step that a module may lose."""

    score: float
    """Score per parameter."""
    layer: int
    module: str
    parameters: int


def column_values(heads: NDArray[np.float64]) -> list[float]:
    """Return the summed scores of the i-th best value dimensions of all KV groups."""
    group_scores = []
    size = GEOMETRY.num_attention_heads // GEOMETRY.num_key_value_heads
    for group in range(GEOMETRY.num_key_value_heads):
        dims = [
            sum(heads[group * size + head, dim] for head in range(size))
            for dim in range(GEOMETRY.head_dim)
        ]
        group_scores.append(sorted(dims, reverse=True))
    return [sum(scores[rank] for scores in group_scores) for rank in range(GEOMETRY.head_dim)]


def steps(
    values: list[float], size: int, parameters: int, layer: int, module: str, cap: float
) -> list[Step]:
    """Return steps of `size` items, lowest score first, within the cap and never all items."""
    weakest = sorted(values)
    module_steps = []
    for start in range(0, len(values) - size, size):
        if start + size > cap * len(values) + 1e-9:
            break
        score = sum(weakest[start : start + size]) / (size * parameters)
        module_steps.append(Step(score, layer, module, size * parameters))
    return module_steps


def ranked_steps(
    scores: Sequence[LayerScores], round_to: int, cap: float, bias: float
) -> list[Step]:
    """Return the steps of all layers and both modules, lowest score per parameter first."""
    heads = GEOMETRY.num_attention_heads + GEOMETRY.num_key_value_heads
    column, neuron = 2 * GEOMETRY.hidden_size * heads, 3 * GEOMETRY.hidden_size
    all_steps = []
    for layer, layer_scores in enumerate(scores):
        columns = [bias * value for value in column_values(layer_scores.heads)]
        all_steps += steps(columns, max(round_to, 2), column, layer, "attention", cap)
        all_steps += steps(list(layer_scores.neurons), round_to, neuron, layer, "mlp", cap)
    return sorted(all_steps, key=lambda step: step.score)


@pytest.mark.parametrize("bias", [1.0, 0.2, 5.0])
@pytest.mark.parametrize(("round_to", "cap"), [(1, 0.9), (2, 0.9), (4, 0.75), (8, 1.0)])
@pytest.mark.parametrize("seed", range(3))
def test_shapes_are_those_of_a_global_ranking(
    seed: int, round_to: int, cap: float, bias: float
) -> None:
    """At budgets that the ranking meets exactly there is a single solution."""
    rng = np.random.default_rng(seed)
    heads = (GEOMETRY.num_attention_heads, GEOMETRY.head_dim)
    scores = [
        LayerScores(
            heads=rng.gamma(0.5, 1.0, heads) * np.exp(rng.normal()),
            neurons=rng.gamma(0.5, 1.0, GEOMETRY.intermediate_size) * np.exp(rng.normal()),
        )
        for _ in range(GEOMETRY.num_hidden_layers)
    ]
    sizes = [[GEOMETRY.head_dim, GEOMETRY.intermediate_size] for _ in scores]
    budget = GEOMETRY.dense_plan().parameters(GEOMETRY)
    ranked = ranked_steps(scores, round_to, cap, bias)
    for number, step in enumerate(ranked):
        size = max(round_to, 2) if step.module == "attention" else round_to
        sizes[step.layer][step.module == "mlp"] -= size
        budget -= step.parameters
        if number % 5 and number != len(ranked) - 1:
            continue
        plan = fisher_plan(
            GEOMETRY,
            scores,
            budget,
            round_to=round_to,
            module_cap=cap,
            attention_bias=bias,
        ).plan
        assert [[layer.v_head_dim, layer.intermediate_size] for layer in plan.layers] == sizes
        assert all(layer.qk_head_dim == layer.v_head_dim for layer in plan.layers)
        assert plan.parameters(GEOMETRY) == budget
