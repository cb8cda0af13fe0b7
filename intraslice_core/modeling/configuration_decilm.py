"""Configuration of the `adaptive` target: Llama with an MLP width of its own in every layer.

The format is DeciLM's (`nemotron-nas`), which vLLM reads natively and llama.cpp as `deci`. This
file travels inside the checkpoint: it imports nothing but transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig


class Settings(dict[str, Any]):
    """A dict whose entries are attributes too, as DeciLM's readers want them."""

    def __getattr__(self, name: str) -> Any:
        """The entry of that name."""
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def _as_settings(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Settings({name: _as_settings(one) for name, one in value.items()})
    return value


@strict
class DeciLMConfig(LlamaConfig):
    """Llama's settings, and for each layer `attention` and `ffn` in `block_configs`.

    `attention` has `no_op` (the layer has none) and `n_heads_in_group` (query heads that share a
    KV head); `ffn` has `no_op` and `intermediate_size`, and may have `ffn_mult`, which other
    runtimes compute a width from that is a multiple of 256.
    """

    model_type = "nemotron-nas"

    block_configs: list[Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Make `block_configs` readable by attributes; without any, all layers are alike."""
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        blocks = self.block_configs or [self._plain_block()] * self.num_hidden_layers
        self.block_configs = [_as_settings(block) for block in blocks]

    def _plain_block(self) -> dict[str, Any]:
        """A layer of the global sizes; transformers compares with a configuration of defaults."""
        groups = self.num_key_value_heads or self.num_attention_heads
        return {
            "attention": {"no_op": False, "n_heads_in_group": self.num_attention_heads // groups},
            "ffn": {"no_op": False, "intermediate_size": self.intermediate_size},
        }

    def validate_architecture(self) -> None:
        """Check the layers (transformers calls this); heads need not divide the hidden size.

        Raises:
            ValueError: naming the layer at fault.
        """
        blocks = self.block_configs or []
        if len(blocks) != self.num_hidden_layers:
            raise ValueError(
                f"block_configs has {len(blocks)} entries for {self.num_hidden_layers} layers"
            )
        for index, block in enumerate(blocks):
            fault = self._fault(index, block)
            if fault:
                raise ValueError(f"block_configs[{index}]: {fault}")

    def _fault(self, index: int, block: Any) -> str | None:
        if block.attention.no_op and index == 0:
            return "layer 0 keeps its attention"
        per_group = block.attention.n_heads_in_group
        if not block.attention.no_op and self.num_attention_heads % per_group:
            return f"n_heads_in_group {per_group} does not divide {self.num_attention_heads} heads"
        if block.ffn.no_op or block.ffn.intermediate_size < 1:
            return "every layer keeps an MLP"
        return None


__all__ = ["DeciLMConfig"]
