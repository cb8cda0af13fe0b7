"""Perplexity compared with its definition, token by token."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from intraslice_core.calibration import text_prefix
from intraslice_core.errors import (
    CalibrationTooShortError,
    CompressionCancelledError,
    NumericalError,
)
from intraslice_core.evaluation import perplexity as module
from intraslice_core.evaluation.perplexity import perplexity
from tests.intraslice_core.tiny_models import tiny_family_model, tiny_model, tiny_tokenizer


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


def by_definition(
    model: LlamaForCausalLM, text: torch.Tensor, window: int, prefix: tuple[int, ...] = ()
) -> tuple[float, int]:
    """Sum -log p(token | all before it in its window), by one forward pass and softmax per token.

    Nothing predicts the first token of a window; tokens of the prefix are not scored.
    """
    total, scored = 0.0, 0
    step = window - len(prefix)
    for start in range(0, len(text), step):
        part = torch.cat((torch.tensor(prefix, dtype=torch.int64), text[start : start + step]))
        for end in range(max(len(prefix), 1), len(part)):
            with torch.no_grad():
                logits = model(part[:end].unsqueeze(0)).logits[0, -1].double()
            total -= math.log(torch.softmax(logits, -1)[part[end]].item())
            scored += 1
    return total, scored


@pytest.mark.parametrize(
    ("count", "window", "batch"), [(64, 16, 4), (64, 16, 3), (71, 16, 2), (65, 16, 4), (9, 16, 4)]
)
def test_equals_naive_softmax_of_every_token(model, count, window, batch, monkeypatch):
    monkeypatch.setattr(module, "EVALUATION_LOGITS", 7 * 61)
    text = tokens(count)
    total, scored = by_definition(model, text, window)
    result = perplexity(model, text, context_length=window, batch_size=batch)
    assert result.tokens_scored == scored
    assert result.mean_nll == pytest.approx(total / scored, rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(total / scored), rel=1e-4)


@pytest.mark.parametrize("prefix", [(7,), (7, 8)])
@pytest.mark.parametrize("count", [28, 29, 35, 1])
def test_with_a_prefix_every_token_of_the_text_is_scored_once(model, count, prefix):
    text = tokens(count)
    total, scored = by_definition(model, text, 16, prefix)
    result = perplexity(model, text, context_length=16, batch_size=2, prefix=prefix)
    assert result.tokens_scored == scored == count
    assert result.mean_nll == pytest.approx(total / scored, rel=1e-5)


def test_every_window_begins_with_the_prefix_and_holds_at_most_the_context_length(model):
    windows: list[list[int]] = []
    embedding = model.get_input_embeddings()
    handle = embedding.register_forward_pre_hook(
        lambda _, inputs: windows.extend(inputs[0].tolist())
    )
    perplexity(model, tokens(40), context_length=16, batch_size=2, prefix=(7, 8))
    handle.remove()
    assert [window[:2] for window in windows] == [[7, 8]] * 3
    assert [len(window) for window in windows] == [16, 16, 14]
    assert [token for window in windows for token in window[2:]] == tokens(40).tolist()


def test_a_window_has_the_loss_that_lm_evaluation_harness_gives_it():
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model, text = tiny_model(), "A text of one window, to the last character."
    plain, with_bos = tiny_tokenizer(), tiny_tokenizer(adds_bos=True)
    # The harness itself puts the BOS token before the first window of a text.
    harness = HFLM(pretrained=model, tokenizer=plain, batch_size=1)
    request = Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0)
    (expected,) = harness.loglikelihood_rolling([request], disable_tqdm=True)
    prefix = text_prefix(with_bos)
    assert prefix == (harness.prefix_token_id,)
    ids = torch.tensor(plain(text)["input_ids"])
    result = perplexity(model, ids, context_length=len(ids) + 1, batch_size=1, prefix=prefix)
    assert result.mean_nll * len(ids) == pytest.approx(-expected, rel=1e-5)


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
