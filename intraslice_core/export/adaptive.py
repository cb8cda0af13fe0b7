"""Target `adaptive`: layers of different widths as DeciLM (`nemotron-nas`) and GGUF `deci`.

The MLP width differs between layers. Attention is that of the dense model or removed as a whole,
because readers of DeciLM support one head dim and no subset of rotary pairs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from intraslice_core.checkpoints.reader import StoredTensors
from intraslice_core.export.gguf_layout import GgufLayout, deci_layout
from intraslice_core.families.canonical import CanonicalSettings, layer_prefix
from intraslice_core.modeling import DeciLMConfig
from intraslice_core.plan import LayerPlan, ModelPlan

AUTO_MAP: Mapping[str, str] = MappingProxyType(
    {
        "AutoConfig": "configuration_decilm.DeciLMConfig",
        "AutoModel": "modeling_decilm.DeciLMModel",
        "AutoModelForCausalLM": "modeling_decilm.DeciLMForCausalLM",
        "AutoModelForSequenceClassification": "modeling_decilm.DeciLMForSequenceClassification",
        "AutoModelForTokenClassification": "modeling_decilm.DeciLMForTokenClassification",
        "AutoModelForQuestionAnswering": "modeling_decilm.DeciLMForQuestionAnswering",
    }
)
"""Classes for transformers' Auto classes, by module in the checkpoint."""
FFN_MULTIPLE = 256
"""Multiple to which runtimes that compute the MLP width from `ffn_mult` round it up."""

_LLAMA_SETTINGS = (
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
"""Settings with the same names in `LlamaConfig` and the canonical architecture."""


@dataclass(frozen=True, kw_only=True)
class AdaptiveForm:
    """Form of a compressed model as a DeciLM checkpoint."""

    canonical: CanonicalSettings
    plan: ModelPlan

    def tensors(self, canonical: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors without the input norms of removed attention modules.

        Readers of DeciLM do not expect these norms.
        """
        unused = {
            f"{layer_prefix(layer)}input_layernorm.weight"
            for layer, shape in enumerate(self.plan.layers)
            if shape.num_attention_heads == 0
        }
        return {name: tensor for name, tensor in canonical.items() if name not in unused}

    def canonical_tensors(self, stored: StoredTensors) -> dict[str, Tensor]:
        """Return the written tensors in the IntraSlice architecture, in float32."""
        return {name: stored.tensor(name).float() for name in stored.names}

    def configuration(self) -> PreTrainedConfig:
        """Return the `DeciLMConfig`, which names the code that travels with it."""
        settings: dict[str, Any] = {
            name: self.canonical[name] for name in _LLAMA_SETTINGS if name in self.canonical
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
        no_attention = shape.num_attention_heads == 0
        ffn: dict[str, Any] = {"no_op": False, "intermediate_size": shape.intermediate_size}
        if all(layer.intermediate_size % FFN_MULTIPLE == 0 for layer in self.plan.layers):
            ffn["ffn_mult"] = 1.5 * shape.intermediate_size / self.canonical["hidden_size"]
        return {
            "attention": {
                "no_op": no_attention,
                "n_heads_in_group": None if no_attention else heads_in_group,
            },
            "ffn": ffn,
        }

    def gguf_layout(self) -> GgufLayout:
        """Return the layout of a GGUF file of architecture `deci`."""
        return deci_layout(self.canonical, self.plan.layers)
