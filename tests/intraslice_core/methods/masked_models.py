"""A dense model at full size with masked heads and neurons, as transformers computes it.

The canonical architecture names the projections alike in all families, so that one oracle serves
all. Nothing shrinks: removed inputs of the output projections are multiplied by zero, and mean
contributions are added to the outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from intraslice_core.calibration import calibration_tokens
from intraslice_core.config import CalibrationConfig, CompressionConfig
from tests.intraslice_core.compressing import compress_unverified
from tests.intraslice_core.tiny_models import (
    FAMILY_VARIANTS,
    tiny_checkpoint,
    tiny_llama,
    tiny_tokenizer,
)

CALIBRATION = CalibrationConfig(source="pydoc", samples=8, sequence_length=24)


GROUPS = {"one KV head": 1, "multi-head": 4}
"""KV heads of further variants of Llama."""
VARIANTS = (*FAMILY_VARIANTS, *GROUPS)
TRAINED_VARIANTS = ("llama", "gemma3", "gpt_neox", "opt", "one KV head")
"""Variants on which masks are trained end to end: they differ in norms, biases and order. Gradients
of masks are compared with autograd on every family."""


def checkpoint_of(variant: str, directory: Path) -> Path:
    """Save a tiny random model of a variant."""
    if variant in GROUPS:
        return tiny_llama(directory, num_key_value_heads=GROUPS[variant])
    return tiny_checkpoint(directory, variant)


def calibration() -> Tensor:
    """Return the tokens that a compression with `CALIBRATION` uses, (samples, length)."""
    return calibration_tokens(CALIBRATION, tiny_tokenizer())


def other_tokens() -> Tensor:
    """Return tokens on which logits are compared, (3, 24).

    They are as long as those of the calibration: dynamic rotary tables grow and never shrink.
    """
    return torch.randint(3, 250, (3, 24), generator=torch.Generator().manual_seed(5))


def loaded(directory: Path) -> nn.Module:
    """Load a checkpoint in float32."""
    model: nn.Module = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model.eval()


def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the logits of tokens, (sequences, length, vocabulary)."""
    with torch.no_grad():
        out: Tensor = model(tokens, use_cache=False).logits
    return out


def loss(model: nn.Module, tokens: Tensor) -> float:
    """Return the mean next-token loss, one position at a time."""
    log_probabilities = torch.log_softmax(logits(model, tokens).double(), -1)
    losses = [
        -float(log_probabilities[row, position, tokens[row, position + 1]])
        for row in range(tokens.shape[0])
        for position in range(tokens.shape[1] - 1)
    ]
    return sum(losses) / len(losses)


