"""Proof 8, the ratio estimator: scores by autograd over explicit masks, shapes by a naive rank."""

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
"""Sequences whose gradients are summed before they are squared."""
VARIANTS = ["llama", "phi", "phi_grouped", "phi3", "gemma2"]


def drawn_tokens(sequences: int = 19, length: int = 12) -> Tensor:
    """Two whole groups and a part of a third."""
    return torch.randint(3, 250, (sequences, length), generator=torch.Generator().manual_seed(2))


class MaskedModel:
    """A model of the family's own class with masks of ones on the inputs of `Wo` and `Wd`."""

    def __init__(self, model: Any) -> None:
        self._model = model
        layers = model.model.layers
        self.outputs = [
            getattr(one.self_attn, "o_proj", None) or one.self_attn.dense for one in layers
        ]
        downs = [getattr(one.mlp, "down_proj", None) or one.mlp.fc2 for one in layers]
        self.seen: list[list[Tensor]] = [[] for _ in layers]
        """Inputs of `Wo` by layer, (sequence, heads · head_dim)."""
        self.bases = [torch.eye(one.in_features) for one in self.outputs]
        """In which the masks of the heads act: columns."""
        self.heads = [torch.ones(one.in_features, requires_grad=True) for one in self.outputs]
        self.neurons = [torch.ones(one.in_features, requires_grad=True) for one in downs]
        for number, module in enumerate(self.outputs):
            module.register_forward_pre_hook(
                lambda _m, given, number=number: self._mask_heads(number, given[0])
            )
        for module, mask in zip(downs, self.neurons, strict=True):
            module.register_forward_pre_hook(lambda _m, given, mask=mask: (given[0] * mask,))

    def _mask_heads(self, number: int, inner: Tensor) -> tuple[Tensor]:
        self.seen[number].append(inner.detach().squeeze(0))
        basis = self.bases[number]
        return (((inner @ basis) * self.heads[number]) @ basis.mT,)

    def gradients(self, sequence: Tensor) -> list[Tensor]:
        """Of the sequence's summed next-token loss by every mask: heads, then neurons."""
        logits = self._model(input_ids=sequence.unsqueeze(0), use_cache=False).logits[0].float()
        loss = torch.zeros(())
        for place in range(len(sequence) - 1):
            loss = loss - logits[place].log_softmax(-1)[sequence[place + 1]]
        return list(torch.autograd.grad(loss, [*self.heads, *self.neurons]))


def scores_by_autograd(masked: MaskedModel, tokens: Tensor) -> list[NDArray[np.float64]]:
    """Squares of the groups' sums, summed: heads of every layer, then neurons."""
    totals = [np.zeros(mask.numel()) for mask in (*masked.heads, *masked.neurons)]
    for start in range(0, len(tokens), GROUP):
        summed = [np.zeros_like(total) for total in totals]
        for sequence in tokens[start : start + GROUP]:
            for into, gradient in zip(summed, masked.gradients(sequence), strict=True):
                into += gradient.double().numpy()
        for total, group in zip(totals, summed, strict=True):
            total += group**2
    return totals


def rotate_into_pca_bases(masked: MaskedModel, tokens: Tensor, heads: int, groups: int) -> None:
    """Section 3b's basis at full rank: eigenvectors of a KV group's summed second moment."""
    for sequence in tokens:
        masked.gradients(sequence)
    for number, seen in enumerate(masked.seen):
        rows = torch.cat(seen).double()
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
        found = [
            _fisher_scores(files.read(layer), geometry, rotated)
            for layer in range(layers.num_layers)
        ]
    masked = MaskedModel(model)
    if rotated:
        rotate_into_pca_bases(
            masked, tokens, geometry.num_attention_heads, geometry.num_key_value_heads
        )
    wanted = scores_by_autograd(masked, tokens)
    mine = [one.heads.ravel() for one in found] + [one.neurons for one in found]
    for ours, theirs in zip(mine, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=1e-5 * theirs.max())


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
    """The next rounding step that a module may lose."""

    price: float
    """Score that goes with it, a parameter."""
    layer: int
    module: str
    parameters: int


def column_values(heads: NDArray[np.float64]) -> list[float]:
    """What the i-th best value dims of all KV groups are worth together."""
    worth = []
    each = GEOMETRY.num_attention_heads // GEOMETRY.num_key_value_heads
    for group in range(GEOMETRY.num_key_value_heads):
        dims = [
            sum(heads[group * each + head, dim] for head in range(each))
            for dim in range(GEOMETRY.head_dim)
        ]
        worth.append(sorted(dims, reverse=True))
    return [sum(group[place] for group in worth) for place in range(GEOMETRY.head_dim)]


def steps(
    values: list[float], size: int, parameters: int, layer: int, module: str, cap: float
) -> list[Step]:
    """Cheapest first, `size` items together, as many as the cap lets go and never all."""
    weakest = sorted(values)
    found = []
    for start in range(0, len(values) - size, size):
        if start + size > cap * len(values) + 1e-9:
            break
        price = sum(weakest[start : start + size]) / (size * parameters)
        found.append(Step(price, layer, module, size * parameters))
    return found


def ranked_steps(
    scores: Sequence[LayerScores], round_to: int, cap: float, bias: float
) -> list[Step]:
    """Of all layers and both modules, the cheapest first."""
    both = GEOMETRY.num_attention_heads + GEOMETRY.num_key_value_heads
    column, neuron = 2 * GEOMETRY.hidden_size * both, 3 * GEOMETRY.hidden_size
    found = []
    for layer, one in enumerate(scores):
        columns = [bias * value for value in column_values(one.heads)]
        found += steps(columns, max(round_to, 2), column, layer, "attention", cap)
        found += steps(list(one.neurons), round_to, neuron, layer, "mlp", cap)
    return sorted(found, key=lambda step: step.price)


@pytest.mark.parametrize("bias", [1.0, 0.2, 5.0])
@pytest.mark.parametrize(("round_to", "cap"), [(1, 0.9), (2, 0.9), (4, 0.75), (8, 1.0)])
@pytest.mark.parametrize("seed", range(3))
def test_shapes_are_what_a_global_rank_leaves(
    seed: int, round_to: int, cap: float, bias: float
) -> None:
    """At budgets that the rank meets exactly there is one answer."""
    rng = np.random.default_rng(seed)
    heads = (GEOMETRY.num_attention_heads, GEOMETRY.head_dim)
    scores = [
        LayerScores(
            heads=rng.gamma(0.5, 1.0, heads) * np.exp(rng.normal()),
            neurons=rng.gamma(0.5, 1.0, GEOMETRY.intermediate_size) * np.exp(rng.normal()),
        )
        for _ in range(GEOMETRY.num_hidden_layers)
    ]
    kept = [[GEOMETRY.head_dim, GEOMETRY.intermediate_size] for _ in scores]
    budget = GEOMETRY.dense_plan().parameters(GEOMETRY)
    ranked = ranked_steps(scores, round_to, cap, bias)
    for number, step in enumerate(ranked):
        size = max(round_to, 2) if step.module == "attention" else round_to
        kept[step.layer][step.module == "mlp"] -= size
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
        assert [[one.v_head_dim, one.intermediate_size] for one in plan.layers] == kept
        assert all(one.qk_head_dim == one.v_head_dim for one in plan.layers)
        assert plan.parameters(GEOMETRY) == budget
