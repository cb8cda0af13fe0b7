"""Speed, memory and cache of both models under several loads, in turns.

Under every load each model runs once to warm up, then both take turns, and last one run of each is
watched for its memory, which would disturb a clock.
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
from intraslice_core.evaluation.speed import compared_rates, compared_seconds, decode_given
from intraslice_core.progress import CancellationCheck, never_cancelled, raise_if_cancelled
from intraslice_core.reports.schema import BytesComparison, LoadReport

_EVERY_SECONDS = 0.001


class PeakMemory:
    """Watches the block below a `with`.

    On a GPU the allocator keeps count. On the CPU a thread reads the process's resident memory
    every millisecond: counts that the kernel keeps cannot be set back without losing the peak that
    the whole run reports.

    Args:
        device: where the work is done.
    """

    growth: int
    """Bytes, once the block has ended."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._process = psutil.Process()
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._sample, daemon=True)
        self._before = self._most = 0

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
            return self
        # Pages that earlier work has left behind would be taken again without being seen.
        return_free_memory()
        self._before = self._most = self._process.memory_info().rss
        self._watch.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if self._device.type == "cuda":
            self._most = torch.cuda.max_memory_allocated(self._device)
        else:
            self._ended.set()
            self._watch.join()
            self._look()
        self.growth = self._most - self._before

    def _sample(self) -> None:
        while not self._ended.wait(_EVERY_SECONDS):
            self._look()

    def _look(self) -> None:
        self._most = max(self._most, self._process.memory_info().rss)


@dataclass(frozen=True, kw_only=True)
class LoadRun:
    """One run: seconds of its phases, and bytes of keys and values for a token of a sequence."""

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
        dense: the model before.
        compressed: the model after, on the same device.
        points: the loads.
        new_tokens: decoded behind the prompt, a sequence.
        repeats: timed runs of each model under a load, at least 1.
        should_cancel: asked before each run.

    Raises:
        CompressionCancelledError: if asked to stop.
    """
    return tuple(
        _compare_under(
            (dense, compressed), point, new_tokens, repeats=repeats, should_cancel=should_cancel
        )
        for point in points
    )


def _compare_under(
    models: tuple[PreTrainedModel, PreTrainedModel],
    point: SpeedPoint,
    new_tokens: int,
    *,
    repeats: int,
    should_cancel: CancellationCheck,
) -> LoadReport:
    runs: tuple[list[LoadRun], list[LoadRun]] = ([], [])
    for repeat in range(-1, repeats):
        # Who goes first alternates, so neither always finds the warmer cache.
        for index in (0, 1) if repeat % 2 else (1, 0):
            raise_if_cancelled(should_cancel)
            run = run_load(models[index], point, new_tokens)
            if repeat >= 0:
                runs[index].append(run)
    peaks = []
    for model in models:
        raise_if_cancelled(should_cancel)
        peaks.append(peak_bytes(model, point, new_tokens))
    dense, compressed = runs
    sequences = point.batch_size
    return LoadReport(
        batch_size=sequences,
        context_length=point.context_length,
        new_tokens=new_tokens,
        repeats=repeats,
        prefill=compared_rates(
            [run.prefill for run in dense],
            [run.prefill for run in compressed],
            sequences * point.context_length,
        ),
        decode=compared_rates(
            [run.decode for run in dense],
            [run.decode for run in compressed],
            sequences * new_tokens,
        ),
        first_token=compared_seconds(
            [run.first_token for run in dense], [run.first_token for run in compressed]
        ),
        peak_memory=BytesComparison(dense=peaks[0], compressed=peaks[1]),
        cache_per_token=BytesComparison(
            dense=dense[0].cache_per_token, compressed=compressed[0].cache_per_token
        ),
    )


@torch.inference_mode()
def run_load(model: PreTrainedModel, point: SpeedPoint, new_tokens: int) -> LoadRun:
    """Read prompts, choose each sequence's first token, then decode given tokens one by one.

    Args:
        model: a causal language model; its mode is restored.
        point: how many prompts, and how long.
        new_tokens: decoded behind each, at least 1.
    """
    tokens = _tokens(model, point, new_tokens)
    was_training = model.training
    model.train(False)
    try:
        return _run(model, tokens, point.context_length)
    finally:
        model.train(was_training)


def _run(model: PreTrainedModel, tokens: Tensor, prompt: int) -> LoadRun:
    """Both phases with (batch, prompt + new) tokens."""
    started = _now(model)
    output: Any = model(input_ids=tokens[:, :prompt], use_cache=True, logits_to_keep=1)
    read = _now(model)
    output.logits[:, -1].argmax(-1).tolist()
    answered = time.perf_counter()
    cache = output.past_key_values
    began = _now(model)
    decode_given(model, tokens, prompt, cache)
    ended = _now(model)
    return LoadRun(
        prefill=read - started,
        first_token=answered - started,
        decode=ended - began,
        cache_per_token=_cache_bytes(cache) / tokens.numel(),
    )


def peak_bytes(model: PreTrainedModel, point: SpeedPoint, new_tokens: int) -> int:
    """The weights, and the most that a run takes besides: activations, cache, logits."""
    with PeakMemory(model.device) as peak:
        run_load(model, point, new_tokens)
    weights = {one.data_ptr(): one.nbytes for one in (*model.parameters(), *model.buffers())}
    return sum(weights.values()) + peak.growth


def _cache_bytes(cache: Any) -> int:
    """Of the tensors as they are: a window keeps fewer tokens, a removed attention none."""
    kept = (
        tensor
        for layer in cache.layers
        for tensor in (layer.keys, layer.values)
        if tensor is not None
    )
    return sum(tensor.nbytes for tensor in kept)


def _tokens(model: PreTrainedModel, point: SpeedPoint, new_tokens: int) -> Tensor:
    """Any tokens, the same for every model of a vocabulary: (batch, context + new)."""
    generator = torch.Generator().manual_seed(0)
    shape = (point.batch_size, point.context_length + new_tokens)
    return torch.randint(model.config.vocab_size, shape, generator=generator).to(model.device)


def _now(model: PreTrainedModel) -> float:
    """Seconds, after all queued work is done."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()
