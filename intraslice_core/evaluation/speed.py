"""Decode and prefill speed in tokens/s of both models, for the whole model and by part.

The models alternate within each repeat, so that a busy machine slows both. A ratio is the median of
the repeats' ratios, not a ratio of medians. On a GPU times are those of CUDA events.

No CUDA graphs are used: transformers captures them by compiling a forward pass with a static cache,
which takes minutes for each model and differs silently where the first layer has no attention
(docs/design/targets.md). Decoding a few sequences is therefore bound by the launches of kernels,
for both models alike.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from intraslice_core.evaluation.clock import DeviceClock, Instant, seconds_between
from intraslice_core.progress import CancellationCheck, never_cancelled, raise_if_cancelled
from intraslice_core.reports.schema import (
    PartSpeed,
    PhaseComparison,
    SecondsComparison,
    SpeedReport,
)
from intraslice_core.substeps import report_substep


def compared_rates(dense: list[float], compressed: list[float], tokens: int) -> PhaseComparison:
    """Compare the tokens/s of paired repeats, given their seconds."""
    dense_rates = [tokens / seconds for seconds in dense]
    compressed_rates = [tokens / seconds for seconds in compressed]
    return PhaseComparison(
        dense=statistics.median(dense_rates),
        compressed=statistics.median(compressed_rates),
        dense_spread=_spread(dense_rates),
        compressed_spread=_spread(compressed_rates),
        ratio=_paired_ratio(dense_rates, compressed_rates),
    )


def compared_seconds(dense: list[float], compressed: list[float]) -> SecondsComparison:
    """Compare the seconds of paired repeats."""
    return SecondsComparison(
        dense=statistics.median(dense),
        compressed=statistics.median(compressed),
        dense_spread=_spread(dense),
        compressed_spread=_spread(compressed),
        ratio=_paired_ratio(dense, compressed),
    )


def _paired_ratio(dense: list[float], compressed: list[float]) -> float:
    """Return the median of the repeats' ratios, as a disturbed repeat slows both models."""
    pairs = zip(compressed, dense, strict=True)
    return statistics.median(after / before for after, before in pairs)


def _spread(values: list[float]) -> float:
    """Return the interquartile range; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low


_MODEL_NAMES = ("dense", "compressed")
Part = Literal["whole", "layers", "attention", "mlp"]
_PARTS: tuple[Part, ...] = ("whole", "layers", "attention", "mlp")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Timed workload: prefill of a prompt, then decoding token by token."""

    batch_size: int
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True, kw_only=True)
class PhaseSeconds:
    """Seconds of one run, by phase and part."""

    prefill: dict[Part, float]
    decode: dict[Part, float]


class _Stopwatch:
    """Sum of the seconds spent inside modules, by part; modules of one part do not nest."""

    def __init__(self, device: torch.device) -> None:
        self.clock = DeviceClock(device)
        self._started: dict[Part, Instant] = {}
        self._spans: dict[Part, list[tuple[Instant, Instant]]] = defaultdict(list)

    def start(self, part: Part) -> None:
        self._started[part] = self.clock.now()

    def stop(self, part: Part) -> None:
        self._spans[part].append((self._started.pop(part), self.clock.now()))

    def take(self) -> dict[Part, float]:
        """Return the sums so far and reset them to zero."""
        spans, self._spans = self._spans, defaultdict(list)
        return {part: sum(seconds_between(*span) for span in own) for part, own in spans.items()}


def compare_speed(
    dense: PreTrainedModel,
    compressed: PreTrainedModel,
    *,
    batch_size: int,
    prompt_tokens: int,
    new_tokens: int,
    repeats: int,
    should_cancel: CancellationCheck = never_cancelled,
) -> SpeedReport:
    """Time both models alternately, after one warm-up run each.

    Args:
        dense: the dense model.
        compressed: the compressed model, on the same device.
        batch_size: number of sequences processed at once.
        prompt_tokens: prefill tokens per sequence.
        new_tokens: decoded tokens per sequence.
        repeats: timed runs of each model, at least 1.
        should_cancel: called before each run.

    Returns:
        Tokens/s of the whole model, and of the attention modules, the MLP modules and the decoder
        layers as if nothing else ran. A part that one model lacks is None.

    Raises:
        CompressionCancelledError: if the run is cancelled.
    """
    work = Workload(batch_size=batch_size, prompt_tokens=prompt_tokens, new_tokens=new_tokens)
    models = (dense, compressed)
    runs: tuple[list[PhaseSeconds], list[PhaseSeconds]] = ([], [])
    for repeat in range(-1, repeats):
        # The first model alternates, so that neither always profits from the warmer cache.
        for index in (0, 1) if repeat % 2 else (1, 0):
            raise_if_cancelled(should_cancel)
            report_substep(f"run {repeat + 2}/{repeats + 1} of the {_MODEL_NAMES[index]} model")
            seconds = time_model(models[index], work)
            if repeat >= 0:
                runs[index].append(seconds)
    whole, layers, attention, mlp = (_part_speed(part, *runs, work) for part in _PARTS)
    if whole is None:
        raise ValueError(f"repeats must be at least 1, not {repeats}")
    return SpeedReport(
        batch_size=batch_size,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        repeats=repeats,
        whole=whole,
        layers=layers,
        attention=attention,
        mlp=mlp,
    )


