"""Changed files of a model end in a typed error or load, whatever was changed.

Hypothesis changes one valid file of a checkpoint: values in JSON documents and headers, or raw
bytes. Each changed model is opened like a user's: inspected, read, and computed with.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from intraslice_core import decoder_layer
from intraslice_core.calibration import tokenise_documents
from intraslice_core.calibration.pieces import Piece
from intraslice_core.checkpoints.dense_model import DenseLayerReader
from intraslice_core.checkpoints.reader import CheckpointReader, StoredTensors
from intraslice_core.checkpoints.sources import open_model
from intraslice_core.checkpoints.weight_files import INDEX_FILE, SINGLE_FILE
from intraslice_core.cost_model.dense import read_dense
from intraslice_core.errors import IntraSliceError
from intraslice_core.tokenizer import load_tokenizer, require_known_tokens
from tests.intraslice_core.tiny_models import tiny_checkpoint

EXAMPLES = settings(
    max_examples=100,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.sampled_from([-(2**63), 2**31, 2**63, 2**200, 1e308, -1e-320, float("nan"), float("inf")]),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["\ud83d", "../../etc/passwd", "\0", "auto", "float8_e4m3fn", "F32"]),
    st.lists(st.integers(-2, 300), max_size=4),
    st.dictionaries(st.text(max_size=6), st.integers(), max_size=2),
)
"""JSON values that a field may hold instead of its own."""


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value in a JSON document, at most 20 of each container."""
    found = [path] if path else []
    if isinstance(document, dict):
        items = list(document.items())[:200]
    elif isinstance(document, list):
        items = list(enumerate(document))[:20]
    else:
        return found
    return found + [place for key, value in items for place in places(value, (*path, key))]


@st.composite
def changed_documents(draw: st.DrawFn, document: Any) -> bytes:
    """Draw the document with one to three values replaced, removed or added."""
    changed = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 3))):
        paths = places(changed)
        if not paths:
            break
        *parents, last = draw(st.sampled_from(paths))
        parent = changed
        for key in parents:
            parent = parent[key]
        if draw(st.integers(0, 4)) == 0:
            del parent[last]
        else:
            parent[last] = draw(VALUES)
    return json.dumps(changed).encode()


@st.composite
def changed_bytes(draw: st.DrawFn, content: bytes, limit: int) -> bytes:
    """Draw the content with some of its first `limit` bytes changed, or cut short."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(0, 4))):
        position = draw(st.integers(0, min(limit, len(changed)) - 1))
        piece = draw(st.binary(min_size=1, max_size=8))
        changed[position : position + len(piece)] = piece
    if draw(st.integers(0, 3)) == 0:
        del changed[draw(st.integers(0, len(changed))) :]
    return bytes(changed)


def use(directory: Path, work: Path) -> None:
    """Open a model, compute logits, and tokenise a text."""
    with CheckpointReader(open_model(str(directory), work)) as reader, torch.inference_mode():
        layers = DenseLayerReader(reader, torch.device("cpu"), torch.float32)
        tokenizer = load_tokenizer(reader.directory)
        text = Piece("def f(x):\n    return x  # 1234")
        tokens = tokenise_documents([text], tokenizer, max_tokens=12)
        require_known_tokens(tokens, reader.config.vocab_size, tokenizer, "the text")
        hidden = layers.embed(tokens[None])
        for layer in range(layers.num_layers):
            rotary = layers.rotary(layer, len(tokens))
            weights, settings = layers.weights(layer), layers.settings(layer)
            hidden = decoder_layer.forward(hidden, weights, settings, rotary)
        layers.logits(hidden.flatten(0, 1))


def use_changed(original: Path, name: str, content: bytes, work: Path) -> None:
    """Use a copy of the checkpoint in which one file has other content."""
    place = work / "model"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(original, place)
    (place / name).write_bytes(content)
    with contextlib.suppress(IntraSliceError):
        read_dense(place)  # as the service does, without torch
    with contextlib.suppress(IntraSliceError):
        use(place, work)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that makes a family's checkpoint once."""
    made: dict[str, Path] = {}

    def make(variant: str) -> Path:
        if variant not in made:
            folder = tmp_path_factory.mktemp(variant)
            made[variant] = tiny_checkpoint(folder / "dense", variant, num_hidden_layers=2)
        return made[variant]

    return make


@pytest.fixture(scope="module")
def sharded(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint of two shards with an index."""
    directory = tmp_path_factory.mktemp("sharded") / "dense"
    shutil.copytree(checkpoint("llama"), directory)
    (directory / SINGLE_FILE).unlink()
    with StoredTensors(checkpoint("llama")) as stored:
        halves = {"a.safetensors": stored.names[::2], "b.safetensors": stored.names[1::2]}
        for name, names in halves.items():
            save_file({tensor: stored.tensor(tensor) for tensor in names}, directory / name)
    weight_map = {tensor: name for name, names in halves.items() for tensor in names}
    (directory / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    return directory


JSON_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


@pytest.mark.parametrize("variant", ["llama", "phi3_longrope", "gemma3"])
@EXAMPLES
@given(data=st.data())
def test_changed_settings_end_in_a_typed_error(
    data: st.DataObject, variant: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    original = checkpoint(variant)
    document = json.loads((original / "config.json").read_bytes())
    use_changed(original, "config.json", data.draw(changed_documents(document)), tmp_path)


@pytest.mark.parametrize("name", JSON_FILES)
@EXAMPLES
@given(data=st.data())
def test_a_changed_json_file_ends_in_a_typed_error(
    data: st.DataObject, name: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    original = checkpoint("llama")
    document = json.loads((original / name).read_bytes())
    use_changed(original, name, data.draw(changed_documents(document)), tmp_path)


@EXAMPLES
@given(data=st.data())
def test_a_changed_index_ends_in_a_typed_error(
    data: st.DataObject, sharded: Path, tmp_path: Path
) -> None:
    document = json.loads((sharded / INDEX_FILE).read_bytes())
    use_changed(sharded, INDEX_FILE, data.draw(changed_documents(document)), tmp_path)


@EXAMPLES
@given(data=st.data())
def test_a_changed_safetensors_header_ends_in_a_typed_error(
    data: st.DataObject, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    original = checkpoint("llama")
    content = (original / SINGLE_FILE).read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = data.draw(changed_documents(json.loads(content[8:end])))
    changed = len(header).to_bytes(8, "little") + header + content[end:]
    use_changed(original, SINGLE_FILE, changed, tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", SINGLE_FILE])
@EXAMPLES
@given(data=st.data())
def test_changed_bytes_of_a_checkpoint_end_in_a_typed_error(
    data: st.DataObject, name: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    original = checkpoint("llama")
    content = (original / name).read_bytes()
    use_changed(original, name, data.draw(changed_bytes(content, 4_000)), tmp_path)
