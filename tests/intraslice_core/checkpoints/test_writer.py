"""The writer is atomic, and its checkpoints load with standard libraries."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, utils
from transformers.utils import hub

from intraslice_core.checkpoints import writer
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.checkpoints.writer import CheckpointWriter, ensure_disk_space
from intraslice_core.errors import (
    CompressionCancelledError,
    InsufficientDiskError,
    OutputExistsError,
)
from intraslice_core.files import require_free_output
from tests.intraslice_core.tiny_models import tiny_llama, tiny_model


def write(out: Path, source: Path, **settings: object) -> None:
    model = tiny_model()
    with CheckpointWriter(out, **settings) as writer:
        for name, parameter in model.named_parameters():
            writer.add({name: parameter})
        writer.finish(model.config, source)


@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 60_000, 1])
def test_written_checkpoint_is_the_model(tmp_path: Path, shard_bytes: int) -> None:
    source, out = tiny_llama(tmp_path / "dense"), tmp_path / "out"
    write(out, source, max_shard_bytes=shard_bytes)
    files = sorted(out.glob("*.safetensors"))
    assert (len(files) == 1) is (shard_bytes == 5_000_000_000)
    if shard_bytes == 60_000:
        assert all(sum(t.nbytes for t in load_file(f).values()) <= 60_000 for f in files)
    loaded = AutoModelForCausalLM.from_pretrained(out)
    for name, parameter in tiny_model().named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter)
    with CheckpointReader(out) as reader:
        assert reader.bytes_total == 4 * loaded.num_parameters()
    assert AutoTokenizer.from_pretrained(out)("ab")["input_ids"]
    assert (out / "generation_config.json").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dense", "out"]


@pytest.mark.parametrize("tight", [True, False])
def test_header_may_be_tight_or_reserved(
    tmp_path: Path, tight: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "TIGHT_BELOW_BYTES", 10**9 if tight else 0)
    source = tiny_llama(tmp_path / "dense")
    write(tmp_path / "out", source)
    file = tmp_path / "out" / "model.safetensors"
    data = 4 * tiny_model().num_parameters()
    assert (file.stat().st_size - data < 8192) is tight
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}
        assert torch.equal(opened.get_tensor("model.norm.weight"), torch.ones(48))


def test_full_header_begins_a_new_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "RESERVED_HEADER_BYTES", 2048)
    write(tmp_path / "out", tiny_llama(tmp_path / "dense"))
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_dtype_of_the_writer_is_stored(tmp_path: Path) -> None:
    write(tmp_path / "out", tiny_llama(tmp_path / "dense"), dtype=torch.bfloat16)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert loaded.dtype == torch.bfloat16


@pytest.mark.parametrize("error", [RuntimeError, CompressionCancelledError, KeyboardInterrupt])
def test_interrupted_writer_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def interrupted() -> None:
        with CheckpointWriter(tmp_path / "out") as writer:
            writer.add({"a": torch.ones(3)})
            raise error("stop")

    with pytest.raises(error):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_unfinished_writer_leaves_nothing(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "out") as writer:
        writer.add({"a": torch.ones(3)})
    assert list(tmp_path.iterdir()) == []


def test_existing_output_is_rejected_and_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    require_free_output(out)
    (out / "mine").write_text("precious")
    with pytest.raises(OutputExistsError):
        CheckpointWriter(out)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (out / "mine").read_text() == "precious"


def test_output_created_in_the_meantime_is_kept(tmp_path: Path) -> None:
    out, source = tmp_path / "out", tiny_llama(tmp_path / "dense")
    with CheckpointWriter(out) as writer:
        writer.add({"a": torch.ones(3)})
        out.mkdir()
        (out / "theirs").touch()
        with pytest.raises(OutputExistsError):
            writer.finish(tiny_model().config, source)
    assert [p.name for p in out.iterdir()] == ["theirs"]


def test_tensor_written_twice_is_rejected(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "out") as writer:
        writer.add({"a": torch.ones(3)})
        with pytest.raises(ValueError, match="before"):
            writer.add({"a": torch.ones(3)})


def test_non_contiguous_and_empty_tensors_are_stored_as_they_read(tmp_path: Path) -> None:
    tensor = torch.arange(12.0).view(3, 4).T
    with CheckpointWriter(tmp_path / "out") as writer:
        writer.add({"a": tensor, "b": torch.ones(0, 4)})
        writer.finish(tiny_model().config, tiny_llama(tmp_path / "dense"))
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(stored["a"], tensor)
    assert stored["b"].shape == (0, 4)


def test_too_little_disk_space_is_reported_before_writing(tmp_path: Path) -> None:
    ensure_disk_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(InsufficientDiskError, match="free"):
        ensure_disk_space(tmp_path / "not" / "yet", 10**18)


def test_code_of_the_dense_checkpoint_is_not_copied(tmp_path: Path) -> None:
    source, out = tiny_llama(tmp_path / "dense"), tmp_path / "out"
    (source / "tokenizer_evil.py").write_text("raise SystemExit")
    (source / "chat_template_evil.py").write_text("raise SystemExit")
    for name, key in (
        ("tokenizer_config.json", "auto_map"),
        ("generation_config.json", "custom_generate"),
    ):
        settings = json.loads((source / name).read_text())
        settings[key] = {"AutoTokenizer": ["stranger/code--tokenizer_evil.Tokenizer", None]}
        (source / name).write_text(json.dumps(settings))
    write(out, source)
    assert not list(out.glob("*.py"))
    for file in out.glob("*.json"):
        assert "stranger" not in file.read_text(), file
    tokenizer = AutoTokenizer.from_pretrained(out, trust_remote_code=True)
    assert tokenizer("abc")["input_ids"]


def vocabulary_names() -> set[str]:
    """Return the file names that the tokenizer classes of transformers read, from their code."""
    package = Path(transformers.__file__).parent
    names = set()
    for module in package.glob("models/*/tokenization*.py"):
        for table in re.findall(r"VOCAB_FILES_NAMES = \{(.*?)\}", module.read_text(), re.DOTALL):
            names |= set(re.findall(r'": "([^"]+)"', table))
    return names


def test_everything_that_tokenizers_and_processors_read_travels_along(tmp_path: Path) -> None:
    source, out = tiny_llama(tmp_path / "dense"), tmp_path / "out"
    present = {path.name for path in source.iterdir()}
    names = {
        *vocabulary_names(),
        *(utils.IMAGE_PROCESSOR_NAME, utils.VIDEO_PROCESSOR_NAME, utils.AUDIO_TOKENIZER_NAME),
        *(
            utils.PROCESSOR_NAME,
            utils.GENERATION_CONFIG_NAME,
            hub.LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE,
        ),
        *(hub.CHAT_TEMPLATE_FILE, f"{hub.CHAT_TEMPLATE_DIR}/rag.jinja"),
        *("tekken.json", "qwen.tiktoken", "added_tokens.json", "LICENSE", "NOTICE"),
    }
    assert {"spiece.model", "merges.txt", "source.spm", "vocab-src.json"} <= names
    (source / hub.CHAT_TEMPLATE_DIR).mkdir()
    for name in names - present:
        content = "{}" if name.endswith(".json") else f"{{# {name} #}}"
        (source / name).write_text(content)
    write(out, source)
    for name in names:
        assert (out / name).read_bytes() == (source / name).read_bytes(), name


def test_named_chat_templates_are_those_of_the_dense_model(tmp_path: Path) -> None:
    source, out = tiny_llama(tmp_path / "dense"), tmp_path / "out"
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = {"default": "plain", "rag": "with documents", "tool_use": "calls"}
    tokenizer.save_pretrained(source)
    assert list((source / "additional_chat_templates").glob("*.jinja"))
    write(out, source)
    assert AutoTokenizer.from_pretrained(out).chat_template == tokenizer.chat_template
