"""EXAONE 4 family: norms on outputs only, normed q and k.

In models with a sliding window, layers with full attention have no rotary embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intraslice_core.families.family import Family, FamilyFacts, default_sizes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


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
