"""EXAONE 4 family: norms on outputs only, normed q and k.

In models with a sliding window, layers with full attention have no rotary embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intraslice_core.families.family import Family, FamilyFacts, default_sizes
from intraslice_core.families.gguf import GgufSettings, GgufTable, rope_parameters, window_layers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


_LARGEST_MODEL_LAYERS, _LARGEST_MODEL_WINDOW = 64, 4096


def _gguf_settings(gguf: GgufSettings) -> dict[str, Any]:
    """Return the settings of a GGUF file.

    llama.cpp uses the window of the 32B model only, which it knows by its number of layers; the
    window of any other file is a setting of the model, too.
    """
    rope = rope_parameters(gguf)
    if gguf.number("rope.freq_base_swa", rope["rope_theta"]) != rope["rope_theta"]:
        raise gguf.unsupported("rope.freq_base_swa", gguf.get("rope.freq_base_swa"))
    layers = gguf.integer("block_count")
    default = _LARGEST_MODEL_WINDOW if layers == _LARGEST_MODEL_LAYERS else 0
    window, types = gguf.integer("attention.sliding_window", default), window_layers(gguf, 4)
    return {
        "sliding_window": window or None,
        "layer_types": types if window else ["full_attention"] * layers,
        "rope_parameters": rope,
    }


class Exaone4Family(Family):
    """Table of `Exaone4ForCausalLM`."""

    model_type = "exaone4"
    title = "EXAONE 4"
    architecture = "Exaone4ForCausalLM"
    facts = FamilyFacts(defaults=default_sizes(102_400, 4096, 16_384, 32, 32, 32), qk_norm=True)
    modules = {  # noqa: RUF012  # a constant of the class
        "attention_output_norm": "post_attention_layernorm",
        "mlp_output_norm": "post_feedforward_layernorm",
    }
    gguf = GgufTable(architecture="exaone4", settings=_gguf_settings)

    def settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Return the place of the norms, and the layers with windows and rotary embedding."""
        layer_types = tuple(config.layer_types)
        window = config.sliding_window
        return {
            "input_norms": False,
            "output_norms": True,
            "sliding_window": window,
            "layer_types": layer_types,
            "rope_layers": tuple(
                window is None or layer_type == "sliding_attention" for layer_type in layer_types
            ),
        }
