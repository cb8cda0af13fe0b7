"""Do the files on disk behave like the model in memory, for others, with and without our code?"""

from __future__ import annotations

import importlib.util
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from intraslice_core.config import GgufFormat
from intraslice_core.errors import VerificationError
from intraslice_core.evaluation import fresh_process, llama_cpp_process
from intraslice_core.evaluation.clean_process import OUR_PLACE, CleanProcess
from intraslice_core.files import file_sha256
from intraslice_core.progress import CancellationCheck, never_cancelled

REFERENCE_FILE = "verification.json"
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}
"""Largest difference of a log-probability, by compute dtype: the same sums in another order."""

_HASHED = ("*.safetensors", "*.py", "*.gguf")
GGUF_TOLERANCES: Mapping[GgufFormat, float] = MappingProxyType({"gguf-f16": 0.05, "gguf-q8_0": 1.5})
"""The same for llama.cpp, which also rounds activations: to float16, or to eight bits a block.

Measured on SmolLM2-135M: 0.013 and 0.56.
"""

_PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Ein Satz auf Deutsch, une phrase en français, 一句中文. 12 + 30 =",
    "Once upon a time there was a compiler that warned about everything. " * 12 + "One day",
)


@dataclass(frozen=True, kw_only=True)
class VerificationResult:
    """How closely the fresh process agreed."""

    loaded_by: tuple[str, ...]
    """Who did: `checkpoint` (its own code or none), `package` (ours), `llama.cpp`."""
    max_abs_difference: float
    tolerance: float
    prompts: int
    greedy_tokens: int
    seconds: float


