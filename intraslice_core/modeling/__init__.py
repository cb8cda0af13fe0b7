"""Model classes that travel inside a checkpoint, and the configuration of sliced models.

Importing this package registers them with transformers' Auto classes, so that a compressed
checkpoint loads without `trust_remote_code`.
"""

from __future__ import annotations

from typing import Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from intraslice_core.modeling.building import AUTO_MAP, LayerShape, intraslice_config
from intraslice_core.modeling.configuration_decilm import DeciLMConfig
from intraslice_core.modeling.configuration_intraslice import (
    IntraSliceConfig,
    decode_rotary_pairs,
    encode_rotary_pairs,
)
from intraslice_core.modeling.heads_intraslice import (
    IntraSliceForQuestionAnswering,
    IntraSliceForSequenceClassification,
    IntraSliceForTokenClassification,
)
from intraslice_core.modeling.modeling_decilm import (
    DeciLMForCausalLM,
    DeciLMForQuestionAnswering,
    DeciLMForSequenceClassification,
    DeciLMForTokenClassification,
    DeciLMModel,
)
from intraslice_core.modeling.modeling_intraslice import IntraSliceForCausalLM, IntraSliceModel

_AUTO_CLASSES: tuple[Any, ...] = (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoModelForQuestionAnswering,
)
_CLASSES: dict[Any, tuple[Any, ...]] = {
    IntraSliceConfig: (
        IntraSliceModel,
        IntraSliceForCausalLM,
        IntraSliceForSequenceClassification,
        IntraSliceForTokenClassification,
        IntraSliceForQuestionAnswering,
    ),
    DeciLMConfig: (
        DeciLMModel,
        DeciLMForCausalLM,
        DeciLMForSequenceClassification,
        DeciLMForTokenClassification,
        DeciLMForQuestionAnswering,
    ),
}
"""Model classes of each configuration, in the order of `_AUTO_CLASSES`."""


def register() -> None:
    """Register the model classes with transformers' Auto classes; repeated calls are harmless."""
    for config, models in _CLASSES.items():
        AutoConfig.register(config.model_type, config, exist_ok=True)
        # `save_pretrained` then writes the code files and `auto_map` beside the weights.
        config.register_for_auto_class()
        for auto_class, model in zip(_AUTO_CLASSES, models, strict=True):
            auto_class.register(config, model, exist_ok=True)
            model.register_for_auto_class(auto_class.__name__)


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
