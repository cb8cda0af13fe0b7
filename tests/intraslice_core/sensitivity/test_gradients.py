"""Layer-wise gradients equal those of a backward pass through the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from intraslice_core import decoder_layer
from intraslice_core.checkpoints.dense_model import DenseLayerReader, mean_loss
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.device import HostMemory
from intraslice_core.sensitivity import gradients
from intraslice_core.sensitivity.gradients import GradientFiles, LayerGradients, loss_gradients
from tests.intraslice_core.tiny_models import (
    FAMILY_VARIANTS,
    decoder_layers,
    save_checkpoint,
    tiny_family_model,
)

CPU = torch.device("cpu")


def tokens(sequences: int = 3, length: int = 12) -> Tensor:
    return torch.randint(3, 250, (sequences, length), generator=torch.Generator().manual_seed(0))


def run(
    directory: Path,
    work: Path,
    batch_size: int,
    given: Tensor,
    prefix_length: int = 0,
    target_seed: int | None = None,
) -> list[LayerGradients]:
    files = GradientFiles(directory=work)
    with CheckpointReader(directory) as reader, torch.inference_mode():
        layers = DenseLayerReader(reader, CPU, torch.float32)
        loss_gradients(
            layers,
            given,
            batch_size=batch_size,
            files=files,
            before_batch=lambda _: None,
            prefix_length=prefix_length,
            target_seed=target_seed,
        )
        return [files.read(layer) for layer in range(layers.num_layers)]


def output_gradients(model: Any, given: Tensor, first: int = 1) -> list[Tensor]:
    """Return gradients of the summed loss at every layer's output, by the family's own class.

    `first` is the position of the first token that is scored.
    """
    outputs: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _m, _a, out: outputs.append(_tensor(out)))
        for layer in decoder_layers(model)
    ]
    logits = model(input_ids=given, use_cache=False).logits.float()
    for hook in hooks:
        hook.remove()
    loss = torch.nn.functional.cross_entropy(
        logits[:, first - 1 : -1].flatten(0, 1), given[:, first:].flatten(), reduction="sum"
    )
    return list(torch.autograd.grad(loss, outputs))


def _tensor(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


@pytest.mark.parametrize("variant", sorted(FAMILY_VARIANTS))
def test_fisher_matrices_are_those_of_the_familys_own_class(variant, tmp_path):
    model = tiny_family_model(variant)
    directory = save_checkpoint(model, tmp_path / "dense")
    layers = run(directory, tmp_path / "gradients", 2, tokens())
    for layer, gradient in zip(layers, output_gradients(model, tokens()), strict=True):
        flat = gradient.flatten(0, 1).double()
        expected = flat.mT @ flat / flat.shape[0]
        atol = 2e-4 * float(expected.max())
        torch.testing.assert_close(layer.mlp, expected, rtol=2e-3, atol=atol)


@pytest.mark.parametrize("prefix_length", [1, 2])
def test_gradients_at_the_prefix_are_propagated_but_no_part_of_the_moments(prefix_length, tmp_path):
    model = tiny_family_model("llama")
    directory = save_checkpoint(model, tmp_path / "dense")
    layers = run(directory, tmp_path / "gradients", 2, tokens(), prefix_length)
    gradients = output_gradients(model, tokens(), first=prefix_length)
    for layer, gradient in zip(layers, gradients, strict=True):
        flat = gradient[:, prefix_length:].flatten(0, 1).double()
        expected = flat.mT @ flat / flat.shape[0]
        atol = 2e-4 * float(expected.max())
        torch.testing.assert_close(layer.mlp, expected, rtol=2e-3, atol=atol)
        assert layer.tokens == len(flat)


def test_sampled_targets_give_the_true_fisher_matrix_on_average(tmp_path, monkeypatch):
    """At the last layer it is `Σ_t Jᵀ (diag p - p pᵀ) J` with the Jacobian J of the logits."""
    monkeypatch.setattr("intraslice_core.sensitivity.gradients.GROUP_SEQUENCES", 2048)
    model = tiny_family_model("llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(8)  # far from uniform predictions
    directory = save_checkpoint(model, tmp_path / "dense")
    given = tokens(1, 4)
    repeated = given.expand(2048, -1)
    sampled = run(directory, tmp_path / "sampled", 2048, repeated, target_seed=0)[-1].mlp
    of_text = run(directory, tmp_path / "text", 1, given)[-1].mlp
    outputs: list[Tensor] = []
    hook = decoder_layers(model)[-1].register_forward_hook(
        lambda _m, _a, out: outputs.append(_tensor(out).detach())
    )
    model(input_ids=given, use_cache=False)
    hook.remove()

    def logits(hidden: Tensor) -> Tensor:
        return model.lm_head(model.model.norm(hidden))

    expected = torch.zeros(sampled.shape, dtype=torch.float64)
    for position in outputs[0][0, :-1]:
        jacobian = torch.autograd.functional.jacobian(logits, position).double()
        p = logits(position).detach().double().softmax(-1)
        expected += jacobian.mT @ (torch.diag(p) - torch.outer(p, p)) @ jacobian
    expected /= given.numel()
    assert (sampled - expected).norm() < 0.1 * expected.norm()
    assert (of_text - expected).norm() > 0.5 * expected.norm()


def test_a_seed_repeats_its_targets_and_another_one_does_not(tmp_path):
    directory = save_checkpoint(tiny_family_model("llama"), tmp_path / "dense")
    first, again, other = (
        run(directory, tmp_path / name, size, tokens(), target_seed=seed)[0].mlp
        for name, size, seed in (("first", 3, 1), ("again", 1, 1), ("other", 3, 2))
    )
    torch.testing.assert_close(first, again, rtol=1e-3, atol=1e-9)
    assert not torch.allclose(first, other, rtol=1e-2)


@pytest.mark.parametrize("variant", ["llama", "phi", "gemma2"])
def test_the_split_into_batches_and_groups_does_not_matter(variant, tmp_path, monkeypatch):
    directory = save_checkpoint(tiny_family_model(variant), tmp_path / "dense")
    whole = run(directory, tmp_path / "whole", 4, tokens(4))
    monkeypatch.setattr("intraslice_core.sensitivity.gradients.GROUP_SEQUENCES", 2)
    split = run(directory, tmp_path / "split", 1, tokens(4))
    for layer, other in zip(whole, split, strict=True):
        torch.testing.assert_close(layer.attention, other.attention, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(layer.head_moments, other.head_moments, rtol=1e-4, atol=1e-6)
        assert other.head_masks.shape[0] == 2
        torch.testing.assert_close(
            layer.neuron_masks.sum(0), other.neuron_masks.sum(0), rtol=1e-3, atol=1e-4
        )


def test_masks_are_summed_over_groups_that_pass_in_parts(tmp_path, monkeypatch):
    """Parts of a group have as few hidden states in memory as their tokens allow."""
    directory = save_checkpoint(tiny_family_model("llama"), tmp_path / "dense")
    monkeypatch.setattr(gradients, "GROUP_SEQUENCES", 3)
    whole = run(directory, tmp_path / "whole", 4, tokens(4))
    monkeypatch.setattr(gradients, "_TOKENS_AT_ONCE", 24)
    held: list[int] = []
    empty = HostMemory.empty

    def recorded(memory: HostMemory, shape: Any, dtype: torch.dtype) -> Tensor:
        held.append(shape[0])
        return empty(memory, shape, dtype)

    monkeypatch.setattr(HostMemory, "empty", recorded)
    parts = run(directory, tmp_path / "parts", 4, tokens(4))
    assert max(held) == 2
    for layer, other in zip(whole, parts, strict=True):
        assert (layer.tokens, len(layer.neuron_masks)) == (other.tokens, 2)
        for name in ("attention", "mlp", "head_masks", "neuron_masks", "head_moments"):
            torch.testing.assert_close(
                getattr(layer, name), getattr(other, name), rtol=1e-3, atol=1e-5
            )


def test_masks_of_all_neurons_sum_to_the_gradient_of_their_common_scale(tmp_path):
    """Scaling all neurons of a layer's MLP scales its output: masks sum to `Σ ⟨g, Δx⟩`."""
    model = tiny_family_model("llama")
    directory = save_checkpoint(model, tmp_path / "dense")
    layers = run(directory, tmp_path / "gradients", 2, tokens())
    scale = torch.ones((), requires_grad=True)
    model.model.layers[1].mlp.register_forward_hook(lambda _m, _a, out: out * scale)
    logits = model(input_ids=tokens(), use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), tokens()[:, 1:].flatten(), reduction="sum"
    )
    (expected,) = torch.autograd.grad(loss, scale)
    torch.testing.assert_close(layers[1].neuron_masks.sum(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("variant", "prefix_length"), [*((name, 0) for name in sorted(FAMILY_VARIANTS)), ("llama", 2)]
)
def test_the_loss_is_the_familys_own(variant, prefix_length, tmp_path):
    first = max(prefix_length, 1)
    model = tiny_family_model(variant)
    directory = save_checkpoint(model, tmp_path / "dense")
    given = tokens()
    with torch.no_grad():
        output = model(input_ids=given, use_cache=False, output_hidden_states=True)
        expected = torch.nn.functional.cross_entropy(
            output.logits[:, first - 1 : -1].flatten(0, 1).float(), given[:, first:].flatten()
        )
    with CheckpointReader(directory) as reader, torch.inference_mode():
        layers = DenseLayerReader(reader, CPU, torch.float32)
        hidden = layers.embed(given)
        for layer in range(layers.num_layers):
            hidden = decoder_layer.forward(
                hidden,
                layers.weights(layer),
                layers.settings(layer),
                layers.rotary(layer, given.shape[1]),
            )
        loss = mean_loss(layers, hidden, given, prefix_length=prefix_length)
        assert loss == pytest.approx(float(expected), abs=1e-4)
