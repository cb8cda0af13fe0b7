"""Speed, peak memory and KV cache of both models under several loads.

Under every load each model runs once to warm up, then both alternate while they are timed. Peak
memory is measured in a last run of each, because measuring it would disturb the timing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import psutil  # type: ignore[import-untyped]
import torch
from torch import Tensor
from transformers import PreTrainedModel

from intraslice_core.config import SpeedPoint
from intraslice_core.device import return_free_memory
from intraslice_core.evaluation.clock import DeviceClock, seconds_between
from intraslice_core.evaluation.speed import compared_rates, compared_seconds, decode_given
from intraslice_core.progress import CancellationCheck, never_cancelled, raise_if_cancelled
from intraslice_core.reports.schema import BytesComparison, LoadReport
from intraslice_core.substeps import report_substep

_SAMPLING_SECONDS = 0.001


class PeakMemory:
    """Context manager that measures the peak memory growth within its block.

    On a GPU the allocator's statistics are read. On a CPU a thread samples the process's resident
    memory every millisecond, because resetting the kernel's own peak would lose the peak that the
    whole run reports.

    Args:
        device: compute device of the measured work.
    """

    growth: int
    """Peak growth in bytes; set when the block has ended."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._process = psutil.Process()
        self._ended = threading.Event()
        self._sampler = threading.Thread(target=self._sample_until_ended, daemon=True)
        self._before = self._peak = 0

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
            return self
        # Reused free pages of earlier work would not show as growth.
        return_free_memory()
        self._before = self._peak = self._process.memory_info().rss
        self._sampler.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if self._device.type == "cuda":
            self._peak = torch.cuda.max_memory_allocated(self._device)
        else:
            self._ended.set()
            self._sampler.join()
            self._sample()
        self.growth = self._peak - self._before

    def _sample_until_ended(self) -> None:
        while not self._ended.wait(_SAMPLING_SECONDS):
            self._sample()

    def _sample(self) -> None:
        self._peak = max(self._peak, self._process.memory_info().rss)


@dataclass(frozen=True, kw_only=True)
class LoadRun:
    """Measurements of one run: seconds by phase, and KV cache bytes per token of a sequence."""

    prefill: float
    first_token: float
    decode: float
    cache_per_token: float


def compare_under_loads(
    dense: PreTrainedModel,
    compressed: PreTrainedModel,
    points: Iterable[SpeedPoint],
    *,
    new_tokens: int,
    repeats: int,
    should_cancel: CancellationCheck = never_cancelled,
) -> tuple[LoadReport, ...]:
    """Measure both models under each load.

    Args:
        dense: the dense model.
        compressed: the compressed model, on the same device.
        points: loads to measure.
        new_tokens: tokens decoded after the prompt, per sequence.
        repeats: timed runs of each model per load, at least 1.
        should_cancel: called before each run.

    Raises:
        CompressionCancelledError: if the run is cancelled.
    """
    return tuple(
        _compare_under_load(
            (dense, compressed), point, new_tokens, repeats=repeats, should_cancel=should_cancel
        )
        for point in points
    )


def _compare_under_load(
    models: tuple[PreTrainedModel, PreTrainedModel],
    point: SpeedPoint,
    new_tokens: int,
    *,
    repeats: int,
    should_cancel: CancellationCheck,
) -> LoadReport:
    dense, compressed = _alternating_runs(models, point, new_tokens, repeats, should_cancel)
    peaks = []
    for model in models:
        raise_if_cancelled(should_cancel)
        peaks.append(peak_bytes(model, point, new_tokens))
    return LoadReport(
        batch_size=point.batch_size,
        context_length=point.context_length,
        new_tokens=new_tokens,
        repeats=repeats,
        prefill=compared_rates(
            [run.prefill for run in dense],
            [run.prefill for run in compressed],
            point.batch_size * point.context_length,
        ),
        decode=compared_rates(
            [run.decode for run in dense],
            [run.decode for run in compressed],
            point.batch_size * new_tokens,
        ),
        first_token=compared_seconds(
            [run.first_token for run in dense], [run.first_token for run in compressed]
        ),
        peak_memory=BytesComparison(dense=peaks[0], compressed=peaks[1]),
        cache_per_token=BytesComparison(
            dense=dense[0].cache_per_token, compressed=compressed[0].cache_per_token
        ),
    )


