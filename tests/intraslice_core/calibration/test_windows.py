"""Windows that begin as the tokenizer begins a text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from intraslice_core.calibration import calibration_tokens, text_prefix, tokenise_documents
from intraslice_core.calibration.pieces import cut_documents
from intraslice_core.calibration.windows import full_windows, prefixed
from intraslice_core.config import CalibrationConfig
from intraslice_core.errors import CalibrationTooShortError

BOS, MASK, EOS = 128, 129, 130


def character_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per character and special tokens by a template."""
    special = {"<bos>": BOS, "<mask>": MASK, "<eos>": EOS}
    vocabulary = {chr(code): code for code in range(1, 128)} | {"<unk>": 0} | special
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.post_processor = TemplateProcessing(single=template, special_tokens=list(special.items()))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<bos>",
        eos_token="<eos>",
        mask_token="<mask>",
        unk_token="<unk>",
    )


WITH_BOS = character_tokenizer("<bos> $A")


@pytest.mark.parametrize(
    ("template", "prefix"),
    [
        ("$A", ()),
        ("<bos> $A", (BOS,)),
        ("<mask> <bos> $A", (MASK, BOS)),
        ("<bos> $A <eos>", (BOS,)),
        ("$A <eos>", ()),
    ],
)
def test_prefix_is_what_the_tokenizer_puts_before_a_text(template, prefix):
    assert text_prefix(character_tokenizer(template)) == prefix


@given(
    text=st.lists(st.integers(3, 60), max_size=80),
    prefix=st.lists(st.integers(0, 2), max_size=2),
    length=st.integers(3, 20),
)
def test_every_token_of_the_full_windows_is_there_once_in_order(text, prefix, length):
    tokens = torch.tensor(text, dtype=torch.int64)
    windows = full_windows(tokens, prefix, length)
    step = length - len(prefix)
    assert windows.shape == (len(text) // step, length)
    assert windows.dtype == torch.int64
    assert all(row[: len(prefix)] == prefix for row in windows.tolist())
    assert windows[:, len(prefix) :].flatten().tolist() == text[: len(text) // step * step]


def test_without_prefix_nothing_is_copied_or_changed():
    rows = torch.arange(12).view(3, 4)
    assert prefixed(rows, ()) is rows
    assert full_windows(rows.flatten(), (), 4).data_ptr() == rows.data_ptr()


def test_documents_and_rendered_chats_have_no_prefix_inside(tmp_path):
    documents = cut_documents(["ab", "<bos>cd", "x<bos>y"])
    tokens = tokenise_documents(documents, character_tokenizer("<bos> $A <eos>"), max_tokens=99)
    expected = [*map(ord, "ab"), EOS, *map(ord, "cd"), EOS, *map(ord, "xy"), EOS]
    assert tokens.tolist() == expected


def settings(path: Path, **changes: int) -> CalibrationConfig:
    values = {"samples": 4, "sequence_length": 16, "seed": 0, **changes}
    return CalibrationConfig(source=str(path), **values)


def test_every_calibration_sequence_begins_with_bos(tmp_path):
    text = "".join(chr(33 + (i * i) % 90) + f"{i:05d}" for i in range(100))
    (tmp_path / "a.txt").write_text(text)
    tokens = calibration_tokens(settings(tmp_path / "a.txt", samples=20), WITH_BOS)
    assert tokens.shape == (20, 16)
    assert bool((tokens[:, 0] == BOS).all())
    assert not bool((tokens[:, 1:] == BOS).any())
    positions = [text.index("".join(map(chr, row))) for row in tokens[:, 1:].tolist()]
    assert all(position % 15 == 0 for position in positions)
    assert len(set(positions)) == 20


def test_too_short_text_is_reported_by_the_tokens_that_it_needs(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 50)
    with pytest.raises(CalibrationTooShortError, match=r"50 tokens.*need 60.*") as error:
        calibration_tokens(settings(tmp_path / "a.txt"), WITH_BOS)
    assert "at most 3" in str(error.value.hint)
