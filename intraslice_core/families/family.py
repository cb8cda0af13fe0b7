"""Interface of a family's table: dimensions, module names, settings and unsupported settings.

A new family is a subclass of `Family` in a module of its own, registered in `FAMILIES`; see
`llama.py`. `FamilyAdapter` derives names, shapes and tensors from the table. The service reads a
model's dimensions from config.json through these tables, so nothing here may load torch or
transformers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from intraslice_core.families.gguf import GgufTable
from intraslice_core.plan import ModelGeometry

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Flag = bool | str
"""Fixed value, or the name of the setting in config.json that holds it."""


@dataclass(frozen=True, kw_only=True)
class FamilyFacts:
    """Default sizes and optional tensors of a family's dense models."""

    defaults: Mapping[str, Any]
    """Values that the configuration class assumes for settings missing in config.json."""
    mlp_projections: int = 3
    norms_per_layer: int = 2
    norm_bias: bool = False
    qk_norm: bool = False
    qk_norm_across_heads: bool = False
    attention_bias: Flag = False
    attention_output_bias: Flag = False
    mlp_bias: Flag = False
    lm_head_bias: Flag = False


def default_sizes(
    vocab: int, hidden: int, width: int, layers: int, heads: int, groups: int | None, **more: Any
) -> dict[str, Any]:
    """Return the default sizes of a configuration class under the names of config.json."""
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "tie_word_embeddings": False,
        **more,
    }


class Family(ABC):
    """Table of one `model_type`; the defaults are those of Llama."""

    model_type: ClassVar[str]
    """`model_type` in config.json."""
    title: ClassVar[str]
    """Name of the family's models for readers, such as "Qwen 3"."""
    architecture: ClassVar[str]
    """Name of transformers' causal language model class."""
    facts: ClassVar[FamilyFacts]
    modules: ClassVar[Mapping[str, str]] = {}
    """Names in the family's checkpoints by canonical module name, where they differ.

    Names of modules in a layer have no prefix; those outside the layers are full names.
    """
    fused: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Canonical modules whose rows a fused module of the family stacks, by its name."""
    fused_per_head: ClassVar[bool] = False
    """True if the rows of fused modules are [head][part][row], not [part][head][row]."""
    layers: ClassVar[str] = "model.layers"
    """Name of the list of layers in the family's checkpoints."""
    position_offset: ClassVar[int] = 0
    """Row of the first position in a table of learned positions."""
    former_names: ClassVar[Mapping[str, str]] = {}
    """Present prefixes of tensor names by the prefixes that older checkpoints have."""
    ignored_settings: ClassVar[frozenset[str]] = frozenset()
    """Settings of Llama that the family's classes do not read, even if config.json has them."""
    setting_names: ClassVar[Mapping[str, str]] = {}
    """Names in config.json of settings that Llama names otherwise, by Llama's names."""
    rotates_partly: ClassVar[bool] = False
    """True if some dimensions of a head may have no rotary embedding."""
    interleaved_rotary: ClassVar[bool] = False
    """True if a rotary pair is (2j, 2j + 1) of a head's rotating dimensions, not (j, j + half)."""
    gguf: ClassVar[GgufTable | None] = None
    """Reading of the family's GGUF files; None if llama.cpp has no architecture of its own."""

    @abstractmethod
    def settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Return the canonical settings that differ from a Llama without biases."""

    def unsupported_settings(self, config: PreTrainedConfig) -> Iterator[str]:
        """Yield the settings of a model that the engine does not support, with their values."""
        del config
        yield from ()

    def present_name(self, stored: str) -> str:
        """Return the name that a tensor of an older checkpoint has today, as transformers does."""
        for former, present in self.former_names.items():
            if stored.startswith(former):
                return present + stored.removeprefix(former)
        return stored

    def position_rows(self, values: Mapping[str, Any]) -> int:
        """Return the rows of the table of learned positions for the settings of config.json.

        Families without such a table have 0.
        """
        del values
        return 0

    def norms_per_layer(self, values: Mapping[str, Any]) -> int:
        """Return the number of norms in a layer for the settings of config.json."""
        del values
        return self.facts.norms_per_layer

    def geometry(self, settings: Mapping[str, Any]) -> ModelGeometry:
        """Return the dimensions that a configuration describes.

        Args:
            settings: values by their names in config.json; missing ones take the family's defaults.

        Raises:
            ValidationError: from pydantic, if a size is missing or impossible.
        """
        read = {name: settings[name] for name in settings.keys() - self.ignored_settings}
        own = {name: settings[key] for name, key in self.setting_names.items() if key in settings}
        values = {**self.facts.defaults, **read, **own}
        heads, hidden = values["num_attention_heads"], values["hidden_size"]
        groups, head_dim = values["num_key_value_heads"], values.get("head_dim")
        if head_dim is None and type(heads) is int and type(hidden) is int and heads > 0:
            head_dim = hidden // heads
        return ModelGeometry(
            num_hidden_layers=values["num_hidden_layers"],
            hidden_size=hidden,
            intermediate_size=values["intermediate_size"],
            num_attention_heads=heads,
            num_key_value_heads=heads if groups is None else groups,
            head_dim=head_dim,
            vocab_size=values["vocab_size"],
            tie_word_embeddings=values["tie_word_embeddings"] or False,
            **self._optional_tensors(values),
        )

    def _optional_tensors(self, values: Mapping[str, Any]) -> dict[str, Any]:
        facts = self.facts

        def is_set(flag: Flag) -> bool:
            return bool(values.get(flag)) if isinstance(flag, str) else flag

        return {
            "mlp_projections": facts.mlp_projections,
            "position_rows": self.position_rows(values),
            "norms_per_layer": self.norms_per_layer(values),
            "norm_bias": facts.norm_bias,
            "qk_norm": facts.qk_norm,
            "qk_norm_across_heads": facts.qk_norm_across_heads,
            "attention_bias": is_set(facts.attention_bias),
            "attention_output_bias": is_set(facts.attention_output_bias),
            "mlp_bias": is_set(facts.mlp_bias),
            "lm_head_bias": is_set(facts.lm_head_bias),
        }
