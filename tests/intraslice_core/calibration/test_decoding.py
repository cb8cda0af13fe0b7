"""A sequence is written as if it were alone: the same tokens in any batch, for every family."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from intraslice_core import writing
from intraslice_core.calibration.decoding import Draft, write_sequences
from intraslice_core.calibration.rotary_lengths import depends_on_length, frequencies_of_length
from intraslice_core.calibration.writing_pace import WritingProgress
from intraslice_core.errors import CompressionCancelledError, NumericalError
from intraslice_core.progress import never_cancelled
from tests.intraslice_core.modeling.cutting import cut_model, cuts, cuts_without_modules
from tests.intraslice_core.modeling.dense_families import FAMILIES
from tests.intraslice_core.tiny_models import (
    FAMILY_VARIANTS,
    FORWARD_VARIANTS,
    VOCAB_SIZE,
    tiny_family_config,
    tiny_family_model,
    tiny_model,
)

GREEDY, SAMPLED = 1, 50
SEED = 5
LENGTH = 21
"""Three windows of most variants, and beyond the lengths at which rotary frequencies change."""
BY_LENGTH = ["llama_dynamic", "phi3_longrope"]


class Beginning:
    """Prompter that dictates between two and seven tokens, by the number of the sequence."""

    def __init__(self, index: int, vocabulary: int) -> None:
        self._index, self._vocabulary = index, vocabulary

    def opening(self) -> Sequence[int]:
        """Return the first tokens."""
        return [(7 * self._index + place) % self._vocabulary for place in range(2 + self._index)]

    def after(self, token: int) -> Sequence[int]:
        """Return nothing."""
        del token
        return ()


class Dictation(Beginning):
    """Prompter that also dictates three tokens after every multiple of five."""

    def after(self, token: int) -> Sequence[int]:
        """Return three tokens after a multiple of five, none after others."""
        return ((token + 1) % self._vocabulary, 3, 4) if token % 5 == 0 else ()


def drafts_of(
    lengths: Sequence[int],
    vocabulary: int = VOCAB_SIZE,
    prompter: type[Beginning] = Dictation,
) -> list[Draft]:
    return [
        Draft(
            length=length,
            seed=SEED,
            index=index,
            prompter=partial(prompter, index, vocabulary),
        )
        for index, length in enumerate(lengths)
    ]


def write(model: Any, drafts: Sequence[Draft], top_k: int = SAMPLED) -> list[list[int]]:
    rows = write_sequences(
        model,
        drafts,
        should_cancel=never_cancelled,
        on_progress=lambda _: None,
        top_k=top_k,
    )
    return [row.tolist() for row in rows]


def chosen(logits: Tensor, uniform: float, top_k: int) -> int:
    """Return the token at a point of the distribution function over the whole vocabulary."""
    least = logits.sort(descending=True).values[min(top_k, len(logits)) - 1]
    weights = torch.where(logits >= least, logits.double(), -torch.inf).softmax(-1)
    sums = weights.cumsum(-1)
    return int((sums > uniform * sums[-1]).nonzero()[0])


def written_alone(model: Any, draft: Draft, top_k: int) -> list[int]:
    """Write one sequence without a cache: each token by a pass over the whole sequence.

    The positions that are not written yet hold zeros, which no earlier position sees.
    """
    uniforms = np.random.default_rng((draft.seed, draft.index)).random(draft.length)
    prompter = draft.prompter()
    tokens, forced = [], list(prompter.opening())
    while len(tokens) < draft.length:
        if forced:
            tokens.append(forced.pop(0))
            continue
        inputs = torch.tensor([tokens + [0] * (draft.length - len(tokens))])
        with torch.no_grad():
            logits = model(input_ids=inputs, use_cache=False).logits[0, len(tokens) - 1]
        token = chosen(logits, uniforms[len(tokens)], top_k)
        tokens.append(token)
        forced += prompter.after(token)
    return tokens


@contextmanager
def passes_of(model: Any) -> Iterator[list[tuple[int, int]]]:
    """Record the shapes of the inputs of all forward passes in a block."""
    shapes: list[tuple[int, int]] = []

    def record(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        shapes.append(tuple(kwargs["input_ids"].shape))

    handle = model.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield shapes
    finally:
        handle.remove()


# -- every family -------------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [GREEDY, SAMPLED])
@pytest.mark.parametrize("variant", sorted(FAMILY_VARIANTS | FORWARD_VARIANTS))
def test_sequences_of_a_batch_are_those_written_alone(variant: str, top_k: int) -> None:
    model = tiny_family_model(variant)
    drafts = drafts_of([LENGTH] * 3)
    written = write(model, drafts, top_k)
    assert written == [written_alone(model, draft, top_k) for draft in drafts]
    assert written == [write(model, [draft], top_k)[0] for draft in drafts]


@pytest.mark.parametrize(
    "variant", ["llama", "mistral", "qwen2", "gemma3", "opt", "phi3_longrope", "smollm3_window"]
)
def test_sequences_are_those_written_alone_with_the_attention_of_loaded_models(
    variant: str,
) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_family_config(variant)).eval()
    assert model.config._attn_implementation == "sdpa"
    drafts = drafts_of([LENGTH] * 3)
    assert write(model, drafts) == [written_alone(model, draft, SAMPLED) for draft in drafts]
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("shapes", [cuts, cuts_without_modules])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_compressed_models_write_like_dense_ones(name: str, shapes: Any) -> None:
    family = FAMILIES[name]()
    model = cut_model(family, shapes(family.head_dim)).eval()
    drafts = drafts_of([LENGTH] * 3, model.config.vocab_size)
    assert write(model, drafts) == [written_alone(model, draft, SAMPLED) for draft in drafts]


def test_learned_positions_are_used_to_the_last() -> None:
    model = tiny_family_model("opt", max_position_embeddings=LENGTH)
    drafts = drafts_of([LENGTH] * 2)
    assert write(model, drafts) == [written_alone(model, draft, SAMPLED) for draft in drafts]


# -- batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["llama", "gemma3", *BY_LENGTH])
def test_text_does_not_depend_on_the_batch(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_family_model(variant)
    drafts = drafts_of([17, 24, 24, 9, 24])
    together = write(model, drafts)
    for at_once in (1, 2, 3):
        monkeypatch.setattr(writing, "CPU_SEQUENCES", at_once)
        assert write(model, drafts) == together
    monkeypatch.setattr(writing, "CPU_SEQUENCES", 128)
    assert write(model, drafts[1:]) == together[1:]


def test_every_row_works_at_every_step() -> None:
    """Sequences end with their length alone, so that the steps are those of the longest one."""
    model = tiny_model()
    with passes_of(model) as shapes:
        write(model, drafts_of([40] * 6, prompter=Beginning))
    measured, first, *steps = shapes
    assert measured == (1, 1)
    # Two tokens are dictated at the beginning of all sequences.
    assert first == (6, 2)
    assert steps == [(6, 1)] * (40 - 2 - 1)


def test_rows_of_shorter_sequences_are_given_up_when_they_end() -> None:
    model = tiny_model()
    with passes_of(model) as shapes:
        write(model, drafts_of([12, 20, 12, 20], prompter=Beginning))
    assert shapes[2:] == [(4, 1)] * (12 - 2 - 1) + [(2, 1)] * (20 - 12)


def test_tokens_that_are_dictated_to_all_rows_are_read_in_one_pass() -> None:
    model = tiny_model()
    (draft,) = drafts_of([60])
    with passes_of(model) as shapes:
        (tokens,) = write(model, [draft])
    # A sampled token and the three that follow it; the last token is not read.
    assert {read for _, read in shapes[2:]} == {1, 4}
    assert sum(read for _, read in shapes[1:]) in range(60 - 4, 60)
    assert tokens == written_alone(model, draft, SAMPLED)


def test_windows_take_more_dictated_tokens_than_they_hold() -> None:
    model = tiny_family_model("mistral")

    class Lecture(Dictation):
        """Dictation of 30 tokens, four windows, after each sampled one."""

        def after(self, token: int) -> Sequence[int]:
            """Return 30 tokens."""
            return [(token + place) % VOCAB_SIZE for place in range(30)]

    drafts = drafts_of([100] * 2, prompter=Lecture)
    for together in (drafts, drafts[:1]):
        expected = [written_alone(model, draft, SAMPLED) for draft in together]
        assert write(model, together) == expected


def test_the_cache_limits_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    token_bytes = 3 * 2 * 2 * 16 * 4
    monkeypatch.setattr(writing, "CPU_CACHE_BYTES", token_bytes * 16 * 2 + 1)
    with passes_of(model) as shapes:
        written = write(model, drafts_of([16] * 5, prompter=Beginning))
    assert [len(row) for row in written] == [16] * 5
    assert [rows for rows, tokens in shapes if tokens > 1] == [2, 2, 1]
    assert max(rows for rows, _ in shapes) == 2


def test_layers_with_a_window_keep_two_windows_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mistral's window of 7 tokens takes 14 positions, however long the sequences are."""
    model = tiny_family_model("mistral")
    window_bytes = 3 * 2 * 2 * 16 * 4 * 14
    monkeypatch.setattr(writing, "CPU_CACHE_BYTES", 3 * window_bytes)
    drafts = drafts_of([100] * 3)
    with passes_of(model) as shapes:
        written = write(model, drafts)
    assert max(rows for rows, _ in shapes) == 3
    assert written == [written_alone(model, draft, SAMPLED) for draft in drafts]