@dataclass
class Masked:
    """The dense model with masks; all ones at first."""

    model: nn.Module
    heads: int
    groups: int
    attention: dict[int, Tensor] = field(default_factory=dict)
    """Masks of the inputs of each layer's `o_proj`, (heads · head_dim,)."""
    mlp: dict[int, Tensor] = field(default_factory=dict)
    """Masks of the inputs of each layer's `down_proj`, (intermediate_size,)."""
    attention_bias: dict[int, Tensor] = field(default_factory=dict)
    mlp_bias: dict[int, Tensor] = field(default_factory=dict)
    removed: set[int] = field(default_factory=set)
    """Layers without attention."""

    @classmethod
    def of(cls, dense: Path, folder: Path) -> Masked:
        """Convert a checkpoint to the canonical architecture and load it."""
        config = CompressionConfig(ratio=0.0, method="magnitude", calibration=CALIBRATION)
        report = compress_unverified(dense, folder, config)
        masked = cls(
            model=loaded(folder),
            heads=report.geometry.num_attention_heads,
            groups=report.geometry.num_key_value_heads,
        )
        for number, layer in enumerate(masked.layers):
            heads, neurons = layer.self_attn.o_proj, layer.mlp.down_proj
            heads.register_forward_pre_hook(masked._input(masked.attention, number))
            neurons.register_forward_pre_hook(masked._input(masked.mlp, number))
            heads.register_forward_hook(masked._after_attention(number))
            neurons.register_forward_hook(masked._after_mlp(number))
        return masked

    @property
    def layers(self) -> nn.ModuleList:
        """Return the decoder layers."""
        return self.model.model.layers  # type: ignore[union-attr,return-value]

    def output(self, layer: int, module: str) -> Tensor:
        """Return an output projection by rows of inputs, (width, hidden_size), float64."""
        own = self.layers[layer]
        linear = own.self_attn.o_proj if module == "attention" else own.mlp.down_proj
        return linear.weight.detach().double().T

    def inputs(self, tokens: Tensor) -> dict[tuple[int, str], Tensor]:
        """Return the inputs of all output projections before masks, (sequences, length, width)."""
        caught: dict[tuple[int, str], Tensor] = {}
        with _catching(self, caught):
            logits(self.model, tokens)
        return caught

    def _input(self, masks: dict[int, Tensor], layer: int):
        def hook(_module, arguments):
            return (arguments[0] * masks[layer],) if layer in masks else None

        return hook

    def _after_attention(self, layer: int):
        def hook(_module, _arguments, out):
            if layer in self.removed:
                return torch.zeros_like(out)
            return out + self.attention_bias[layer] if layer in self.attention_bias else out

        return hook

    def _after_mlp(self, layer: int):
        def hook(_module, _arguments, out):
            return out + self.mlp_bias[layer] if layer in self.mlp_bias else out

        return hook


@contextmanager
def _catching(masked: Masked, caught: dict[tuple[int, str], Tensor]) -> Iterator[None]:
    handles = []
    for number, layer in enumerate(masked.layers):
        modules = (("attention", layer.self_attn.o_proj), ("mlp", layer.mlp.down_proj))
        for name, module in modules:

            def hook(_module, arguments, key=(number, name)):
                caught[key] = arguments[0].detach().double()

            handles.append(module.register_forward_pre_hook(hook, prepend=True))
    yield
    for handle in handles:
        handle.remove()


def kept_mask(scores: list[float], keep: int) -> Tensor:
    """Return a mask of the `keep` highest scores, float32."""
    ranked = sorted(range(len(scores)), key=lambda index: -scores[index])
    mask = torch.zeros(len(scores))
    mask[ranked[:keep]] = 1.0
    return mask


def unit_scores(masked: Masked, by_head: list[float]) -> list[float]:
    """Return the scores of KV groups, or of the heads of a single group."""
    if masked.groups == 1:
        return by_head
    size = masked.heads // masked.groups
    starts = range(0, masked.heads, size)
    return [sum(by_head[start : start + size]) / size for start in starts]


def spread(masked: Masked, units: Tensor, width: int) -> Tensor:
    """Return the mask of `o_proj`'s inputs from that of the attention's units, (width,)."""
    return units.repeat_interleave(width // len(units))


def fold_norm(norm: nn.Module, rows: Tensor, mask: Tensor, groups: int) -> None:
    """Scale a head norm's weights by the root of the share of energy that a mask leaves.

    Args:
        norm: of queries or keys, in the canonical architecture.
        rows: queries or keys before the norm, (tokens, width), float64.
        mask: of their columns, (width,), float64.
        groups: KV heads.
    """
    energy = (rows**2).mean(0)
    total, left = (part.view(groups, -1).sum(1) for part in (energy, energy * mask))
    if norm.shape[1] > 1 or len(norm.summed) > 1:  # one norm for all heads
        total, left = total.sum().expand(groups), left.sum().expand(groups)
    factor = (left / total).sqrt().float().view(groups, 1, 1, 1)
    shift = float(norm.plus_one)
    weight = norm.weight.view(norm.shape)
    norm.weight.copy_(((weight + shift) * factor - shift).flatten())
