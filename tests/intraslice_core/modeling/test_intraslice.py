"""Sliced models support the interface of transformers and reject contradicting settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from intraslice_core.modeling import (
    IntraSliceConfig,
    IntraSliceForCausalLM,
    decode_rotary_pairs,
    encode_rotary_pairs,
    intraslice_config,
)
from tests.intraslice_core.modeling.cutting import (
    Cut,
    cut_and_masked,
    cut_model,
    cuts,
    cuts_without_modules,
)
from tests.intraslice_core.modeling.dense_families import (
    FAMILIES,
    canonical_settings,
    dense_model,
    tokens,
    whole_model,
)
from tests.intraslice_core.modeling.layer_norm_families import LAYER_NORM_FAMILIES


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_left_padding_does_not_change_continuations(name: str) -> None:
    model = cut_model(FAMILIES[name]())
    short = tokens(1, 7)
    padded = torch.cat((torch.full((1, 4), 2), short), dim=1)
    batch = torch.cat((padded, tokens(1, 11)))
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    alone = model.generate(short, attention_mask=torch.ones_like(short), **options)
    together = model.generate(batch, attention_mask=(batch != 2).long(), **options)
    assert torch.equal(together[0, 11:], alone[0, 7:])


@pytest.mark.parametrize("name", ["llama", "phi", "gemma3"])
def test_sampling_and_beams_run_on_irregular_layers(name: str) -> None:
    torch.manual_seed(0)
    model = cut_model(FAMILIES[name]())
    inputs = tokens(length=11)
    mask = torch.ones_like(inputs)
    for options in ({"do_sample": True}, {"num_beams": 3, "do_sample": False}):
        out = model.generate(
            inputs, attention_mask=mask, max_new_tokens=5, min_new_tokens=5, **options
        )
        assert out.shape == (2, 16)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_unsliced_model_searches_beams_as_the_dense_model(name: str) -> None:
    family = FAMILIES[name]()
    dense = dense_model(family)
    inputs = tokens(length=11)
    options = {"max_new_tokens": 8, "num_beams": 3, "attention_mask": torch.ones_like(inputs)}
    assert torch.equal(
        whole_model(family, dense).generate(inputs, do_sample=False, **options),
        dense.generate(inputs, do_sample=False, **options),
    )


@pytest.mark.parametrize("shards", [1, 5])
@pytest.mark.parametrize("name", ["phi4_mini", "gemma2", "gemma3"])
def test_saved_model_loads_unchanged(tmp_path: Path, name: str, shards: int) -> None:
    model = cut_model(FAMILIES[name]())
    model.save_pretrained(tmp_path, max_shard_size="10GB" if shards == 1 else "10KB")
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) is (shards > 1)
    again = IntraSliceForCausalLM.from_pretrained(tmp_path)
    for buffer, value in model.named_buffers():
        assert torch.equal(value, again.get_buffer(buffer)), buffer
    with torch.no_grad():
        assert torch.equal(again(tokens()).logits, model(tokens()).logits)


@pytest.mark.parametrize("name", [*FAMILIES, "cohere2", "nemotron"])
def test_new_model_starts_with_identity_norms(name: str) -> None:
    family = (FAMILIES | LAYER_NORM_FAMILIES)[name]()
    config = cut_model(family).config
    model = IntraSliceForCausalLM(config)
    neutral = 0.0 if config.norm_type.endswith("_plus_one") else 1.0
    norms = {n: p for n, p in model.named_parameters() if "norm" in n and n.endswith("weight")}
    assert len(norms) >= 4
    for norm, weight in norms.items():
        assert torch.equal(weight, torch.full_like(weight, neutral)), norm


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_bfloat16_error_is_that_of_the_full_size_model(name: str) -> None:
    family = FAMILIES[name]()
    model, masked = cut_and_masked(family, cuts(family.head_dim))
    errors = []
    with torch.no_grad():
        exact = masked(tokens()).logits
        for candidate in (model, masked):
            logits = candidate.to(torch.bfloat16)(tokens()).logits
            assert logits.dtype == torch.bfloat16
            errors.append((logits.float() - exact).square().mean().sqrt())
    assert model.model.layers[0].self_attn.rotary_index.dtype == torch.int64
    # The same roundings in another order: the errors differ, but not in size.
    assert errors[0] < 1.5 * errors[1]


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_reach_every_weight_with_and_without_checkpointing(name: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = cut_model(FAMILIES[name]()).train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model(tokens(), labels=tokens()).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for parameter, gradient in gradients[0].items():
        assert gradient is not None, parameter
        torch.testing.assert_close(gradients[1][parameter], gradient)


def test_loss_matches_transformers() -> None:
    family = FAMILIES["gemma2"]()
    dense = dense_model(family)
    with torch.no_grad():
        expected = dense(tokens(), labels=tokens()).loss
        actual = whole_model(family, dense)(tokens(), labels=tokens()).loss
    torch.testing.assert_close(actual, expected)


def test_hidden_states_and_attentions_are_returned_on_request() -> None:
    model = cut_model(FAMILIES["llama"]())
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model(tokens(), output_hidden_states=True, output_attentions=True)
    assert len(out.hidden_states) == 4
    assert [a.shape[1] for a in out.attentions] == [4, 2, 2]


def test_logits_can_be_limited_to_the_last_positions() -> None:
    model = cut_model(FAMILIES["phi"]())
    with torch.no_grad():
        whole = model(tokens()).logits
        torch.testing.assert_close(model(tokens(), logits_to_keep=3).logits, whole[:, -3:])
        selected = model(tokens(), logits_to_keep=torch.tensor([0, 5])).logits
        torch.testing.assert_close(selected, whole[:, [0, 5]])


def test_embeddings_can_replace_tokens() -> None:
    model = cut_model(FAMILIES["gemma3"]())
    with torch.no_grad():
        embedded = model.get_input_embeddings()(tokens())
        assert torch.equal(model(inputs_embeds=embedded).logits, model(tokens()).logits)
    with pytest.raises(ValueError, match="exactly one"):
        model(tokens(), inputs_embeds=embedded)


@pytest.mark.parametrize(("name", "tied"), [("mistral", True), ("phi", False)])
def test_tied_head_shares_the_embedding(name: str, tied: bool) -> None:
    model = cut_model(FAMILIES[name]())
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied


def test_softcapped_scores_use_eager_attention_and_reject_sdpa(tmp_path: Path) -> None:
    model = cut_model(FAMILIES["gemma2"]())
    assert model.config._attn_implementation == "eager"
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="attn_logit_softcapping"):
        IntraSliceForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa")
    assert cut_model(FAMILIES["llama"]()).config._attn_implementation == "sdpa"


def test_one_rotary_setting_makes_one_table() -> None:
    assert len(cut_model(FAMILIES["qwen2"]()).model.rotary_emb) == 1
    assert len(cut_model(FAMILIES["gemma3"]()).model.rotary_emb) == 2


def test_a_layer_type_without_attention_keeps_its_rotary_settings(tmp_path: Path) -> None:
    family = FAMILIES["gemma3"]()
    layers = [*cuts(family.head_dim)[:2], cuts_without_modules(family.head_dim)[0]]
    model = cut_model(family, layers)  # the only layer with full attention lost it
    model.save_pretrained(tmp_path)
    again = IntraSliceForCausalLM.from_pretrained(tmp_path)
    assert again.config.rope_parameters == family.config.rope_parameters
    with torch.no_grad():
        assert torch.equal(again(tokens()).logits, model(tokens()).logits)


@pytest.mark.parametrize("pairs", [[[0]], [[0, 3, 31], [1, 2, 63]], [list(range(64))] * 3])
def test_rotary_pairs_are_decoded_as_encoded(pairs: list[list[int]]) -> None:
    assert decode_rotary_pairs(encode_rotary_pairs(pairs, 64)) == pairs


@pytest.mark.parametrize("pairs", [[[1, 0]], [[0, 0]], [[64]], [[-1]]])
def test_impossible_rotary_pairs_are_rejected(pairs: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="ascend"):
        encode_rotary_pairs(pairs, 64)


@pytest.mark.parametrize(
    ("change", "pairs"),
    [
        ({"num_attention_heads": 3}, ((0, 2, 4), (0, 1, 3))),
        ({}, ((0, 2, 4),)),
        ({"qk_head_dim": 10}, ((0, 2, 4), (0, 1, 3))),
        ({"v_head_dim": -1}, ((0, 2, 4), (0, 1, 3))),
        ({}, ()),
    ],
)
def test_contradicting_shapes_are_rejected(change: dict[str, int], pairs: Any) -> None:
    family = FAMILIES["llama"]()
    good: Cut = cuts(family.head_dim)[0]
    shapes = [good.shape, replace(good.shape, **change), good.shape]
    with pytest.raises(Exception, match="layer 1"):
        intraslice_config(canonical_settings(family), shapes, [good.pairs, pairs, good.pairs])


def test_parts_of_a_sliced_residual_stream_are_rejected() -> None:
    widths = {"attention_input_size": 8, "mlp_input_size": 8, "output_size": 16}
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    settings: dict[str, Any] = {**sizes, "residual_shortcuts": True}
    assert IntraSliceConfig(**settings, per_layer_config={0: widths}).residual_shortcuts
    with pytest.raises(Exception, match="residual_shortcuts exclude attention_reads"):
        IntraSliceConfig(**settings, per_layer_config={0: {**widths, "mlp_reads": "ff"}})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps"),
        ({"norm_type": "batch"}, "norm_type"),
        ({"norm_type": "layer", "qk_norm": True}, "qk_norm"),
        ({"parallel_block": True, "output_norms": True}, "parallel_block"),
        ({"norm_type": "layer_plus_one", "output_norms": True}, "output_norms"),
        ({"separate_mlp_norm": True}, "separate_mlp_norm"),
        ({"layer_types": ("sliding_attention",) * 3}, "sliding_window"),
        ({"head_dim": 13}, "head_dim"),
    ],
)
def test_impossible_settings_are_rejected_by_name(change: dict[str, Any], complaint: str) -> None:
    family = FAMILIES["llama"]()
    good = cuts(family.head_dim)[0]
    with pytest.raises(Exception, match=complaint):
        intraslice_config(canonical_settings(family) | change, [good.shape] * 3, [good.pairs] * 3)


def test_building_does_not_modify_its_arguments() -> None:
    family = FAMILIES["gemma3"]()
    settings = canonical_settings(family) | {"layer_types": tuple(family.settings["layer_types"])}
    settings["rope_parameters"] = {"rope_theta": 5.0}
    good = cuts(family.head_dim)[0]
    config = intraslice_config(settings, [good.shape] * 3, [good.pairs] * 3)
    assert settings["rope_parameters"] == {"rope_theta": 5.0}
    assert config.rope_parameters == {"rope_theta": 5.0, "rope_type": "default"}
    assert isinstance(config, IntraSliceConfig)
