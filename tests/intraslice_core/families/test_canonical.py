"""The canonical decoder layer computes the same as transformers' model of every family."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from intraslice_core import attention_kernels, decoder_layer
from intraslice_core.families.adapter import family_for
from intraslice_core.families.canonical import (
    EMBEDDING,
    POSITIONS,
    embedded,
    layer_settings,
    layer_weights,
    rotary_tables,
)
from tests.intraslice_core.tiny_models import FAMILY_VARIANTS, FORWARD_VARIANTS, tiny_family_model

CPU = torch.device("cpu")
LENGTH = 23
"""Sequence length above every window and every length at which rotary frequencies change."""


@pytest.mark.parametrize("variant", FAMILY_VARIANTS | FORWARD_VARIANTS)
def test_canonical_forward_pass_gives_the_models_hidden_states(variant: str) -> None:
    model = tiny_family_model(variant)
    family = family_for(model.config)
    settings = family.canonical_settings(model.config)
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    tokens = torch.randint(3, 259, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    outer = {name: tensors[dense] for name, dense in family.outer_names(model.config).items()}
    with torch.no_grad():
        expected = model(tokens, output_hidden_states=True)
        hidden = embedded(settings, outer[EMBEDDING][tokens], outer.get(POSITIONS))
        for layer in range(settings["num_hidden_layers"]):
            torch.testing.assert_close(hidden, expected.hidden_states[layer], rtol=0, atol=1e-4)
            prefix = family.layer_prefix(layer)
            dense = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            canonical = family.canonical_layer(model.config, layer, dense)
            weights = layer_weights(canonical, settings["num_key_value_heads"], CPU, torch.float32)
            rotary = rotary_tables(settings, layer, LENGTH, CPU)
            hidden = decoder_layer.forward(hidden, weights, layer_settings(settings, layer), rotary)
        norm = decoder_layer.Norm(
            weight=outer["model.norm.weight"], bias=outer.get("model.norm.bias")
        )
        last = decoder_layer.apply_norm(hidden, norm, layer_settings(settings, 0))
        torch.testing.assert_close(last, expected.hidden_states[-1], rtol=0, atol=1e-4)
        head = outer.get("lm_head.weight", outer[EMBEDDING])
        logits = F.linear(last, head, outer.get("lm_head.bias")) * settings["logit_scale"]
        cap = settings["final_logit_softcapping"]
        logits = logits if cap is None else cap * torch.tanh(logits / cap)
        torch.testing.assert_close(logits, expected.logits, rtol=0, atol=1e-4)


def test_capped_scores_do_not_depend_on_how_many_heads_are_taken_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_family_model("gemma2")
    family = family_for(model.config)
    settings = layer_settings(family.canonical_settings(model.config), 0)
    settings = replace(settings, attn_logit_softcapping=2.0)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, 4, 9, 8, generator=generator) for _ in range(3))
    whole = attention_kernels.softcapped(query, key, value, settings)
    monkeypatch.setattr(attention_kernels, "SCORES_AT_ONCE", 2 * 9**2)
    parts = attention_kernels.softcapped(query, key, value, settings)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)
