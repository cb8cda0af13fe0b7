"""Where a Llama keeps what the engine needs: names, shapes, geometry."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedConfig

from intraslice_core.errors import UnsupportedArchitectureError
from intraslice_core.plan import ModelGeometry


@dataclass(frozen=True, kw_only=True)
class LayerPlaces:
    """Modules of one layer by duty, relative to the layer's prefix; fields as in `BlockWeights`.

    A projection holds `.weight` and, where the configuration says so, `.bias`.
    """

    input_norm: str = "input_layernorm"
    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    attention_output: str = "self_attn.o_proj"
    mlp_norm: str = "post_attention_layernorm"
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    mlp_output: str = "mlp.down_proj"


@dataclass(frozen=True, kw_only=True)
class LlamaFamily:
    """Adapter of `LlamaForCausalLM`: rotary, grouped-query attention and a gated MLP."""

    model_type: str = "llama"
    architecture: str = "LlamaForCausalLM"
    places: LayerPlaces = LayerPlaces()
    embedding: str = "model.embed_tokens.weight"
    final_norm: str = "model.norm.weight"
    head: str = "lm_head.weight"

    def layer_prefix(self, layer: int) -> str:
        """What the names of a layer's tensors begin with, dot included."""
        return f"model.layers.{layer}."

    def geometry(self, config: PreTrainedConfig) -> ModelGeometry:
        """The dense model's dimensions."""
        return ModelGeometry(
            num_hidden_layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            vocab_size=config.vocab_size,
            tie_word_embeddings=config.tie_word_embeddings,
        )

    def layer_shapes(self, config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor of one dense layer, by its name without the layer's prefix."""
        geometry, places = self.geometry(config), self.places
        hidden, width = geometry.hidden_size, geometry.intermediate_size
        queries = geometry.num_attention_heads * geometry.head_dim
        groups = geometry.num_key_value_heads * geometry.head_dim
        attention = {
            places.query: (queries, hidden),
            places.key: (groups, hidden),
            places.value: (groups, hidden),
            places.attention_output: (hidden, queries),
        }
        mlp = {
            places.gate: (width, hidden),
            places.up: (width, hidden),
            places.mlp_output: (hidden, width),
        }
        shapes: dict[str, tuple[int, ...]] = {
            f"{places.input_norm}.weight": (hidden,),
            f"{places.mlp_norm}.weight": (hidden,),
        }
        for modules, bias in ((attention, config.attention_bias), (mlp, config.mlp_bias)):
            for place, shape in modules.items():
                shapes[f"{place}.weight"] = shape
                if bias:
                    shapes[f"{place}.bias"] = shape[:1]
        return shapes

    def outer_shapes(self, config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor outside the layers; a tied head has none."""
        table = (config.vocab_size, config.hidden_size)
        shapes = {self.embedding: table, self.final_norm: (config.hidden_size,)}
        if not config.tie_word_embeddings:
            shapes[self.head] = table
        return shapes

    def expected_shapes(self, config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor the checkpoint must hold, by its full name."""
        layer = self.layer_shapes(config)
        return self.outer_shapes(config) | {
            self.layer_prefix(index) + name: shape
            for index in range(config.num_hidden_layers)
            for name, shape in layer.items()
        }

    def require_supported(self, config: PreTrainedConfig) -> None:
        """Refuse variants whose mathematics the engine does not do.

        Raises:
            UnsupportedArchitectureError: saying which setting is at fault.
        """
        for setting in ("sliding_window", "attention_chunk_size", "quantization_config"):
            if getattr(config, setting, None) is not None:
                raise UnsupportedArchitectureError(f"models with {setting} are not supported")
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        if config.head_dim % 2 or groups < 1 or heads % groups:
            raise UnsupportedArchitectureError(
                f"{heads} query heads, {groups} key/value heads and head dim {config.head_dim} "
                "do not make rotary grouped-query attention"
            )
        if (config.rope_parameters or {}).get("partial_rotary_factor", 1.0) != 1.0:
            raise UnsupportedArchitectureError("partly rotated heads are not supported")
