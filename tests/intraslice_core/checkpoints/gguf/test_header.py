"""GGUF headers are read only if their counts, lengths and offsets fit the file."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path

import pytest
from gguf import GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from hypothesis import HealthCheck, given
from hypothesis import settings as limits
from hypothesis import strategies as st

from intraslice_core.checkpoints.gguf.description import describe_header
from intraslice_core.checkpoints.gguf.header import BLOCKS, GgufArray, read_array, read_header
from intraslice_core.checkpoints.gguf.tokenizer import build_tokenizer, special_tokens
from intraslice_core.checkpoints.gguf.vocabulary import read_vocabulary
from intraslice_core.errors import BrokenCheckpointError, IntraSliceError
from tests.intraslice_core.checkpoints.gguf.files import tiny, write_gguf

STRING, ARRAY, U8, U32 = 8, 9, 0, 4


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def setting(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(*dimensions: int, offset: int = 0, kind: int = 0) -> bytes:
    shape = struct.pack(f"<{len(dimensions)}Q", *dimensions)
    place = struct.pack("<IQ", kind, offset)
    return text(b"t") + struct.pack("<I", len(dimensions)) + shape + place


def header(*, settings: tuple[bytes, ...] = (), tensors: tuple[bytes, ...] = ()) -> bytes:
    return counted(len(tensors), len(settings)) + b"".join(settings) + b"".join(tensors)


def counted(tensors: int, settings: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, settings)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def test_header_of_the_librarys_own_writer_is_read(file: Path) -> None:
    import numpy as np

    writer = GGUFWriter(file, "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_float32("llama.eps", 1e-5)
    writer.add_tensor("token_embd.weight", np.zeros((3, 32), dtype=np.float32))
    writer.add_tensor("output_norm.weight", np.zeros(32, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parsed = read_header(file)
    assert (parsed.architecture, parsed.parameters) == ("llama", 3 * 32 + 32)
    assert parsed.values["llama.eps"] == 1e-5  # not 9.999999747378752e-06
    assert parsed.tensors["token_embd.weight"].shape == (3, 32)
    tokens = parsed.values["tokenizer.ggml.tokens"]
    assert isinstance(tokens, GgufArray)
    assert read_array(tokens) == ["a", "b"]


def test_blocks_of_all_types_are_those_of_gguf() -> None:
    assert {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()} == BLOCKS


HUGE = 2**63
BOMBS = {
    "a count of tensors": counted(HUGE, 0),
    "a count of settings": counted(0, HUGE),
    "an array of nothing": header(settings=(setting(b"k", ARRAY, struct.pack("<IQ", U8, HUGE)),)),
    "an array of empty strings": header(
        settings=(setting(b"k", ARRAY, struct.pack("<IQ", STRING, 5_000_000)),)
    ),
    "many arrays": header(
        settings=(setting(b"k", ARRAY, struct.pack("<IQ", U8, 2**21) + bytes(2**21)),) * 3
    ),
    "an array of arrays": header(settings=(setting(b"k", ARRAY, struct.pack("<IQ", ARRAY, 1)),)),
    "a long string": header(settings=(setting(b"k", STRING, struct.pack("<Q", HUGE)),)),
    "a long key": counted(0, 1) + struct.pack("<Q", HUGE),
    "an unknown type": header(settings=(setting(b"k", 99, b""),)),
    "many dimensions": header(tensors=(text(b"t") + struct.pack("<I", 2**31),)),
    "a huge tensor": header(tensors=(tensor(2**31, 2**31),)),
    "an offset outside": header(tensors=(tensor(4, offset=HUGE),)),
    "a missing tensor": counted(1, 0),
    "a tensor without data": header(tensors=(tensor(4),)),
    "two tensors of one name": header(tensors=(tensor(1), tensor(1))) + bytes(64),
    "an unknown tensor type": header(tensors=(tensor(4, kind=99),)),
    "a part of a block": header(tensors=(tensor(33, kind=8),)) + bytes(64),
    "text that is not UTF-8": header(settings=(setting(b"k", STRING, text(b"\xff")),)),
    "no alignment": header(settings=(setting(b"general.alignment", U32, bytes(4)),)),
    "another version": b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
    "another format": b"PK\3\4" + bytes(100),
    "nothing": b"",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_header_that_does_not_fit_the_file_is_rejected(file: Path, bomb: str) -> None:
    file.write_bytes(BOMBS[bomb])
    with pytest.raises(BrokenCheckpointError, match=r"model\.gguf"):
        read_header(file)


@pytest.mark.parametrize("length", range(0, 60, 7))
def test_truncated_header_is_rejected(file: Path, length: int) -> None:
    whole = header(settings=(setting(b"some.key", U32, bytes(4)),), tensors=(tensor(2, 2),))
    file.write_bytes(whole + bytes(48))
    assert read_header(file).parameters == 4
    file.write_bytes(whole[:length])
    with pytest.raises(BrokenCheckpointError):
        read_header(file)


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return a valid file without its data."""
    file = tmp_path_factory.mktemp("valid") / "model.gguf"
    model = tiny("gemma3", num_hidden_layers=1)
    yarn = {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0}
    write_gguf(file, model, "gemma3", {"attention.sliding_window": 6, **yarn})
    begin = min(tensor.offset for tensor in read_header(file).tensors.values())
    return file.read_bytes()[:begin]


@limits(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=4))
def test_changed_bytes_give_only_typed_errors(
    changes: list[tuple[int, int]], valid: bytes, tmp_path: Path
) -> None:
    content = bytearray(valid + bytes(400_000))  # zeros in place of the weights
    for position, byte in changes:
        content[position % len(valid)] = byte
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    with suppress(IntraSliceError):
        header = read_header(file)
        rows = describe_header(header).settings["vocab_size"]
        vocabulary = read_vocabulary(header, rows=rows)
        build_tokenizer(vocabulary, special_tokens(vocabulary))
