"""Verification that files on disk behave like the model in memory, with and without our code."""

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

from intraslice_core.checkpoints.reader import StoredTensors
from intraslice_core.config import GgufFormat
from intraslice_core.device_memory import free_device_memory
from intraslice_core.errors import VerificationError
from intraslice_core.evaluation import llama_cpp_process, transformers_process
from intraslice_core.evaluation.clean_process import PACKAGES_DIRECTORY, CleanProcess
from intraslice_core.files import file_sha256
from intraslice_core.progress import CancellationCheck, never_cancelled

REFERENCE_FILE = "verification.json"
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}
"""Largest allowed difference of a log-probability in nats, by compute dtype.

It allows for the same sums computed in another order.
"""

_HASHED = ("*.safetensors", "*.py", "*.gguf")
GGUF_TOLERANCES: Mapping[GgufFormat, float] = MappingProxyType({"gguf-f16": 0.05, "gguf-q8_0": 1.5})
"""Largest allowed difference of a log-probability in nats for llama.cpp, by file format.

llama.cpp also rounds activations: to float16, or to eight bits per block. Measured on SmolLM2-135M:
0.013 and 0.56.
"""

_COMPRESS_AGAIN = "the checkpoint cannot be used: compress again"

_PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Ein Satz auf Deutsch, une phrase en français, 一句中文. 12 + 30 =",
    "Once upon a time there was a compiler that warned about everything. " * 12 + "One day",
)


@dataclass(frozen=True, kw_only=True)
class VerificationResult:
    """Agreement between the loaded files and the model in memory."""

    loaded_by: tuple[str, ...]
    """Loaders: `checkpoint` (its own code or none), `package` (our package), `llama.cpp`."""
    max_abs_difference: float
    """Largest absolute difference of a log-probability, in nats."""
    tolerance: float
    """Largest allowed difference, in nats."""
    prompts: int
    greedy_tokens: int
    seconds: float


