"""Masks: gradients against autograd through the whole model, and the published updates."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from intraslice_core.checkpoints.dense_model import DenseLayerReader
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.config import MaskTrainingConfig
from intraslice_core.modeling import modeling_intraslice
from intraslice_core.sensitivity import mask_steps
from intraslice_core.sensitivity.mask_gradients import mask_gradients
from intraslice_core.sensitivity.mask_training import (
    MaskLayout,
    PathState,
    path_coupling,
    path_threshold,
    train_path,
)
from tests.intraslice_core.methods.masked_models import Masked, calibration
from tests.intraslice_core.tiny_models import (
    FAMILY_VARIANTS,
    save_checkpoint,
    tiny_checkpoint,
    tiny_model,
)


def reader_of(reader: CheckpointReader) -> DenseLayerReader:
    return DenseLayerReader(reader, torch.device("cpu"), torch.float32)


def layout_of(reader: CheckpointReader) -> MaskLayout:
    return MaskLayout(geometry=reader.family.geometry(reader.config))


def trained(
    reader: CheckpointReader, config: MaskTrainingConfig, seen: list[int] | None = None
) -> PathState:
    """Train masks on the calibration tokens; `seen` gets the number before each step."""
    layout, tokens = layout_of(reader), calibration()
    state = PathState.start(layout.units, path_threshold(config, tokens.shape[1]))
    steps: list[int] = [] if seen is None else seen
    train_path(
        reader_of(reader),
        tokens,
        layout,
        config,
        state,
        prefix_length=0,
        before_step=lambda: steps.append(state.step),
    )
    return state


def masked_loss(
    masked: Masked, parts: list[tuple[Tensor, Tensor, Tensor]], tokens: Tensor, patch: Any
) -> Tensor:
    """Return the mean next-token loss of the whole model with masks, as a graph."""
    pad, calls = modeling_intraslice.pad_heads, 0

    def scaled(heads: Tensor, width: int) -> Tensor:
        nonlocal calls
        layer, role = divmod(calls, 3)
        calls += 1
        pairs, values, _ = parts[layer]
        own = values if role == 2 else torch.cat((pairs, pairs), -1)
        copies = heads.shape[1] // len(own)
        return pad(heads * own.repeat_interleave(copies, 0)[:, None], width)

    patch.setattr(modeling_intraslice, "pad_heads", scaled)
    masked.mlp.update({layer: neurons for layer, (_, _, neurons) in enumerate(parts)})
    logits = masked.model(tokens, use_cache=False).logits
    patch.undo()
    flat = logits[:, :-1].flatten(0, 1)
    return nn.functional.cross_entropy(flat, tokens[:, 1:].flatten())


@pytest.mark.parametrize("variant", FAMILY_VARIANTS)
def test_gradients_of_masks_equal_those_of_the_whole_model(
    tmp_path: Path, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = tiny_checkpoint(tmp_path / "dense", variant)
    masked, tokens = Masked.of(dense, tmp_path / "canonical"), calibration()[:3]
    with CheckpointReader(dense) as reader, torch.inference_mode():
        layout = layout_of(reader)
        generator = torch.Generator().manual_seed(2)
        vector = 0.5 + torch.rand(layout.units, generator=generator, dtype=torch.float64)
        masks = layout.masks(vector, torch.device("cpu"))
        measured = mask_gradients(reader_of(reader), tokens, masks)
        gradients = layout.vector(measured.layers)
    with torch.inference_mode(False):
        leaf = vector.clone().float().requires_grad_(True)
        loss = masked_loss(masked, layout.parts(leaf), tokens.clone(), monkeypatch)
        (expected,) = torch.autograd.grad(loss, leaf)
    assert measured.loss == pytest.approx(float(loss.detach()), rel=1e-4)
    error = float((gradients - expected).norm() / expected.norm())
    assert error < 1e-3, error


def test_updates_are_the_published_ones_of_torchs_adamw() -> None:
    generator = torch.Generator().manual_seed(0)
    units, rate, steps = 20, 0.001, 130
    state = PathState.start(units, 0.1)
    parameter = nn.Parameter(torch.ones(units, dtype=torch.float64))
    optimizer = torch.optim.AdamW([parameter], lr=rate, eps=1e-4, weight_decay=0.0)
    z, gamma = [0.0] * units, [0.0] * units
    left: dict[int, int] = {}
    pull = torch.linspace(-1.0, 1.0, units, dtype=torch.float64)
    for step in range(1, steps + 1):
        gradient = pull + 0.1 * torch.randn(units, generator=generator, dtype=torch.float64)
        state.update(gradient.clone(), rate)
        parameter.grad = gradient.clone()
        optimizer.step()
        size = rate / (1.0 - 0.9**step)
        for unit in range(units):
            z[unit] += size * 1.0 * (float(parameter.detach()[unit]) - gamma[unit])
            gamma[unit] = max(z[unit] - 0.1, 0.0)
            if gamma[unit] > 0.0:
                left.setdefault(unit, step)
    torch.testing.assert_close(state.alpha, parameter.detach())
    torch.testing.assert_close(state.gamma, torch.tensor(gamma, dtype=torch.float64))
    assert [left.get(unit, 0) for unit in range(units)] == state.left.tolist()
    assert len(set(left.values())) > 1
    order = sorted(range(units), key=lambda unit: (left.get(unit, steps + 1), -z[unit]))
    assert state.ranks().argsort(descending=True).tolist() == order


def test_units_are_ordered_by_the_loss_of_their_removal_per_parameter() -> None:
    """A planted loss, `sum(h (1 - alpha)²) / 2`, is least at masks of 1, as in a trained model."""
    generator = torch.Generator().manual_seed(3)
    per_parameter = torch.logspace(-6, -2, 40, dtype=torch.float64)
    per_parameter = per_parameter[torch.randperm(40, generator=generator)]
    parameters = torch.tensor([1.0, 3.0], dtype=torch.float64).repeat(20)
    config, length = MaskTrainingConfig(max_tokens=32 * 1000), 32
    state = PathState.start(40, path_threshold(config, length))
    state.coupling = 2e-4 * parameters
    for _ in range(1000):
        state.update(per_parameter * parameters * (state.alpha - 1.0), config.learning_rate)
    assert len(set(state.left.tolist())) > 10
    for own in (parameters == 1.0, parameters == 3.0):
        assert state.ranks()[own].argsort().tolist() == per_parameter[own].argsort().tolist()


def test_the_coupling_is_the_median_gradient_of_a_parameter_times_the_parameters() -> None:
    gradient = torch.tensor([-4.0, 1.0, 6.0, 0.0, 9.0], dtype=torch.float64)
    parameters = torch.tensor([2.0, 2.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    assert path_coupling(gradient, parameters).tolist() == [4.0, 4.0, 4.0, 2.0, 2.0]


@pytest.mark.parametrize("variant", ["llama", "phi", "gpt_neox"])
def test_parameters_of_units_are_all_that_masks_remove(tmp_path: Path, variant: str) -> None:
    dense = tiny_checkpoint(tmp_path / "dense", variant)
    with CheckpointReader(dense) as reader:
        layout = layout_of(reader)
    geometry = layout.geometry
    whole = geometry.dense_layer()
    bare = {"qk_pairs": whole.qk_pairs - 1, "v_head_dim": whole.v_head_dim - 1}
    for pairs, values, neurons in layout.parts(layout.unit_parameters()):
        removed = float(pairs[:, 0].sum() + values[:, 0].sum())
        smaller = whole.model_copy(update=bare).attention_parameters(geometry)
        assert removed == whole.attention_parameters(geometry) - smaller
        assert float(neurons.sum()) == whole.mlp_parameters(geometry)


def test_a_unit_that_the_loss_does_not_depend_on_loses_its_mask(tmp_path: Path) -> None:
    model = tiny_model()
    idle = [3, 17, 40]
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight[:, idle] = 0.0
    dense = save_checkpoint(model, tmp_path / "dense")
    config = MaskTrainingConfig(max_tokens=24 * 80, learning_rate=0.05)
    seen: list[int] = []
    with CheckpointReader(dense) as reader, torch.inference_mode():
        layout, state = layout_of(reader), trained(reader, config, seen)
    assert seen == list(range(80))
    for _, _, neurons in layout.parts(state.alpha):
        assert neurons[idle].abs().max() < 0.5
        assert neurons.max() > 0.7


def test_the_first_step_couples_the_masks_by_its_gradients(tmp_path: Path) -> None:
    dense = tiny_checkpoint(tmp_path / "dense", "llama")
    config = MaskTrainingConfig(max_tokens=24, learning_rate=0.05)
    with CheckpointReader(dense) as reader, torch.inference_mode():
        layout, tokens = layout_of(reader), calibration()
        masks = layout.masks(torch.ones(layout.units), torch.device("cpu"))
        plain = mask_gradients(reader_of(reader), tokens[:1], masks).layers
        state = trained(reader, config)
        expected = path_coupling(layout.vector(plain), layout.unit_parameters())
    assert (expected > 0.0).all()
    torch.testing.assert_close(state.coupling, expected)
    # After one step AdamW's first moment is a tenth of the augmented loss's gradient.
    torch.testing.assert_close(10.0 * state.first, layout.vector(plain) + 2.0 * expected)


def test_the_threshold_is_reached_halfway_by_a_mask_that_stays_one() -> None:
    config = MaskTrainingConfig(max_tokens=32 * 1000 + 31, learning_rate=0.01)
    state = PathState.start(1, path_threshold(config, 32))
    for _ in range(1000):
        state.update(torch.zeros(1, dtype=torch.float64), 0.01)
    assert 470 <= float(state.left) <= 500  # the first steps are larger, as AdamW's are


def test_a_restored_training_takes_the_same_steps() -> None:
    gradients = torch.randn(40, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    state = PathState.start(6, 0.3)
    state.coupling = torch.linspace(0.1, 0.6, 6, dtype=torch.float64)
    for gradient in gradients[:20]:
        state.update(gradient, 0.02)
    assert (state.left > 0.0).any()
    tensors = {name: tensor.clone() for name, tensor in state.tensors().items()}
    restored = PathState.restored(tensors, state.facts())
    for gradient in gradients[20:]:
        state.update(gradient, 0.02)
        restored.update(gradient, 0.02)
    for name, tensor in state.tensors().items():
        assert torch.equal(getattr(restored, name), tensor), name
    assert restored.facts() == state.facts()


def test_a_training_stops_at_its_first_bound_and_takes_one_step_at_least(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = tiny_checkpoint(tmp_path / "dense", "llama")
    clock = iter(range(1000))
    time = SimpleNamespace(perf_counter=lambda: float(next(clock)))
    monkeypatch.setattr(mask_steps, "time", time)

    def steps(**bounds: Any) -> int:
        with CheckpointReader(dense) as reader, torch.inference_mode():
            state = trained(reader, MaskTrainingConfig(**bounds))
            assert state.tokens == 24 * state.step
            return state.step

    assert steps(max_tokens=16) == 1
    assert steps(max_tokens=24 * 5 + 23) == 5
    assert steps(max_seconds=3.0) == 3
