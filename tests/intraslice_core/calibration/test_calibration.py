"""Calibration data: sources, windows, hashes and errors."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from intraslice_core.calibration import (
    Part,
    calibration_hash,
    calibration_tokens,
    tokenise_documents,
)
from intraslice_core.calibration.pieces import cut_documents
from intraslice_core.config import CalibrationConfig
from intraslice_core.errors import (
    CalibrationSourceError,
    CalibrationTooShortError,
    CompressionCancelledError,
)
from tests.intraslice_core.calibration.reading import load_documents

PARTS: tuple[Part, ...] = ("calibration", "evaluation")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per character and a BOS token."""
    vocabulary = {chr(code): code for code in range(1, 128)} | {"<unk>": 0, "<bos>": 128}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<bos>", unk_token="<unk>")


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=129,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=128,
    )
    return LlamaForCausalLM(config).eval()


def config(source: str | Path, **settings: int) -> CalibrationConfig:
    values = {"samples": 4, "sequence_length": 16, "seed": 0, **settings}
    return CalibrationConfig(source=str(source), **values)


def test_windows_are_distinct_pieces_of_the_text(tmp_path, tokenizer):
    text = "".join(chr(33 + (i * i) % 90) + f"{i:05d}" for i in range(100))
    (tmp_path / "a.txt").write_text(text)
    tokens = calibration_tokens(config(tmp_path / "a.txt", samples=20), tokenizer)
    assert tokens.shape == (20, 16)
    assert tokens.dtype == torch.int64
    pieces = ["".join(map(chr, row)) for row in tokens.tolist()]
    positions = [text.index(piece) for piece in pieces]
    assert all(position % 16 == 0 for position in positions)
    assert len(set(positions)) == 20


def test_seed_determines_the_windows(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("".join(f"{i:05d} " for i in range(500)))
    path = tmp_path / "a.txt"
    hashes = [
        calibration_hash(calibration_tokens(config(path, seed=s), tokenizer)) for s in (1, 1, 2)
    ]
    assert hashes[0] == hashes[1]
    assert hashes[0] != hashes[2]


def test_hash_depends_on_shape_and_content():
    tokens = torch.arange(12).view(3, 4)
    assert calibration_hash(tokens) != calibration_hash(tokens.view(4, 3))
    assert calibration_hash(tokens) != calibration_hash(tokens.flip(0))
    assert calibration_hash(tokens) == calibration_hash(tokens.T.contiguous().T)


def test_long_document_is_tokenised_as_one(tokenizer):
    document = "".join(f"line {i} of many\n" for i in range(6000))
    whole = torch.tensor(tokenizer(document, add_special_tokens=False)["input_ids"])
    assert torch.equal(
        tokenise_documents(cut_documents([document]), tokenizer, max_tokens=10**9), whole
    )


def test_special_tokens_end_each_document(tokenizer):
    from tokenizers.processors import TemplateProcessing

    inner = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    inner.post_processor = TemplateProcessing(single="$A <bos>", special_tokens=[("<bos>", 128)])
    with_end = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<bos>")
    long = "x\n" * 40_000
    tokens = tokenise_documents(
        cut_documents(["ab", long, "c"]), with_end, max_tokens=10**9
    ).tolist()
    assert tokens[:4] == [ord("a"), ord("b"), 128, ord("x")]
    assert tokens[-3:] == [128, ord("c"), 128]
    assert tokens.count(128) == 3


def test_too_short_text_is_reported_with_available_and_needed_tokens(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("x" * 50)
    with pytest.raises(CalibrationTooShortError, match=r"50 tokens.*need 64.*at most 3"):
        calibration_tokens(config(tmp_path / "a.txt"), tokenizer)


@pytest.mark.parametrize("packed", [False, True])
def test_json_lines_contain_texts_or_chats(tmp_path, packed):
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    lines = f"{json.dumps({'text': 'one'})}\n\n{json.dumps({'messages': chat})}\n"
    path = tmp_path / ("a.jsonl.gz" if packed else "a.jsonl")
    path.write_bytes(gzip.compress(lines.encode()) if packed else lines.encode())
    assert load_documents(str(path), part="calibration") == ["one", "user: Hi\n\nassistant: Ho"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\xff\xfe\x00", "not UTF-8 text"),
        ("a.txt", b"a\n\0b", "line 2.*NUL"),
        ("a.txt", b" \n ", "contains no text"),
        ("a.txt.gz", b"not gzip", "cannot be read"),
        ("a.txt.gz", gzip.compress(b"x" * 9999, mtime=0)[:-20], "cannot be read"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 3}', "line 2"),
        ("a.jsonl", b"{", "line 1"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}', "line 1"),
    ],
)
def test_broken_file_is_named_with_the_reason(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CalibrationSourceError, match=message) as caught:
        load_documents(str(tmp_path / name), part="calibration")
    assert caught.value.field == "calibration.source"


@pytest.mark.parametrize("source", ["wikitext", "s3://bucket/key", "notes.pdf", ""])
def test_unknown_source_lists_the_valid_ones(source):
    with pytest.raises(CalibrationSourceError, match="pydoc; pycode; self; chat; web; hub:"):
        load_documents(source, part="calibration")


@pytest.mark.parametrize("source", ["self", "chat"])
def test_generated_text_cannot_be_loaded(source):
    with pytest.raises(CalibrationSourceError, match=f"`{source}` is generated by the dense model"):
        load_documents(source, part="evaluation")


def test_missing_file_is_an_error(tmp_path):
    with pytest.raises(CalibrationSourceError, match="does not exist or is not a file"):
        load_documents(str(tmp_path / "none.txt"), part="evaluation")


def paragraphs(source: str, part: Part) -> set[str]:
    """Return the long paragraphs, ignoring indentation."""
    texts = "\n\n".join(load_documents(source, part=part)).split("\n\n")
    return {key for key in (" ".join(text.split()) for text in texts) if len(key) >= 40}


def test_python_calibration_text_contains_no_held_out_paragraph():
    """Check both sources against each other, because a mixture may contain both."""
    for held_out in ("pydoc", "pycode"):
        held_out_paragraphs = paragraphs(held_out, "evaluation")
        assert sum(map(len, held_out_paragraphs)) > 40_000
        for source in ("pydoc", "pycode"):
            calibration = paragraphs(source, "calibration")
            assert sum(map(len, calibration)) > 1_000_000
            assert not calibration & held_out_paragraphs


def test_python_code_is_code_of_many_modules_without_tests():
    calibration, evaluation = (load_documents("pycode", part=part) for part in PARTS)
    assert len(calibration) > 5 * len(evaluation) > 100
    assert sum("def " in module for module in calibration) > len(calibration) / 2
    assert not any("class TestCase" in module for module in evaluation)
    assert max(map(len, evaluation)) <= 6000
    assert load_documents("pycode", part="evaluation") == evaluation


def test_hub_failure_is_reported(monkeypatch):
    import datasets

    def fail(*arguments: object, **settings: object) -> None:
        raise ConnectionError("403")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        CalibrationSourceError, match=r"some/data .*403.*use pydoc, pycode, self, chat or a file"
    ):
        load_documents("hub:some/data:config@train", part="calibration")


