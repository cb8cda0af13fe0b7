"""Rotary frequencies that depend on a sequence's length (`dynamic`, `longrope`), while it grows.

transformers takes the frequencies of the longest position it sees. Keys that are cached while a
text is short would then be rotated by other frequencies than later queries. While a model writes,
all positions have the frequencies of the finished sequence: they are those with which the engine
reads it afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


def depends_on_length(model: nn.Module) -> bool:
    """Return whether a rotary embedding of the model has frequencies by length."""
    return any(True for module in model.modules() for _ in _types_by_length(module))


@contextmanager
def frequencies_of_length(model: nn.Module, length: int) -> Iterator[None]:
    """Give all positions the rotary frequencies of a sequence of `length` tokens in a block."""
    former: list[tuple[nn.Module, str, Any]] = []
    try:
        for module in model.modules():
            for name, value in _replacements(module, length).items():
                former.append((module, name, getattr(module, name)))
                setattr(module, name, value)
        yield
    finally:
        for module, name, value in reversed(former):
            setattr(module, name, value)


def _types_by_length(module: nn.Module) -> Iterator[tuple[str | None, str]]:
    """Yield layer type and rotary type of tables by length; None where all layers share one."""
    types: Any = getattr(module, "rope_type", None)
    tables = types if isinstance(types, dict) else {None: types}
    for layer_type, rope_type in tables.items():
        if isinstance(rope_type, str) and ("dynamic" in rope_type or rope_type == "longrope"):
            yield layer_type, rope_type


def _replacements(module: nn.Module, length: int) -> dict[str, Any]:
    """Return the attributes of a rotary embedding that fix its frequencies, by name."""
    replacements: dict[str, Any] = {}
    types: Any = getattr(module, "rope_type", None)
    for layer_type, rope_type in _types_by_length(module):
        name = "inv_freq" if layer_type is None else f"{layer_type}_inv_freq"
        replacements[name] = _frequencies(module, rope_type, layer_type, length)
        # A table of type `default` is not changed in the forward pass.
        types = "default" if layer_type is None else {**types, layer_type: "default"}
        replacements["rope_type"] = types
    return replacements


def _frequencies(module: Any, rope_type: str, layer_type: str | None, length: int) -> Tensor:
    """Return the inverse frequencies of sequences of a length, (rotating pairs,), float32."""
    name = "inv_freq" if layer_type is None else f"{layer_type}_inv_freq"
    device = getattr(module, name).device
    of_type = {} if layer_type is None else {"layer_type": layer_type}
    compute: Any = ROPE_INIT_FUNCTIONS[rope_type]
    frequencies: Tensor = compute(module.config, device, seq_len=length, **of_type)[0]
    return frequencies
