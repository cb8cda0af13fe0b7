"""The `adaptive` target: layers of different widths as DeciLM (`nemotron-nas`) and GGUF `deci`.

Every layer has an MLP width of its own. Attention is the dense model's, with its head dim and
rotary table, or gone whole: DeciLM's readers know one head dim, and no subset of rotary pairs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from intraslice_core.export.gguf import GgufLayout, deci_layout
from intraslice_core.families.canonical import CanonicalSettings, layer_prefix
from intraslice_core.modeling import DeciLMConfig
from intraslice_core.plan import LayerPlan, ModelPlan

AUTO_MAP: Mapping[str, str] = MappingProxyType(
    {
        "AutoConfig": "configuration_decilm.DeciLMConfig",
        "AutoModel": "modeling_decilm.DeciLMModel",
        "AutoModelForCausalLM": "modeling_decilm.DeciLMForCausalLM",
    }
)
FFN_MULTIPLE = 256
"""Runtimes that compute the width from `ffn_mult` round it up to a multiple of this."""

_SAME = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rope_parameters",
    "attention_bias",
    "mlp_bias",
    "head_dim",
    "tie_word_embeddings",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
"""Settings that Llama's class has under the canonical names."""


@dataclass(frozen=True, kw_only=True)
class AdaptiveForm:
    """How one compressed model is written."""

    canonical: CanonicalSettings
    plan: ModelPlan

    @property
    def query_factor(self) -> float:
        """The head dim is the dense model's."""
        return 1.0

    def tensors(self, canonical: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All but the norms before an attention that is gone, which readers do not expect."""
        gone = {
            f"{layer_prefix(layer)}input_layernorm.weight"
            for layer, shape in enumerate(self.plan.layers)
            if shape.num_attention_heads == 0
        }
        return {name: tensor for name, tensor in canonical.items() if name not in gone}

    def configuration(self) -> PreTrainedConfig:
        """DeciLM's, with the code that reads it."""
        settings: dict[str, Any] = {
            name: self.canonical[name] for name in _SAME if name in self.canonical
        }
        heads, groups = self.canonical["num_attention_heads"], self.canonical["num_key_value_heads"]
        settings |= {
            "rms_norm_eps": self.canonical["norm_eps"],
            "intermediate_size": max(shape.intermediate_size for shape in self.plan.layers),
            "block_configs": [self._block(shape, heads // groups) for shape in self.plan.layers],
            "architectures": ["DeciLMForCausalLM"],
            "auto_map": dict(AUTO_MAP),
        }
        return DeciLMConfig(**copy.deepcopy(settings))

    def _block(self, shape: LayerPlan, heads_in_group: int) -> dict[str, dict[str, Any]]:
        gone = shape.num_attention_heads == 0
        ffn: dict[str, Any] = {"no_op": False, "intermediate_size": shape.intermediate_size}
        if all(one.intermediate_size % FFN_MULTIPLE == 0 for one in self.plan.layers):
            ffn["ffn_mult"] = 1.5 * shape.intermediate_size / self.canonical["hidden_size"]
        return {
            "attention": {"no_op": gone, "n_heads_in_group": None if gone else heads_in_group},
            "ffn": ffn,
        }

    def gguf_layout(self) -> GgufLayout:
        """Architecture `deci`."""
        return deci_layout(self.canonical, self.plan.layers)
