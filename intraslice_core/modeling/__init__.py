"""Model classes that travel inside a checkpoint.

Importing this package registers them with transformers' Auto classes, so that a compressed
checkpoint loads without `trust_remote_code`.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from intraslice_core.modeling.building import AUTO_MAP, LayerShape, intraslice_config
from intraslice_core.modeling.configuration_intraslice import (
    IntraSliceConfig,
    decode_rotary_pairs,
    encode_rotary_pairs,
)
from intraslice_core.modeling.modeling_intraslice import IntraSliceForCausalLM, IntraSliceModel


def register() -> None:
    """Tell transformers' Auto classes about ours; calling it twice does no harm."""
    AutoConfig.register(IntraSliceConfig.model_type, IntraSliceConfig, exist_ok=True)
    AutoModel.register(IntraSliceConfig, IntraSliceModel, exist_ok=True)
    AutoModelForCausalLM.register(IntraSliceConfig, IntraSliceForCausalLM, exist_ok=True)
    # `save_pretrained` then puts the code files and `auto_map` beside the weights.
    IntraSliceConfig.register_for_auto_class()  # type: ignore[no-untyped-call]
    IntraSliceModel.register_for_auto_class("AutoModel")  # type: ignore[no-untyped-call]
    IntraSliceForCausalLM.register_for_auto_class("AutoModelForCausalLM")  # type: ignore[no-untyped-call]


register()

__all__ = [
    "AUTO_MAP",
    "IntraSliceConfig",
    "IntraSliceForCausalLM",
    "IntraSliceModel",
    "LayerShape",
    "decode_rotary_pairs",
    "encode_rotary_pairs",
    "intraslice_config",
    "register",
]
