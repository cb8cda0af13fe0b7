"""Model classes that travel inside a checkpoint.

Importing this package registers them with transformers' Auto classes, so that a compressed
checkpoint loads without `trust_remote_code`.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from intraslice_core.modeling.building import AUTO_MAP, intraslice_config
from intraslice_core.modeling.configuration_intraslice_llama import (
    IntraSliceLlamaConfig,
    decode_rotary_pairs,
    encode_rotary_pairs,
)
from intraslice_core.modeling.modeling_intraslice_llama import (
    IntraSliceLlamaForCausalLM,
    IntraSliceLlamaModel,
)


def register() -> None:
    """Tell transformers' Auto classes about ours; calling it twice does no harm."""
    AutoConfig.register(IntraSliceLlamaConfig.model_type, IntraSliceLlamaConfig, exist_ok=True)
    AutoModel.register(IntraSliceLlamaConfig, IntraSliceLlamaModel, exist_ok=True)
    AutoModelForCausalLM.register(IntraSliceLlamaConfig, IntraSliceLlamaForCausalLM, exist_ok=True)
    # `save_pretrained` then puts the code files and `auto_map` beside the weights.
    IntraSliceLlamaConfig.register_for_auto_class()  # type: ignore[no-untyped-call]
    IntraSliceLlamaModel.register_for_auto_class("AutoModel")  # type: ignore[no-untyped-call]
    IntraSliceLlamaForCausalLM.register_for_auto_class("AutoModelForCausalLM")  # type: ignore[no-untyped-call]


register()

__all__ = [
    "AUTO_MAP",
    "IntraSliceLlamaConfig",
    "IntraSliceLlamaForCausalLM",
    "IntraSliceLlamaModel",
    "decode_rotary_pairs",
    "encode_rotary_pairs",
    "intraslice_config",
    "register",
]
