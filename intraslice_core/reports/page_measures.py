"""Tables and figures of measurements: verification, tasks, loads and spectra."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from intraslice_core.reports.chart import Chart, Point, Series, draw, linear_axis, log_axis
from intraslice_core.reports.formatting import Table
from intraslice_core.reports.page_facts import PAIRED_RATIOS, phase_cells
from intraslice_core.reports.page_figures import Figure
from intraslice_core.reports.plots import LayerSpectrum, spectrum_plot
from intraslice_core.reports.quantities import (
    duration,
    mean_and_error,
    number,
    percent,
    size,
    times,
)
from intraslice_core.reports.schema import (
    BytesComparison,
    CompressionReport,
    LoadReport,
    SecondsComparison,
    TaskComparison,
)
from intraslice_core.reports.tournament import TournamentCandidate


def tournament_note(report: CompressionReport) -> str:
    """Return the reason for the choice of the method and the setting of its trials."""
    chosen = report.tournament
    if chosen is None:
        return ""
    texts = ", ".join(f"{kind}: {tokens:,}" for kind, tokens in chosen.held_out_tokens.items())
    trials = (
        f" Each method was tried with {chosen.calibration_tokens:,} calibration tokens and "
        f"measured on held-out tokens ({texts}), in {duration(chosen.seconds)} together. KL is the "
        "divergence from the dense model: the mean over the kinds of text plus half of the worst. "
        "The standard error is that of the paired difference from the first method."
    )
    return f"{chosen.reason}.{trials if chosen.held_out_tokens else ''}"


def tournament(report: CompressionReport) -> Table | None:
    """Return the methods that were tried by ascending divergence, then the others."""
    chosen = report.tournament
    if chosen is None:
        return None
    kinds = tuple(chosen.held_out_tokens)
    return Table(
        columns=("method", "KL, nats/token", *(f"KL, {kind}" for kind in kinds), "trial", "note"),
        rows=tuple(_tournament_row(candidate, kinds) for candidate in chosen.candidates),
    )


def _tournament_row(candidate: TournamentCandidate, kinds: tuple[str, ...]) -> tuple[str, ...]:
    if candidate.kl is None or candidate.seconds is None:
        return (candidate.method, *[""] * (len(kinds) + 2), f"not tried: {candidate.reason}")
    return (
        candidate.method,
        mean_and_error(candidate.kl, candidate.standard_error),
        *(number(candidate.kl_by_text[kind]) for kind in kinds),
        duration(candidate.seconds),
        "",
    )


def verified(report: CompressionReport) -> Table | None:
    """Return the verified files with their loaders and the largest difference."""
    if not report.verified:
        return None
    return Table(
        columns=("files", "loaded by", "largest difference", "tolerance"),
        rows=tuple(
            (
                verified_files.files,
                ", ".join(verified_files.loaded_by),
                f"{verified_files.max_abs_difference:.2g}",
                f"{verified_files.tolerance:.2g}",
            )
            for verified_files in report.verified
        ),
    )


def tasks(report: CompressionReport) -> Table | None:
    """Return every metric of every task, for both models."""
    if report.evaluation is None or not report.evaluation.tasks:
        return None
    return Table(
        columns=(
            *("task", "metric", "dense", "compressed", "compressed / dense"),
            *("better", "examples", "shots"),
        ),
        rows=tuple(_task_row(task) for task in report.evaluation.tasks),
    )


def _task_row(task: TaskComparison) -> tuple[str, ...]:
    return (
        task.task,
        task.metric,
        mean_and_error(task.dense, task.dense_stderr),
        mean_and_error(task.compressed, task.compressed_stderr),
        times(task.compressed / task.dense) if task.dense else "",
        "higher" if task.higher_is_better else "lower",
        f"{task.examples:,}",
        str(task.shots),
    )


def loads(report: CompressionReport) -> Table | None:
    """Return every measurement under every load."""
    if report.evaluation is None or not report.evaluation.speed_grid:
        return None
    return Table(
        columns=("load", "measurement", "dense", "compressed", "compressed / dense"),
        rows=tuple(row for load in report.evaluation.speed_grid for row in _load_rows(load)),
    )


def loads_setting(report: CompressionReport) -> str:
    """Describe the measurement of the loads."""
    if report.evaluation is None or not report.evaluation.speed_grid:
        return ""
    first = report.evaluation.speed_grid[0]
    return (
        f"Both models alternate, {first.new_tokens} tokens are decoded after each prompt. Values "
        f"are medians over {first.repeats} repeats ± half of the interquartile range. Peak memory "
        f"contains weights, activations and KV cache. {PAIRED_RATIOS}"
    )


def _load_rows(load: LoadReport) -> Iterator[tuple[str, ...]]:
    name = f"{load.batch_size} × {load.context_length:,} tokens"  # noqa: RUF001
    yield (name, "prompt processing, tokens/s", *phase_cells(load.prefill))
    yield (name, "generation, tokens/s", *phase_cells(load.decode))
    yield (name, "time to first token, ms", *_milliseconds(load.first_token))
    yield (name, "peak memory", *_sizes(load.peak_memory))
    yield (name, "KV cache per token", *_sizes(load.cache_per_token))


def _milliseconds(seconds: SecondsComparison) -> tuple[str, str, str]:
    return (
        f"{1000 * seconds.dense:,.1f} ± {500 * seconds.dense_spread:,.1f}",
        f"{1000 * seconds.compressed:,.1f} ± {500 * seconds.compressed_spread:,.1f}",
        times(seconds.ratio),
    )


def _sizes(sizes: BytesComparison) -> tuple[str, str, str]:
    return size(round(sizes.dense)), size(round(sizes.compressed)), times(sizes.ratio)


def speed_ups(report: CompressionReport) -> tuple[Figure, ...]:
    """Return the speed-ups of both phases by context length, with one series per batch size."""
    if report.evaluation is None or not report.evaluation.speed_grid:
        return ()
    grid = report.evaluation.speed_grid
    return (
        _speed_up("Prompt processing", grid, lambda load: load.prefill.ratio),
        _speed_up("Generation", grid, lambda load: load.decode.ratio),
    )


def _speed_up(
    phase: str, grid: tuple[LoadReport, ...], ratio: Callable[[LoadReport], float]
) -> Figure:
    caption = f"{phase} speed, compressed / dense; the compressed model is faster above 1."
    chart = Chart(
        title=f"{phase} speed-up by context length",
        description=caption,
        x=log_axis("context length, tokens", [float(load.context_length) for load in grid]),
        y=linear_axis("compressed / dense", [ratio(load) for load in grid], include=(1.0,)),
        series=_series_by_batch_size(grid, ratio),
        style="dots",
    )
    table = Table(
        columns=("batch size", "context length", "compressed / dense"),
        rows=tuple(
            (str(load.batch_size), f"{load.context_length:,}", times(ratio(load))) for load in grid
        ),
    )
    return Figure(title=chart.title, caption=caption, svg=draw(chart), table=table)


def _series_by_batch_size(
    grid: tuple[LoadReport, ...], ratio: Callable[[LoadReport], float]
) -> tuple[Series, ...]:
    return tuple(
        Series(
            name=f"batch size {batch}",
            points=tuple(_point(load, ratio(load)) for load in grid if load.batch_size == batch),
        )
        for batch in sorted({load.batch_size for load in grid})
    )


def _point(load: LoadReport, ratio: float) -> Point:
    text = f"{load.batch_size} prompts of {load.context_length:,} tokens: {times(ratio)}"
    return Point(x=load.context_length, y=ratio, text=text)


_MEASURES = {
    "eigenvalue": "Eigenvalues of the weighted second moment of the values",
    "loss": "Predicted loss increase of removing the dimension next",
    "score": "Scores by which the method ranks dimensions",
}
_TITLES = {
    "rotary pairs": "Rotary pairs",
    "value dims": "Value dims",
    "MLP neurons": "MLP neurons",
    "attention reads": "Attention reads of the residual stream",
    "attention writes": "Attention writes to the residual stream",
    "MLP reads": "MLP reads of the residual stream",
    "MLP writes": "MLP writes to the residual stream",
}
_LEGEND = (
    "One row per layer; darker cells are larger, on a logarithmic scale. Dimensions right of the "
    "cut were removed and have another colour."
)


def spectra(report: CompressionReport) -> tuple[Figure, ...]:
    """Return one figure for each dimension that was reduced in any layer."""
    by_dimension: dict[str, list[LayerSpectrum]] = {}
    for layer in _layer_spectra(report):
        by_dimension.setdefault(layer.spectrum.dimension, []).append(layer)
    return tuple(
        _spectrum_figure(_TITLES[name], by_dimension[name])
        for name in _TITLES
        if name in by_dimension
    )


def _layer_spectra(report: CompressionReport) -> Iterator[LayerSpectrum]:
    for layer in report.layers:
        for module in (layer.attention, layer.mlp):
            for spectrum in module.spectra:
                yield LayerSpectrum(layer=layer.layer, spectrum=spectrum)


def _spectrum_figure(title: str, layers: list[LayerSpectrum]) -> Figure:
    caption = f"{_MEASURES[layers[0].spectrum.measure]}. {_LEGEND}"
    shares = [layer.spectrum.kept_share for layer in layers]
    description = (
        f"{caption} Layers retain {percent(min(shares))} to {percent(max(shares))} of the sum."
    )
    return Figure(
        title=f"{title}: spectrum and cut",
        caption=caption,
        svg=spectrum_plot(f"{title}: spectrum and cut by layer", description, layers),
        table=Table(
            columns=("layer", "retained", "of", "share of the sum"),
            rows=tuple(_spectrum_row(layer) for layer in layers),
        ),
    )


def _spectrum_row(layer: LayerSpectrum) -> tuple[str, ...]:
    spectrum = layer.spectrum
    return (
        str(layer.layer),
        f"{spectrum.kept:,}",
        f"{spectrum.size:,}",
        percent(spectrum.kept_share),
    )
