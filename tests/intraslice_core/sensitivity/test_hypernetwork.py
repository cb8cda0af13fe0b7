"""The hypernetwork of DISP-LLM: masks, penalty, gradients, training and its state."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from intraslice_core.allocation.trained_residual_parts import hypernetwork_plan
from intraslice_core.checkpoints.dense_model import DenseLayerReader
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.config import MaskTrainingConfig
from intraslice_core.errors import BudgetOutOfReachError
from intraslice_core.plan import ModelGeometry
from intraslice_core.sensitivity.hypernetwork import (
    HypernetworkTraining,
    TrainedLogits,
    gumbel_sigmoid,
    kept_share,
    penalty,
    rounded,
    selection_sizes,
)
from intraslice_core.sensitivity.mask_gradients import mask_gradients
from intraslice_core.sensitivity.masked_layer import ResidualPartMasks
from tests.intraslice_core.methods.masked_models import Masked, calibration
from tests.intraslice_core.tiny_models import FAMILY_VARIANTS, tiny_checkpoint, tiny_llama

GEOMETRY = ModelGeometry(
    num_hidden_layers=4,
    hidden_size=64,
    intermediate_size=160,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=100,
    tie_word_embeddings=True,
)
DENSE = GEOMETRY.dense_plan().parameters(GEOMETRY)


def random_logits(seed: int = 0) -> tuple[TrainedLogits, ...]:
    generator = torch.Generator().manual_seed(seed)

    def own(size: int) -> Tensor:
        return torch.randn(size, generator=generator) + torch.randn(1, generator=generator)

    return tuple(
        TrainedLogits(
            attention_reads=own(64),
            attention_writes=own(64),
            mlp_reads=own(64),
            mlp_writes=own(64),
            neurons=own(160),
        )
        for _ in range(4)
    )


def test_masks_are_the_published_draws() -> None:
    logits = torch.tensor([-5.0, -3.0, 0.0, 2.0])
    uniform = torch.rand(4, generator=torch.Generator().manual_seed(3))
    masks = gumbel_sigmoid(logits, torch.Generator().manual_seed(3))
    for mask, logit, draw in zip(masks.tolist(), logits.tolist(), uniform.tolist(), strict=True):
        noise = -math.log(-math.log(draw))
        assert mask == pytest.approx(1.0 / (1.0 + math.exp(-(logit + noise + 3.0) / 0.4)), rel=1e-4)
    leaf = masks.clone().requires_grad_(True)
    hard = rounded(leaf)
    assert set(hard.tolist()) <= {0.0, 1.0}
    (gradient,) = torch.autograd.grad(hard.sum(), leaf)
    assert gradient.tolist() == [1.0] * 4


def test_the_penalty_is_that_of_the_share_of_parameters_that_masks_keep() -> None:
    plan = hypernetwork_plan(GEOMETRY, random_logits(), round(0.6 * DENSE), 4)
    masks = []
    for layer in plan.layers:
        sizes = layer.residual_parts
        assert sizes is not None
        counts = (*sizes.by_label.values(), layer.intermediate_size)
        for count, size in zip(counts, (64, 64, 64, 64, 160), strict=True):
            masks.append((torch.arange(size) < count).float())
    share = kept_share(masks, GEOMETRY)
    assert float(share) == pytest.approx(plan.parameters(GEOMETRY) / DENSE, rel=1e-6)
    for keep in (0.3, 0.9):
        ratio = max(float(share), keep) / min(float(share), keep)
        assert float(penalty(share, keep)) == pytest.approx(16.0 * math.log(ratio), rel=1e-5)


@pytest.mark.parametrize("budget", [0.9, 0.6, 0.3])
@pytest.mark.parametrize("round_to", [1, 8])
def test_one_threshold_allocates_and_neurons_take_the_rest(budget: float, round_to: int) -> None:
    logits, parameters = random_logits(), round(budget * DENSE)
    plan = hypernetwork_plan(GEOMETRY, logits, parameters, round_to)
    used = plan.parameters(GEOMETRY)
    assert parameters - 3 * 64 * round_to < used <= parameters
    dropped, remaining = [], []
    for own, layer in zip(logits, plan.layers, strict=True):
        sizes = layer.residual_parts
        assert sizes is not None
        assert sizes.mlp_reads % round_to == 0
        for name, size in vars(sizes).items():
            ranked = getattr(own, name).sort(descending=True).values
            remaining.append(float(ranked[size - 1]))
            # Sizes are rounded down, at most by one step, and are one step at least.
            dropped += ranked[size + round_to - 1 :].tolist()[:1] if size > round_to else []
    if round_to == 1:
        assert max(dropped) <= min(remaining)


def test_budgets_below_one_step_of_everything_are_errors() -> None:
    with pytest.raises(BudgetOutOfReachError, match="cannot be removed"):
        hypernetwork_plan(GEOMETRY, random_logits(), round(0.05 * DENSE), 32)


def masked_loss(masked: Masked, parts: list[list[Tensor]], tokens: Tensor) -> Tensor:
    """Return the mean next-token loss of the whole model with masks, as a graph."""
    handles = []
    for layer, own in zip(masked.layers, parts, strict=True):
        attention_reads, attention_writes, mlp_reads, mlp_writes, neurons = own
        attention, mlp = layer.self_attn, layer.mlp
        for linear, mask in (
            *((part, attention_reads) for part in (attention.q_proj, attention.k_proj)),
            (attention.v_proj, attention_reads),
            *((part, mlp_reads) for part in (mlp.gate_proj, mlp.up_proj) if part is not None),
            (mlp.down_proj, neurons),
        ):
            handles.append(
                linear.register_forward_pre_hook(
                    lambda _module, arguments, mask=mask: (arguments[0] * mask,)
                )
            )
        for linear, mask in ((attention.o_proj, attention_writes), (mlp.down_proj, mlp_writes)):
            handles.append(
                linear.register_forward_hook(lambda _module, _arguments, out, mask=mask: out * mask)
            )
    logits = masked.model(tokens, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


@pytest.mark.parametrize("variant", FAMILY_VARIANTS)
def test_gradients_of_masks_equal_those_of_the_whole_model(tmp_path: Path, variant: str) -> None:
    dense = tiny_checkpoint(tmp_path / "dense", variant)
    masked, tokens = Masked.of(dense, tmp_path / "canonical"), calibration()[:3]
    generator = torch.Generator().manual_seed(2)
    with CheckpointReader(dense) as reader, torch.inference_mode():
        sizes = selection_sizes(reader.family.geometry(reader.config))
        values = [0.5 + torch.rand(size, generator=generator) for size in sizes]
        names = ResidualPartMasks.__dataclass_fields__
        empty = ResidualPartMasks(**dict.fromkeys(names, values[0]))
        masks = [empty.with_tensors(values[first : first + 5]) for first in range(0, len(sizes), 5)]
        layers = DenseLayerReader(reader, torch.device("cpu"), torch.float32)
        measured = mask_gradients(layers, tokens, masks)
    with torch.inference_mode(False):
        leaves = [value.clone().requires_grad_(True) for value in values]
        parts = [leaves[first : first + 5] for first in range(0, len(sizes), 5)]
        loss = masked_loss(masked, parts, tokens.clone())
        expected = torch.cat(torch.autograd.grad(loss, leaves))
    assert measured.loss == pytest.approx(float(loss.detach()), rel=1e-4)
    gradients = torch.cat([part for own in measured.layers for part in own])
    error = float((gradients - expected).norm() / expected.norm())
    assert error < 1e-3, error


def trained(folder: Path, steps: int, state: HypernetworkTraining | None = None) -> Tensor:
    """Return all logits after some steps, from the start or from a state."""
    with CheckpointReader(folder) as reader, torch.inference_mode():
        layers = DenseLayerReader(reader, torch.device("cpu"), torch.float32)
        geometry = reader.family.geometry(reader.config)
        config = MaskTrainingConfig(max_tokens=24 * steps, learning_rate=0.02)
        training = HypernetworkTraining(geometry, 0.5, config)
        if state is not None:
            training.restore(state.tensors(), state.progress.facts())
        training.run(layers, calibration(), prefix_length=0, before_step=lambda: None)
        assert training.progress.step == steps
        return torch.cat([part for own in training.logits() for part in vars(own).values()])


def test_training_moves_the_share_of_parameters_to_the_budget(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense")
    with CheckpointReader(dense) as reader:
        sizes = selection_sizes(reader.family.geometry(reader.config))
        geometry = reader.family.geometry(reader.config)
    shares = []
    for steps in (1, 80):
        logits = trained(dense, steps).split(list(sizes))
        shares.append(float(kept_share([(own > -3.0).float() for own in logits], geometry)))
    assert shares[0] > 0.95
    assert abs(shares[1] - 0.5) < 0.2


def test_a_training_continues_from_its_state_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense")
    with CheckpointReader(dense) as reader, torch.inference_mode():
        layers = DenseLayerReader(reader, torch.device("cpu"), torch.float32)
        geometry = reader.family.geometry(reader.config)
        config = MaskTrainingConfig(max_tokens=24 * 3, learning_rate=0.02)
        first = HypernetworkTraining(geometry, 0.5, config)
        first.run(layers, calibration(), prefix_length=0, before_step=lambda: None)
    assert torch.equal(trained(dense, 6, first), trained(dense, 6))
