"""Model classes that travel inside a checkpoint, and the configuration of sliced models.

Importing this package registers them with transformers' Auto classes, so that a compressed
checkpoint loads without `trust_remote_code`.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from intraslice_core.modeling.building import AUTO_MAP, LayerShape, intraslice_config
from intraslice_core.modeling.configuration_decilm import DeciLMConfig
from intraslice_core.modeling.configuration_intraslice import (
    IntraSliceConfig,
    decode_rotary_pairs,
    encode_rotary_pairs,
)
from intraslice_core.modeling.modeling_decilm import DeciLMForCausalLM, DeciLMModel
from intraslice_core.modeling.modeling_intraslice import IntraSliceForCausalLM, IntraSliceModel

_CLASSES = (
    (IntraSliceConfig, IntraSliceModel, IntraSliceForCausalLM),
    (DeciLMConfig, DeciLMModel, DeciLMForCausalLM),
)


def register() -> None:
    """Register the model classes with transformers' Auto classes; repeated calls are harmless."""
    for config, model, language_model in _CLASSES:
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        AutoModelForCausalLM.register(config, language_model, exist_ok=True)
        # `save_pretrained` then writes the code files and `auto_map` beside the weights.
        config.register_for_auto_class()  # type: ignore[no-untyped-call]
        model.register_for_auto_class("AutoModel")  # type: ignore[no-untyped-call]
        language_model.register_for_auto_class("AutoModelForCausalLM")  # type: ignore[no-untyped-call]


register()

__all__ = [
    "AUTO_MAP",
    "DeciLMConfig",
    "DeciLMForCausalLM",
    "DeciLMModel",
    "IntraSliceConfig",
    "IntraSliceForCausalLM",
    "IntraSliceModel",
    "LayerShape",
    "decode_rotary_pairs",
    "encode_rotary_pairs",
    "intraslice_config",
    "register",
]