def test_hub_reference_names_data_set_configuration_and_split(monkeypatch):
    import datasets

    requests = []

    def answer(*arguments: object, **settings: object) -> list[dict[str, str]]:
        requests.append((*arguments, settings["split"]))
        return [{"text": "hello"}]

    monkeypatch.setattr(datasets, "load_dataset", answer)
    assert load_documents("hub:org/data:small@dev", part="calibration") == ["hello"]
    load_documents("hub:org/data", part="calibration")
    load_documents("hub:org/data", part="evaluation")
    assert requests == [
        ("org/data", "small", "dev"),
        ("org/data", None, "train"),
        ("org/data", None, "test"),
    ]


def test_generated_text_is_repeatable(model, tokenizer):
    settings = config("self", samples=40, sequence_length=20, seed=7)
    first = calibration_tokens(settings, tokenizer, model=model)
    again = calibration_tokens(settings, tokenizer, model=lambda: model)
    other = calibration_tokens(
        config("self", samples=40, sequence_length=20), tokenizer, model=model
    )
    assert first.shape == (40, 20)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (first[:, 0] == 128).all()
    assert len({tuple(row) for row in first.tolist()}) == 40


def test_generated_tokens_are_among_the_likeliest(model, tokenizer):
    tokens = calibration_tokens(config("self"), tokenizer, model=model)
    with torch.no_grad():
        logits = model(tokens).logits[:, :-1]
    sampled = logits.gather(-1, tokens[:, 1:, None])
    assert ((logits > sampled + 1e-4).sum(-1) < 50).all()


def test_generated_text_needs_a_model(tokenizer):
    with pytest.raises(CalibrationSourceError, match="need the model"):
        calibration_tokens(config("self"), tokenizer)


def test_generation_can_be_cancelled(model, tokenizer):
    with pytest.raises(CompressionCancelledError):
        calibration_tokens(config("self"), tokenizer, model=model, should_cancel=lambda: True)


def test_reading_of_a_decompression_bomb_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("intraslice_core.calibration.text_files.MAX_FILE_BYTES", 10**6)
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n' + b"\n" * 10**7))
    assert load_documents(str(path), part="calibration") == ["a"]
