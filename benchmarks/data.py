"""Text files of the benchmarks: where to put them, and the check that they are the right ones.

    python benchmarks/data.py

Prints every file with its state. The repository contains no benchmark text. Put the files into
`benchmarks/data/` (ignored by git), or name another directory in INTRASLICE_BENCHMARK_DATA. A
benchmark takes a file by its short name (`wikitext2-test`), by a path, or by the name of a
calibration source.

The WikiText-2 pair is the tokenised variant (rare words are `<unk>`), detokenised: perplexities on
it compare with each other only. Calibrate on the validation split and evaluate on the test split.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

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


def data_directory() -> Path:
    """Return the directory that holds the files."""
    return Path(os.environ.get(DIRECTORY_VARIABLE) or DEFAULT_DIRECTORY).expanduser()


def text_source(source: str) -> str:
    """Return the path of a file that is given by its short name; other sources unchanged.

    Raises:
        BenchmarkDataError: if the file is missing or its checksum differs.
    """
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


def main() -> None:
    """Print every file with its state."""
    for short_name, expected in FILES.items():
        try:
            print(f"{short_name}: {checked(expected, data_directory())}, checksum matches")
        except BenchmarkDataError as error:
            print(f"{short_name}: {error}")


if __name__ == "__main__":
    main()
