"""Configuration of the `adaptive` target: Llama with a per-layer MLP width.

The format is that of DeciLM (`nemotron-nas`), which vLLM reads natively and llama.cpp as `deci`.
This file travels inside the checkpoint: it imports nothing but transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig


class Settings(dict[str, Any]):
    """Dict whose entries are also attributes, as readers of DeciLM expect."""

    def __getattr__(self, name: str) -> Any:
        """Return the entry of that name."""
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def _as_settings(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Settings({name: _as_settings(entry) for name, entry in value.items()})
    return value


@strict
class DeciLMConfig(LlamaConfig):
    """Llama's settings and, in `block_configs`, `attention` and `ffn` of each layer.

    `attention` has `no_op` (True if the layer has no attention) and `n_heads_in_group` (query heads
    per KV head). `ffn` has `no_op` and `intermediate_size`, and may have `ffn_mult`, from which
    other runtimes compute a width that is a multiple of 256.
    """

    model_type = "nemotron-nas"

    block_configs: list[Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Make the entries of `block_configs` attributes; by default all layers are equal."""
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        blocks = self.block_configs or [self._default_block()] * self.num_hidden_layers
        self.block_configs = [_as_settings(block) for block in blocks]

    def _default_block(self) -> dict[str, Any]:
        """Return the entry of a layer with the global sizes.

        transformers compares a configuration with one of default values, so these must exist.
        """
        groups = self.num_key_value_heads or self.num_attention_heads
        return {
            "attention": {"no_op": False, "n_heads_in_group": self.num_attention_heads // groups},
            "ffn": {"no_op": False, "intermediate_size": self.intermediate_size},
        }

    def validate_architecture(self) -> None:
        """Raise on invalid layers (called by transformers); heads need not divide the hidden size.

        Raises:
            ValueError: naming the layer.
        """
        blocks = self.block_configs or []
        if len(blocks) != self.num_hidden_layers:
            raise ValueError(
                f"block_configs has {len(blocks)} entries for {self.num_hidden_layers} layers"
            )
        for index, block in enumerate(blocks):
            problem = self._problem(index, block)
            if problem:
                raise ValueError(f"block_configs[{index}]: {problem}")

    def _problem(self, index: int, block: Any) -> str | None:
        if block.attention.no_op and index == 0:
            return "layer 0 must have attention"
        per_group = block.attention.n_heads_in_group
        if not block.attention.no_op and self.num_attention_heads % per_group:
            return f"n_heads_in_group {per_group} does not divide {self.num_attention_heads} heads"
        if block.ffn.no_op or block.ffn.intermediate_size < 1:
            return "every layer must have an MLP"
        return None


__all__ = ["DeciLMConfig"]