def _alternating_runs(
    models: tuple[PreTrainedModel, PreTrainedModel],
    point: SpeedPoint,
    new_tokens: int,
    repeats: int,
    should_cancel: CancellationCheck,
) -> tuple[list[LoadRun], list[LoadRun]]:
    """Run both models alternately; return the timed runs of each, without the warm-up."""
    runs: tuple[list[LoadRun], list[LoadRun]] = ([], [])
    for repeat in range(-1, repeats):
        # The first model alternates, so that neither always profits from the warmer cache.
        for index in (0, 1) if repeat % 2 else (1, 0):
            raise_if_cancelled(should_cancel)
            report_substep(
                f"run {repeat + 2}/{repeats + 1} of {point.batch_size} x {point.context_length}"
            )
            run = run_load(models[index], point, new_tokens)
            if repeat >= 0:
                runs[index].append(run)
    return runs


@torch.inference_mode()
def run_load(model: PreTrainedModel, point: SpeedPoint, new_tokens: int) -> LoadRun:
    """Time the prefill, the first token of each sequence, and the decoding of given tokens.

    Args:
        model: a causal language model; its mode is restored.
        point: number of prompts and their length.
        new_tokens: tokens decoded after each prompt, at least 1.
    """
    tokens = _tokens(model, point, new_tokens)
    was_training = model.training
    model.train(False)
    try:
        return _run(model, tokens, point.context_length)
    finally:
        model.train(was_training)


def _run(model: PreTrainedModel, tokens: Tensor, prompt: int) -> LoadRun:
    """Time both phases with (batch, prompt + new) tokens."""
    clock = DeviceClock(model.device)
    clock.settle()
    started, prefill_start = time.perf_counter(), clock.now()
    output: Any = model(input_ids=tokens[:, :prompt], use_cache=True, logits_to_keep=1)
    prefill_end = clock.now()
    output.logits[:, -1].argmax(-1).tolist()
    first_token = time.perf_counter() - started
    cache = output.past_key_values
    decode_start = clock.now()
    decode_given(model, tokens, prompt, cache)
    decode_end = clock.now()
    return LoadRun(
        prefill=seconds_between(prefill_start, prefill_end),
        first_token=first_token,
        decode=seconds_between(decode_start, decode_end),
        cache_per_token=_cache_bytes(cache) / tokens.numel(),
    )


def peak_bytes(model: PreTrainedModel, point: SpeedPoint, new_tokens: int) -> int:
    """Measure a run's peak memory in bytes: weights, activations, KV cache and logits."""
    with PeakMemory(model.device) as peak:
        run_load(model, point, new_tokens)
    tensors = (*model.parameters(), *model.buffers())
    weights = {tensor.data_ptr(): tensor.nbytes for tensor in tensors}
    return sum(weights.values()) + peak.growth


def _cache_bytes(cache: Any) -> int:
    """Return the size of the cached tensors.

    A sliding window caches fewer tokens, a removed attention none.
    """
    tensors = (
        tensor
        for layer in cache.layers
        for tensor in (layer.keys, layer.values)
        if tensor is not None
    )
    return sum(tensor.nbytes for tensor in tensors)


def _tokens(model: PreTrainedModel, point: SpeedPoint, new_tokens: int) -> Tensor:
    """Draw tokens, the same for every model with the same vocabulary: (batch, context + new)."""
    generator = torch.Generator().manual_seed(0)
    shape = (point.batch_size, point.context_length + new_tokens)
    return torch.randint(model.config.vocab_size, shape, generator=generator).to(model.device)
