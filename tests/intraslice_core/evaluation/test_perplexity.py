"""Perplexity compared with its definition, token by token."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from intraslice_core.errors import (
    CalibrationTooShortError,
    CompressionCancelledError,
    NumericalError,
)
from intraslice_core.evaluation import perplexity as module
from intraslice_core.evaluation.perplexity import perplexity
from tests.intraslice_core.tiny_models import tiny_family_model


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config).eval()


def tokens(count: int) -> torch.Tensor:
    return torch.randint(61, (count,), generator=torch.Generator().manual_seed(1))


def by_definition(model: LlamaForCausalLM, text: torch.Tensor, window: int) -> tuple[float, int]:
    """Sum -log p(token | prefix in its window), with one forward pass and softmax per token."""
    total, scored = 0.0, 0
    for start in range(0, len(text), window):
        part = text[start : start + window]
        for end in range(1, len(part)):
            with torch.no_grad():
                logits = model(part[:end].unsqueeze(0)).logits[0, -1].double()
            total -= math.log(torch.softmax(logits, -1)[part[end]].item())
            scored += 1
    return total, scored


@pytest.mark.parametrize(
    ("count", "window", "batch"), [(64, 16, 4), (64, 16, 3), (71, 16, 2), (65, 16, 4), (9, 16, 4)]
)
def test_equals_naive_softmax_of_every_token(model, count, window, batch, monkeypatch):
    monkeypatch.setattr(module, "_LOGIT_ROWS", 7)
    text = tokens(count)
    total, scored = by_definition(model, text, window)
    result = perplexity(model, text, context_length=window, batch_size=batch)
    assert result.tokens_scored == scored
    assert result.mean_nll == pytest.approx(total / scored, rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(total / scored), rel=1e-4)


@pytest.mark.parametrize("variant", ["gemma2", "gemma3", "phi", "granite", "cohere2"])
def test_output_heads_with_soft_cap_scale_or_bias_are_applied(variant: str) -> None:
    # Gemma models cap their logits, Granite and Cohere scale them, Phi's head has a bias.
    family = tiny_family_model(variant)
    text = tokens(40)
    total, scored = by_definition(family, text, 20)
    result = perplexity(family, text, context_length=20, batch_size=2)
    assert result.mean_nll == pytest.approx(total / scored, rel=1e-5)


def test_the_perplexity_of_a_uniform_model_is_the_vocabulary_size(model):
    torch.nn.init.zeros_(model.lm_head.weight)
    result = perplexity(model, tokens(100), context_length=32, batch_size=2)
    assert result.perplexity == pytest.approx(61.0, rel=1e-6)


def test_progress_rises_to_one_and_mode_is_restored(model):
    model.train()
    fractions: list[float] = []
    perplexity(model, tokens(70), context_length=16, batch_size=2, on_progress=fractions.append)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert model.training


def test_can_be_cancelled(model):
    with pytest.raises(CompressionCancelledError):
        perplexity(model, tokens(64), context_length=16, batch_size=2, should_cancel=lambda: True)


def test_a_single_token_has_no_perplexity(model):
    with pytest.raises(CalibrationTooShortError):
        perplexity(model, tokens(1), context_length=16, batch_size=2)


def test_broken_weights_are_an_error_not_a_number(model):
    model.lm_head.weight.data[0, 0] = float("nan")
    with pytest.raises(NumericalError):
        perplexity(model, tokens(64), context_length=16, batch_size=2)