@torch.inference_mode()
def time_model(model: PreTrainedModel, work: Workload) -> PhaseSeconds:
    """Time the whole model undisturbed, then once more with a stopwatch at every module."""
    generator = torch.Generator().manual_seed(0)
    shape = (work.batch_size, work.prompt_tokens + work.new_tokens)
    tokens = torch.randint(model.config.vocab_size, shape, generator=generator)
    tokens = tokens.to(model.device)
    was_training = model.training
    model.train(False)
    try:
        whole = _time_phases(model, tokens, work.prompt_tokens, _Stopwatch(model.device))
        watch = _Stopwatch(model.device)
        with _timing_hooks(model, watch):
            parts = _time_phases(model, tokens, work.prompt_tokens, watch)
    finally:
        model.train(was_training)
    return PhaseSeconds(
        prefill={**parts.prefill, "whole": whole.prefill["whole"]},
        decode={**parts.decode, "whole": whole.decode["whole"]},
    )


def _time_phases(
    model: PreTrainedModel, tokens: Tensor, prompt: int, watch: _Stopwatch
) -> PhaseSeconds:
    """Time the prefill of (batch, prompt) and the decoding of the rest of (batch, prompt + new)."""
    watch.clock.settle()
    watch.start("whole")
    output: Any = model(input_ids=tokens[:, :prompt], use_cache=True, logits_to_keep=1)
    watch.stop("whole")
    prefill = watch.take()
    cache = output.past_key_values
    watch.start("whole")
    decode_given(model, tokens, prompt, cache)
    watch.stop("whole")
    return PhaseSeconds(prefill=prefill, decode=watch.take())


def decode_given(model: PreTrainedModel, tokens: Tensor, prompt: int, cache: Any) -> None:
    """Decode the columns after the prompt of (batch, prompt + new) tokens one by one.

    The tokens are given, so that sampling costs nothing and all models do equal work.
    """
    for column in range(prompt, tokens.shape[1]):
        model(
            input_ids=tokens[:, column : column + 1],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )


@contextmanager
def _timing_hooks(model: PreTrainedModel, watch: _Stopwatch) -> Iterator[None]:
    """Time the decoder layers and their modules with hooks inside a `with` block."""
    handles = []
    for part, module in _timed_modules(model):

        def start(*_: Any, part: Part = part) -> None:
            watch.start(part)

        def stop(*_: Any, part: Part = part) -> None:
            watch.stop(part)

        handles += [module.register_forward_pre_hook(start), module.register_forward_hook(stop)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _timed_modules(model: PreTrainedModel) -> Iterator[tuple[Part, nn.Module]]:
    """Yield the decoder layers and their modules; removed modules are None and are skipped."""
    trunk: Any = model.base_model
    for layer in trunk.layers:
        yield "layers", layer
        if layer.self_attn is not None:
            yield "attention", layer.self_attn
        if layer.mlp is not None:
            yield "mlp", layer.mlp


def _part_speed(
    part: Part, dense: Sequence[PhaseSeconds], compressed: Sequence[PhaseSeconds], work: Workload
) -> PartSpeed | None:
    """Compare both phases of one part; return None where a model lacks it."""
    if not all(part in run.prefill for run in (*dense, *compressed)) or not dense:
        return None
    return PartSpeed(
        prefill=compared_rates(
            [run.prefill[part] for run in dense],
            [run.prefill[part] for run in compressed],
            work.batch_size * work.prompt_tokens,
        ),
        decode=compared_rates(
            [run.decode[part] for run in dense],
            [run.decode[part] for run in compressed],
            work.batch_size * work.new_tokens,
        ),
    )
