"""OPT family: learned positions instead of rotary embedding, LayerNorm, biases and a plain MLP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from intraslice_core.families.family import Family, FamilyFacts, default_sizes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class OPTFamily(Family):
    """Table of `OPTForCausalLM`."""

    model_type = "opt"
    title = "OPT"
    architecture = "OPTForCausalLM"
    facts = FamilyFacts(
        defaults=default_sizes(
            50_272,
            768,
            3072,
            12,
            12,
            None,
            tie_word_embeddings=True,
            enable_bias=True,
            max_position_embeddings=2048,
        ),
        mlp_projections=2,
        norm_bias=True,
        attention_bias="enable_bias",
        attention_output_bias="enable_bias",
        mlp_bias="enable_bias",
    )
    ignored_settings = frozenset({"head_dim", "num_key_value_heads"})
    layers = "model.decoder.layers"
    modules = {  # noqa: RUF012  # a constant of the class
        "input_layernorm": "self_attn_layer_norm",
        "self_attn.o_proj": "self_attn.out_proj",
        "post_attention_layernorm": "final_layer_norm",
        "mlp.up_proj": "fc1",
        "mlp.down_proj": "fc2",
        "model.embed_tokens": "model.decoder.embed_tokens",
        "model.embed_positions": "model.decoder.embed_positions",
        "model.norm": "model.decoder.final_layer_norm",
    }
    former_names = {"decoder.": "model.decoder."}  # noqa: RUF012  # a constant of the class
    setting_names = {  # noqa: RUF012  # a constant of the class
        "intermediate_size": "ffn_dim",
        "hidden_act": "activation_function",
        "initializer_range": "init_std",
    }
    position_offset = 2

    def position_rows(self, values: Mapping[str, Any]) -> int:
        """Return the rows of the table of positions; the first two are not positions."""
        positions = values["max_position_embeddings"]
        return positions + self.position_offset if type(positions) is int else 0

    def settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Return LayerNorm with its fixed epsilon, and no rotary embedding in any layer."""
        return {
            "norm_type": "layer",
            "norm_eps": 1e-5,
            "rope_layers": (False,) * config.num_hidden_layers,
        }

    def unsupported_settings(self, config: PreTrainedConfig) -> Iterator[str]:
        """Yield norms after the modules, projected embeddings, and norms without weights."""
        if not config.do_layer_norm_before:
            yield "do_layer_norm_before false (OPT 350M: norms after the modules)"
        if config.word_embed_proj_dim != config.hidden_size:
            yield f"word_embed_proj_dim {config.word_embed_proj_dim}, unlike hidden_size"
        if not config.layer_norm_elementwise_affine:
            yield "layer_norm_elementwise_affine false"
        if config._remove_final_layer_norm:
            yield "_remove_final_layer_norm"
