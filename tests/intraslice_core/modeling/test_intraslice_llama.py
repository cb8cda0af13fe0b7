"""The sliced Llama against transformers' own Llama: same mathematics, other shapes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from intraslice_core.modeling import (
    IntraSliceLlamaForCausalLM,
    decode_rotary_pairs,
    encode_rotary_pairs,
    intraslice_config,
)
from intraslice_core.plan import LayerPlan
from tests.intraslice_core.tiny_models import VARIANTS, tiny_model

HEAD_DIM, PAIRS = 16, 8
KEPT_PAIRS = [[0, 2, 3, 7], [1, 2, 5, 6]]
KEPT_VALUES = [0, 3, 4, 8, 11, 15]
KEPT_NEURONS = list(range(1, 64, 2))
SCALED_ROPES = {
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 16},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "short_factor": [1.0 + 0.1 * i for i in range(PAIRS)],
        "long_factor": [2.0 + 0.3 * i for i in range(PAIRS)],
        "original_max_position_embeddings": 16,
    },
}
ALL_VARIANTS = VARIANTS | {
    name: {"rope_parameters": {"rope_theta": 10_000.0} | rope}
    for name, rope in SCALED_ROPES.items()
}
DENSE = LayerPlan(
    num_attention_heads=4,
    num_key_value_heads=2,
    qk_pairs=PAIRS,
    v_head_dim=HEAD_DIM,
    intermediate_size=64,
)
CUT = DENSE.model_copy(update={"qk_pairs": 4, "v_head_dim": 6, "intermediate_size": 32})
NO_ATTENTION = DENSE.model_copy(update={"num_attention_heads": 0, "num_key_value_heads": 0})
NO_MLP = DENSE.model_copy(update={"intermediate_size": 0})


def whole(dense: LlamaForCausalLM) -> IntraSliceLlamaForCausalLM:
    """The dense model through our classes."""
    config = dense.config
    plan = DENSE.model_copy(update={"num_key_value_heads": config.num_key_value_heads})
    pairs = [list(range(PAIRS))] * config.num_key_value_heads
    config = intraslice_config(config, [plan] * 3, [pairs] * 3)
    model = IntraSliceLlamaForCausalLM(config).eval()
    model.load_state_dict(dense.state_dict())
    return model


def empty(plans: list[LayerPlan], pairs: list[list[list[int]]], seed: int = 0):
    """A random model of these shapes."""
    torch.manual_seed(seed)
    dense = tiny_model()
    return IntraSliceLlamaForCausalLM(intraslice_config(dense.config, plans, pairs)).eval()


def irregular() -> IntraSliceLlamaForCausalLM:
    """Three layers, three shapes."""
    wide_values = CUT.model_copy(update={"v_head_dim": 12, "num_attention_heads": 2})
    one_group = DENSE.model_copy(
        update={"num_attention_heads": 2, "num_key_value_heads": 1, "qk_pairs": 4}
    )
    return empty([CUT, wide_values, one_group], [KEPT_PAIRS, KEPT_PAIRS, KEPT_PAIRS[:1]])


def tokens(batch: int = 2, length: int = 11) -> Tensor:
    return torch.randint(3, 259, (batch, length), generator=torch.Generator().manual_seed(1))


def rows_of(per_group: list[list[int]], group: int) -> Tensor:
    """Rows of a projection of `HEAD_DIM` wide heads, `group` heads a KV head."""
    heads = [kept for kept in per_group for _ in range(group)]
    return torch.tensor([head * HEAD_DIM + row for head, kept in enumerate(heads) for row in kept])


def cut_and_masked(dense: LlamaForCausalLM) -> tuple[IntraSliceLlamaForCausalLM, LlamaForCausalLM]:
    """Every layer cut by index, and the dense model with zeros where something was cut."""
    halves = [kept + [pair + PAIRS for pair in kept] for kept in KEPT_PAIRS]
    values = [KEPT_VALUES] * 2
    places = {
        "self_attn.q_proj": (rows_of(halves, 2), 0),
        "self_attn.k_proj": (rows_of(halves, 1), 0),
        "self_attn.v_proj": (rows_of(values, 1), 0),
        "self_attn.o_proj": (rows_of(values, 2), 1),
        "mlp.gate_proj": (torch.tensor(KEPT_NEURONS), 0),
        "mlp.up_proj": (torch.tensor(KEPT_NEURONS), 0),
        "mlp.down_proj": (torch.tensor(KEPT_NEURONS), 1),
    }
    sliced, masked = dict(dense.state_dict()), dict(dense.state_dict())
    for layer in range(3):
        for place, (kept, axis) in places.items():
            for kind in ("weight", "bias"):
                name = f"model.layers.{layer}.{place}.{kind}"
                if name not in sliced or (kind == "bias" and axis == 1):
                    continue
                part = sliced[name].index_select(axis, kept)
                sliced[name] = part
                masked[name] = torch.zeros_like(masked[name]).index_copy(axis, kept, part)
    model = IntraSliceLlamaForCausalLM(
        intraslice_config(dense.config, [CUT] * 3, [KEPT_PAIRS] * 3)
    ).eval()
    model.load_state_dict(sliced)
    reference = LlamaForCausalLM(dense.config).eval()
    reference.load_state_dict(masked)
    return model, reference


@pytest.mark.parametrize("variant", ALL_VARIANTS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_uncut_model_is_the_dense_model(variant: str, attention: str) -> None:
    dense = tiny_model(**ALL_VARIANTS[variant])
    model = whole(dense)
    for one in (dense, model):
        one.set_attn_implementation(attention)
    mask = torch.ones(2, 21, dtype=torch.long)
    mask[0, :6] = 0
    for given in (None, mask):
        with torch.no_grad():
            expected = dense(tokens(length=21), attention_mask=given).logits
            got = model(tokens(length=21), attention_mask=given).logits
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", [name for name in ALL_VARIANTS if name != "multi_head"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_cut_model_is_the_dense_model_with_zeros(variant: str, attention: str) -> None:
    model, reference = cut_and_masked(tiny_model(**ALL_VARIANTS[variant]))
    model.set_attn_implementation(attention)
    with torch.no_grad():
        expected, got = reference(tokens(length=21)).logits, model(tokens(length=21)).logits
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
def test_uncut_model_generates_as_the_dense_model(beams: int) -> None:
    dense = tiny_model()
    asked = {"max_new_tokens": 12, "do_sample": False, "num_beams": beams}
    mask = torch.ones(2, 11, dtype=torch.long)
    assert torch.equal(
        whole(dense).generate(tokens(), attention_mask=mask, **asked),
        dense.generate(tokens(), attention_mask=mask, **asked),
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_cached_steps_give_the_logits_of_one_pass(attention: str) -> None:
    model = irregular()
    model.set_attn_implementation(attention)
    with torch.no_grad():
        expected = model(tokens()).logits
        first = model(tokens()[:, :4], use_cache=True)
        steps, cache = [first.logits], first.past_key_values
        for position in range(4, 11):
            out = model(tokens()[:, position : position + 1], past_key_values=cache)
            steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, 1), expected, atol=1e-5, rtol=1e-5)
    assert cache.layers[0].keys.shape[-1] == 8
    assert cache.layers[0].values.shape[-1] == 6


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("shapes", ["irregular", "without_modules"])
def test_greedy_generation_with_a_cache_is_generation_without(cache: str, shapes: str) -> None:
    model = irregular() if shapes == "irregular" else without_modules()
    mask = torch.ones(2, 11, dtype=torch.long)
    asked = {"max_new_tokens": 10, "do_sample": False, "attention_mask": mask}
    without = model.generate(tokens(), use_cache=False, **asked)
    with_cache = model.generate(tokens(), cache_implementation=cache, disable_compile=True, **asked)
    assert torch.equal(with_cache, without)


def test_left_padding_changes_no_continuation() -> None:
    model = irregular()
    short = tokens(1, 7)
    padded = torch.cat((torch.full((1, 4), 2), short), dim=1)
    batch = torch.cat((padded, tokens(1, 11)))
    mask = (batch != 2).long()
    asked = {"max_new_tokens": 8, "do_sample": False}
    alone = model.generate(short, attention_mask=torch.ones_like(short), **asked)
    together = model.generate(batch, attention_mask=mask, **asked)
    assert torch.equal(together[0, 11:], alone[0, 7:])


def test_sampling_and_beams_run_on_irregular_layers() -> None:
    torch.manual_seed(0)
    model = irregular()
    mask = torch.ones(2, 11, dtype=torch.long)
    for asked in ({"do_sample": True}, {"num_beams": 3, "do_sample": False}):
        out = model.generate(
            tokens(), attention_mask=mask, max_new_tokens=5, min_new_tokens=5, **asked
        )
        assert out.shape == (2, 16)


def without_modules() -> IntraSliceLlamaForCausalLM:
    """Layer 0 has no attention, layer 1 no MLP."""
    return empty([NO_ATTENTION, NO_MLP, CUT], [[], [list(range(PAIRS))] * 2, KEPT_PAIRS])


def test_removed_modules_are_skipped() -> None:
    dense = tiny_model()
    model = without_modules()
    state = model.state_dict()
    assert not any(name.startswith("model.layers.0.self_attn") for name in state)
    assert not any(name.startswith("model.layers.1.mlp") for name in state)
    # Zero output projections make a dense module that adds nothing: the same function.
    plans = [DENSE, DENSE, CUT]
    pairs = [[list(range(PAIRS))] * 2, [list(range(PAIRS))] * 2, KEPT_PAIRS]
    reference = IntraSliceLlamaForCausalLM(intraslice_config(dense.config, plans, pairs)).eval()
    reference.load_state_dict(state, strict=False)
    with torch.no_grad():
        reference.model.layers[0].self_attn.o_proj.weight.zero_()
        reference.model.layers[1].mlp.down_proj.weight.zero_()
        torch.testing.assert_close(model(tokens()).logits, reference(tokens()).logits)


@pytest.mark.parametrize("shards", [1, 5])
def test_saved_model_loads_unchanged(tmp_path, shards: int) -> None:
    model = irregular()
    size = "10GB" if shards == 1 else "60KB"
    model.save_pretrained(tmp_path, max_shard_size=size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) is (shards > 1)
    again = IntraSliceLlamaForCausalLM.from_pretrained(tmp_path)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, again.get_buffer(name)), name
    with torch.no_grad():
        assert torch.equal(again(tokens()).logits, model(tokens()).logits)


def test_bfloat16_costs_no_more_than_it_costs_the_dense_model() -> None:
    model, reference = cut_and_masked(tiny_model())
    errors = []
    with torch.no_grad():
        exact = reference(tokens()).logits
        for one in (model, reference):
            logits = one.to(torch.bfloat16)(tokens()).logits
            assert logits.dtype == torch.bfloat16
            errors.append((logits.float() - exact).square().mean().sqrt())
    assert model.model.layers[0].self_attn.rotary_index.dtype == torch.int64
    # The same roundings in another order: the errors differ, their size does not.
    assert errors[0] < 1.5 * errors[1]


def test_gradients_reach_every_weight_with_and_without_checkpointing() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = irregular().train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model(tokens(), labels=tokens()).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradients[1][name], gradient)


def test_hidden_states_and_attentions_can_be_asked_for() -> None:
    model = irregular()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model(tokens(), output_hidden_states=True, output_attentions=True)
    assert len(out.hidden_states) == 4
    assert [a.shape[1] for a in out.attentions] == [4, 2, 2]


def test_tied_head_shares_the_embedding() -> None:
    model = irregular()
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("pairs", [[[0]], [[0, 3, 31], [1, 2, 63]], [list(range(64))] * 3])
def test_rotary_pairs_survive_their_text(pairs: list[list[int]]) -> None:
    assert decode_rotary_pairs(encode_rotary_pairs(pairs, 64)) == pairs


@pytest.mark.parametrize("pairs", [[[1, 0]], [[0, 0]], [[64]], [[-1]]])
def test_impossible_rotary_pairs_are_refused(pairs: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="ascend"):
        encode_rotary_pairs(pairs, 64)


@pytest.mark.parametrize(
    ("change", "pairs"),
    [
        ({"num_attention_heads": 3}, KEPT_PAIRS),
        ({}, KEPT_PAIRS[:1]),
        ({"qk_pairs": 5}, KEPT_PAIRS),
        ({}, []),
    ],
)
def test_contradicting_shapes_are_refused(change: dict[str, int], pairs: list) -> None:
    config = tiny_model().config
    plan = CUT.model_copy(update=change)
    with pytest.raises(Exception, match="layer 1"):
        intraslice_config(config, [CUT, plan, CUT], [KEPT_PAIRS, pairs, KEPT_PAIRS])