# -- rotary frequencies by length ---------------------------------------------------------------


@pytest.mark.parametrize("variant", BY_LENGTH)
def test_beginnings_have_the_frequencies_of_the_finished_sequence(variant: str) -> None:
    model = tiny_family_model(variant)
    assert depends_on_length(model)
    assert not depends_on_length(tiny_family_model("llama"))
    tokens = torch.arange(LENGTH)[None]
    beginning = tokens[:, :8]
    with torch.no_grad():
        before = model(beginning).logits
        whole = model(tokens).logits[:, :8]
        with frequencies_of_length(model, LENGTH):
            inside = model(beginning).logits
        after = tiny_family_model(variant)(beginning).logits
        restored = model(beginning).logits
    torch.testing.assert_close(inside, whole, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(before, whole, atol=1e-3)
    torch.testing.assert_close(restored, after, atol=1e-5, rtol=1e-5)


# -- errors, cancellation and progress ----------------------------------------------------------


def test_a_cancelled_model_stops_between_tokens_and_is_as_it_was() -> None:
    model = tiny_model().train()
    checks = iter([False, False, True])
    with passes_of(model) as shapes, pytest.raises(CompressionCancelledError):
        write_sequences(
            model,
            drafts_of([LENGTH] * 2),
            should_cancel=lambda: next(checks),
            on_progress=lambda _: None,
        )
    assert len(shapes) == 1 + 2
    assert model.training
    assert model.config._attn_implementation == "sdpa"


def test_logits_that_are_not_finite_are_reported() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[7] = torch.nan
    with pytest.raises(NumericalError, match="not finite"):
        write(model, drafts_of([LENGTH] * 2))


def test_progress_counts_the_tokens_of_all_sequences() -> None:
    reports: list[WritingProgress] = []
    write_sequences(
        tiny_model(),
        drafts_of([400] * 3),
        should_cancel=never_cancelled,
        on_progress=reports.append,
    )
    # The first report follows the first step: two dictated tokens and one more of each.
    assert (reports[0].tokens, reports[0].total) == (3 * 3, 1200)
    assert reports[0].counts == "9/1,200 tokens"
    counts = [report.tokens for report in reports]
    assert counts == sorted(counts)
    assert counts[-1] <= 1200