def write_reference(
    directory: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Store what the model answers to fixed prompts, and what the weight files hash to.

    Args:
        directory: the checkpoint, all its files written; gains `verification.json`.
        model: the model in memory, on the device and in the dtype to verify with.
        tokenizer: the checkpoint's.

    Raises:
        VerificationError: if the model's answers are not finite.
    """
    was_training = model.training
    model.train(False)
    try:
        prompts = [_describe(model, tokenizer, text) for text in _PROMPTS]
    finally:
        model.train(was_training)
    if not all(math.isfinite(value) for entry in prompts for value in chain(*entry["log_probs"])):
        raise VerificationError("the model in memory answers with NaN or infinity")
    reference = {
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "files": _hashes(directory),
        "prompts": prompts,
    }
    (directory / REFERENCE_FILE).write_text(json.dumps(reference))


def verify_checkpoint(
    directory: Path, *, should_cancel: CancellationCheck = never_cancelled
) -> VerificationResult:
    """Load the checkpoint in a process without our packages and compare its answers.

    Tolerances are `TOLERANCES`, by dtype. A greedy token may differ only where the two best
    tokens are closer to each other than twice the tolerance.

    Raises:
        VerificationError: if a file changed, the checkpoint does not load or answers differently.
        CompressionCancelledError: if asked to stop; the process is ended.
    """
    started = time.monotonic()
    reference = _read_reference(directory)
    _compare_files(directory, reference["files"])
    tolerance = TOLERANCES[reference["dtype"]]
    process = _asked(fresh_process.__file__, directory, str(OUR_PLACE))
    answers = process.ask(reference, should_cancel)
    loaders = {"stranger": "checkpoint", "package": "package"}
    differences = [_largest(reference, one, tolerance, 2 * tolerance) for one in answers.values()]
    loaded_by = tuple(loaders[name] for name in answers)
    return _result(reference, loaded_by, max(differences), tolerance, started)


def has_llama_cpp() -> bool:
    """Whether there is a llama.cpp to verify GGUF files with."""
    return importlib.util.find_spec("xllamacpp") is not None


def verify_gguf(
    directory: Path,
    file: str,
    wanted: GgufFormat,
    *,
    should_cancel: CancellationCheck = never_cancelled,
) -> VerificationResult:
    """Load a GGUF file of the checkpoint in llama.cpp and compare its answers.

    Tolerances are `GGUF_TOLERANCES`. A greedy token may differ only where the two best tokens are
    closer to each other than the tolerance.

    Raises:
        VerificationError: if a file changed, the file does not load or answers differently.
        CompressionCancelledError: if asked to stop; the process is ended.
    """
    started = time.monotonic()
    reference = _read_reference(directory)
    _compare_files(directory, reference["files"])
    tolerance = GGUF_TOLERANCES[wanted]
    answers = _asked(llama_cpp_process.__file__, directory / file).ask(reference, should_cancel)
    difference = _largest(reference, answers, tolerance, tolerance)
    return _result(reference, ("llama.cpp",), difference, tolerance, started)


def _result(
    reference: dict[str, Any],
    loaded_by: tuple[str, ...],
    difference: float,
    tolerance: float,
    started: float,
) -> VerificationResult:
    prompts = reference["prompts"]
    return VerificationResult(
        loaded_by=loaded_by,
        max_abs_difference=difference,
        tolerance=tolerance,
        prompts=len(prompts),
        greedy_tokens=sum(len(entry["greedy"]) for entry in prompts),
        seconds=time.monotonic() - started,
    )


def _describe(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str
) -> dict[str, Any]:
    """One prompt with the model's answer."""
    tokens: list[int] = tokenizer(text)["input_ids"]
    return {"text": text, "tokens": tokens, **fresh_process.observe(model, tokens, None)}


def _hashes(directory: Path) -> dict[str, str]:
    """SHA-256 of the files that hold weights and code."""
    files = sorted(chain.from_iterable(map(directory.glob, _HASHED)))
    return {file.name: file_sha256(file) for file in files}


def _read_reference(directory: Path) -> dict[str, Any]:
    try:
        reference: dict[str, Any] = json.loads((directory / REFERENCE_FILE).read_text())
    except (OSError, ValueError) as error:
        raise VerificationError(
            f"{directory} has no readable {REFERENCE_FILE}: {error}",
            hint="only checkpoints this engine wrote can be verified",
        ) from error
    if reference.get("device") == "cuda" and not torch.cuda.is_available():
        reference["device"] = "cpu"
    return reference


def _compare_files(directory: Path, expected: dict[str, str]) -> None:
    found = _hashes(directory)
    changed = sorted(name for name in expected | found if expected.get(name) != found.get(name))
    if changed:
        raise VerificationError(
            f"files are not what was written: {', '.join(changed)}", hint="compress again"
        )


def _asked(program: str, subject: Path, *more: str) -> CleanProcess:
    """A process that is to load something and answer the reference's prompts."""
    return CleanProcess(
        program=program,
        arguments=[str(subject.resolve())],
        more=more,
        fails=lambda reason: VerificationError(f"a fresh process cannot load {subject}: {reason}"),
    )


def _largest(
    reference: dict[str, Any], answers: list[dict[str, Any]], tolerance: float, tie: float
) -> float:
    """The largest difference of a log-probability of all prompts."""
    pairs = zip(reference["prompts"], answers, strict=True)
    return max(_compare(entry, answer, tolerance, tie) for entry, answer in pairs)


def _compare(entry: dict[str, Any], answer: dict[str, Any], tolerance: float, tie: float) -> float:
    """The same of one prompt; where the two best tokens are closer than `tie`, either may win."""
    if answer["tokens"] != entry["tokens"]:
        raise VerificationError("the tokenizer on disk reads a prompt as other tokens")
    difference: float = max(
        abs(ours - theirs)
        for ours, theirs in zip(
            chain(*entry["log_probs"]), chain(*answer["log_probs"]), strict=True
        )
    )
    # Written so that NaN fails too.
    if not difference <= tolerance:
        raise VerificationError(
            f"log-probabilities differ by {difference:.3g}, more than {tolerance:.3g}"
        )
    steps = zip(entry["greedy"], answer["greedy"], entry["margins"], strict=True)
    for ours, theirs, margin in steps:
        if ours == theirs:
            continue
        if margin > tie:
            raise VerificationError(f"greedy decoding gives token {theirs} instead of {ours}")
        break  # a tie went the other way; from here on the texts differ by right
    return difference