def write_reference(
    directory: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Write the model's answers to fixed prompts and the hashes of the weight files.

    A prompt is cut where it and the decoded tokens would exceed the model's context.

    Args:
        directory: the complete checkpoint; `verification.json` is added to it.
        model: the model in memory, on the device and in the dtype to verify with.
        tokenizer: the checkpoint's tokenizer.

    Raises:
        VerificationError: if the model's log-probabilities are not finite.
    """
    was_training = model.training
    model.train(False)
    try:
        prompts = [_describe(model, tokenizer, text) for text in _PROMPTS]
    finally:
        model.train(was_training)
    if not all(math.isfinite(value) for entry in prompts for value in chain(*entry["log_probs"])):
        raise VerificationError(
            "the compressed model in memory gives NaN or infinite log-probabilities",
            hint="compress with dtype float32 or with a lower ratio",
        )
    reference = {
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "files": _hashes(directory),
        "prompts": prompts,
    }
    (directory / REFERENCE_FILE).write_text(json.dumps(reference))


def verify_checkpoint(
    directory: Path, *, should_cancel: CancellationCheck = never_cancelled
) -> VerificationResult:
    """Load the checkpoint in a process without our packages and compare its answers.

    The tolerance is `TOLERANCES` of the compute dtype. A greedy token may differ only where the
    margin between the two most likely tokens is below twice the tolerance.

    Raises:
        VerificationError: if a file changed, or the checkpoint does not load or answers
            differently.
        CompressionCancelledError: if the run is cancelled; the process is ended.
    """
    started = time.monotonic()
    reference = _read_reference(directory)
    _check_files(directory, reference["files"])
    tolerance = TOLERANCES[reference["dtype"]]
    process = _loading_process(transformers_process.__file__, directory, str(PACKAGES_DIRECTORY))
    by_loader = process.run(reference, should_cancel)
    difference = max(
        _largest_difference(directory, reference, answers, tolerance, 2 * tolerance)
        for answers in by_loader.values()
    )
    return _result(reference, tuple(by_loader), difference, tolerance, started)


def has_llama_cpp() -> bool:
    """Return whether llama.cpp is installed, with which GGUF files are verified."""
    return importlib.util.find_spec("xllamacpp") is not None


def verify_gguf(
    directory: Path,
    file: str,
    gguf_format: GgufFormat,
    *,
    should_cancel: CancellationCheck = never_cancelled,
) -> VerificationResult:
    """Load a GGUF file of the checkpoint in llama.cpp and compare its answers.

    The tolerance is `GGUF_TOLERANCES` of the format. A greedy token may differ only where the
    margin between the two most likely tokens is below the tolerance.

    Raises:
        VerificationError: if a file changed, or the GGUF file does not load or answers
            differently.
        CompressionCancelledError: if the run is cancelled; the process is ended.
    """
    started = time.monotonic()
    reference = _read_reference(directory)
    _check_files(directory, reference["files"])
    tolerance = GGUF_TOLERANCES[gguf_format]
    process = _loading_process(llama_cpp_process.__file__, directory / file)
    answers = process.run(reference, should_cancel)
    difference = _largest_difference(directory / file, reference, answers, tolerance, tolerance)
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
    """Return one prompt with the model's answer: its text, all of its tokens, those that are read.

    Longer inputs than the context have no defined answer: runtimes reject them, and some rotary
    embeddings change their frequencies.
    """
    context = min(_context_of(model), llama_cpp_process.CONTEXT)
    greedy_tokens = max(min(transformers_process.GREEDY_TOKENS, context // 2), 1)
    tokens: list[int] = tokenizer(text)["input_ids"]
    prompt = tokens[: max(context - greedy_tokens, 1)]
    answer = transformers_process.observe(model, prompt, None, greedy_tokens)
    return {"text": text, "tokens": tokens, "prompt": prompt, **answer}


def _context_of(model: PreTrainedModel) -> int:
    """Return the model's context in tokens; where it names none, that of llama.cpp here."""
    settings: Any = model.config.get_text_config()
    context = getattr(settings, "max_position_embeddings", None)
    return context if isinstance(context, int) else llama_cpp_process.CONTEXT


def _hashes(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of the files that hold weights and code, by name."""
    files = sorted(chain.from_iterable(map(directory.glob, _HASHED)))
    return {file.name: file_sha256(file) for file in files}


def _read_reference(directory: Path) -> dict[str, Any]:
    try:
        reference: dict[str, Any] = json.loads((directory / REFERENCE_FILE).read_text())
    except (OSError, ValueError) as error:
        raise VerificationError(
            f"{directory} has no readable {REFERENCE_FILE}: {error}",
            hint="only checkpoints written by this engine can be verified",
        ) from error
    reference["device"] = _device_here(reference["device"], directory)
    return reference


def _device_here(name: str, directory: Path) -> str:
    """Return the device to verify on, on a machine that may not be that of the reference.

    Args:
        name: device of the reference.
        directory: the checkpoint, which must fit the device in float32.
    """
    device = torch.device(name)
    if device.type != "cuda":
        return name
    if not torch.cuda.is_available():
        return "cpu"
    if (device.index or 0) >= torch.cuda.device_count():
        device = torch.device("cuda")
    with StoredTensors(directory) as stored:
        fits = 4 * stored.parameters < free_device_memory(device)
    return str(device) if fits else "cpu"


def _check_files(directory: Path, expected: dict[str, str]) -> None:
    hashes = _hashes(directory)
    changed = sorted(name for name in expected | hashes if expected.get(name) != hashes.get(name))
    if changed:
        raise VerificationError(
            f"files changed after they were written: {', '.join(changed)}",
            hint=_COMPRESS_AGAIN,
        )


def _loading_process(program: str, path: Path, *extra_arguments: str) -> CleanProcess:
    """Return a process that loads a model from the path and answers the reference's prompts."""
    return CleanProcess(
        program=program,
        arguments=[str(path.resolve())],
        extra_arguments=extra_arguments,
        make_error=lambda reason: VerificationError(
            f"a fresh process cannot load {path}: {reason}", hint=_COMPRESS_AGAIN
        ),
    )


def _largest_difference(
    path: Path,
    reference: dict[str, Any],
    answers: list[dict[str, Any]],
    tolerance: float,
    tie: float,
) -> float:
    """Compare the answers to all prompts; return the largest difference of a log-probability.

    Args:
        path: the loaded file or directory, for errors.
        reference: answers of the model in memory.
        answers: answers of the loaded model.
        tolerance: largest allowed difference of a log-probability, in nats.
        tie: margin of the two most likely tokens, in nats, below which either may be decoded.

    Raises:
        VerificationError: if an answer differs by more.
    """
    pairs = zip(reference["prompts"], answers, strict=True)
    try:
        return max(_compare(entry, answer, tolerance, tie) for entry, answer in pairs)
    except _DifferentAnswerError as error:
        raise VerificationError(f"{path.name}: {error}", hint=_COMPRESS_AGAIN) from None


class _DifferentAnswerError(Exception):
    """Answer to one prompt that differs from the reference."""


def _compare(entry: dict[str, Any], answer: dict[str, Any], tolerance: float, tie: float) -> float:
    """Compare the answer to one prompt; return the largest difference of a log-probability."""
    if answer["tokens"] != entry["tokens"]:
        raise _DifferentAnswerError(
            f"the tokenizer on disk gives other tokens for the prompt {entry['text'][:40]!r}"
        )
    log_probs = zip(chain(*entry["log_probs"]), chain(*answer["log_probs"]), strict=True)
    difference: float = max(abs(expected - actual) for expected, actual in log_probs)
    # Written so that NaN fails too.
    if not difference <= tolerance:
        raise _DifferentAnswerError(
            f"log-probabilities differ by {difference:.3g} nats, more than the tolerance "
            f"{tolerance:.3g}"
        )
    steps = zip(entry["greedy"], answer["greedy"], entry["margins"], strict=True)
    for expected, actual, margin in steps:
        if expected == actual:
            continue
        if margin > tie:
            raise _DifferentAnswerError(
                f"greedy decoding gives token {actual} instead of {expected}"
            )
        break  # a tie was decided differently; the later tokens may differ
    return difference
