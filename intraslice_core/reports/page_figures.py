"""Charts of the report page, each with its data as a table; charts without data are left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from intraslice_core.plan import LayerPlan
from intraslice_core.reports.chart import (
    Axis,
    AxisOf,
    Chart,
    Point,
    Series,
    Style,
    count_axis,
    draw,
    layer_axis,
    linear_axis,
    log_axis,
)
from intraslice_core.reports.formatting import Table
from intraslice_core.reports.page_contents import ModelResult
from intraslice_core.reports.plots import shape_plot
from intraslice_core.reports.quantities import count, number, percent, size, times
from intraslice_core.reports.references import public_reference
from intraslice_core.reports.schema import (
    AllocationReport,
    CompressionReport,
    LayerReport,
    LossPoint,
    ModuleReport,
    TrialReport,
)

_ABSENT = "–"  # noqa: RUF001  # shown for missing values in all tables
_NAMES = {"attention": "attention", "mlp": "MLP"}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Chart with a caption and its data as a table."""

    title: str
    caption: str
    svg: Markup
    table: Table
    wide: bool = False


def shapes(report: CompressionReport) -> Figure:
    """Return the plot of the retained sizes of every layer."""
    plans = [("dense", report.geometry.dense_layer())]
    plans += [(str(index), plan) for index, plan in enumerate(report.plan.layers)]
    columns: tuple[str, ...]
    columns = ("layer", "query heads", "KV heads", "q/k width", "value width", "MLP width")
    residual = [report.plan.residual_sizes(plan, report.geometry) for _, plan in plans]
    columns += tuple(residual[0])
    rows = [
        (*_shape_row(name, plan), *(f"{size:,}" for size in sizes.values()))
        for (name, plan), sizes in zip(plans, residual, strict=True)
    ]
    return Figure(
        title="Retained size by layer",
        caption="Bars show the retained fraction of the dense size; × marks a removed module.",  # noqa: RUF001
        svg=shape_plot(report, inline=True),
        table=Table(columns=columns, rows=tuple(rows)),
        wide=True,
    )


def _shape_row(name: str, plan: LayerPlan) -> tuple[str, ...]:
    return (
        name,
        f"{plan.num_attention_heads:,}",
        f"{plan.num_key_value_heads:,}",
        f"{plan.qk_head_dim:,}",
        f"{plan.v_head_dim:,}",
        f"{plan.intermediate_size:,}",
    )


# -- by layer ------------------------------------------------------------------------------------


_REFIT_MEASURES: tuple[tuple[str, str, AxisOf, Callable[[ModuleReport], float | None]], ...] = (
    (
        "Explained energy",
        "Retained fraction of the energy of inner activations, or of a sliced residual stream; 1 "
        "means that nothing was lost.",
        linear_axis,
        lambda module: module.explained_energy,
    ),
    (
        "Relative error",
        "‖output − target‖² / ‖target‖² on the calibration tokens; 0 is exact.",  # noqa: RUF001
        log_axis,
        lambda module: module.relative_error,
    ),
)
"""Title, caption, axis and value of each measure of the compensation."""


def refits(report: CompressionReport) -> list[Figure]:
    """Return the charts of explained energy, relative error and damping by layer."""
    figures = []
    for title, caption, axis_of, value in _REFIT_MEASURES:
        series = [_module_series(report.layers, name, value) for name in _NAMES]
        figures.append(_by_layer(report, title, caption, axis_of, series))
    caption = "Damping λ of each factorisation, relative to the scale of its matrix."
    figures.append(_by_layer(report, "Damping", caption, log_axis, _dampings(report.layers)))
    return [figure for figure in figures if figure is not None]


def _module_series(
    layers: Sequence[LayerReport], name: str, value_of: Callable[[ModuleReport], float | None]
) -> Series:
    values = [(layer.layer, value_of(getattr(layer, name))) for layer in layers]
    return _series(_NAMES[name], [(layer, value) for layer, value in values if value is not None])


def _dampings(layers: Sequence[LayerReport]) -> list[Series]:
    by_name: dict[str, list[tuple[int, float]]] = {}
    for name in _NAMES:
        for layer in layers:
            for kind, value in getattr(layer, name).damping.items():
                by_name.setdefault(f"{_NAMES[name]}, {kind}", []).append((layer.layer, value))
    return [_series(name, values) for name, values in by_name.items()]


def _series(name: str, values: Sequence[tuple[int, float]]) -> Series:
    return Series(
        name=name,
        points=tuple(
            Point(x=layer, y=value, text=f"layer {layer}, {name}: {number(value)}")
            for layer, value in values
        ),
    )


def _by_layer(
    report: CompressionReport,
    title: str,
    caption: str,
    axis_of: AxisOf,
    series: Sequence[Series],
    style: Style = "lines",
) -> Figure | None:
    nonempty = tuple(drawn for drawn in series if drawn.points)
    if not nonempty:
        return None
    label = title.lower() if len(nonempty) > 1 else f"{title.lower()}, {nonempty[0].name}"
    chart = Chart(
        title=f"{title} by layer",
        description=f"{caption} {_ranges(nonempty)}",
        x=layer_axis(report.geometry.num_hidden_layers),
        y=axis_of(label, [point.y for drawn in nonempty for point in drawn.points]),
        series=nonempty,
        style=style,
    )
    return Figure(title=chart.title, caption=caption, svg=draw(chart), table=_layer_table(nonempty))


def _ranges(series: Sequence[Series]) -> str:
    """Describe the range of each series, for readers who do not see the chart."""
    ranges = (
        f"{drawn.name} from {number(min(point.y for point in drawn.points))} "
        f"to {number(max(point.y for point in drawn.points))}"
        for drawn in series
    )
    return f"{'; '.join(ranges)}."


def _layer_table(series: Sequence[Series]) -> Table:
    columns = [{round(point.x): number(point.y) for point in drawn.points} for drawn in series]
    layers = sorted({layer for column in columns for layer in column})
    return Table(
        columns=("layer", *(drawn.name for drawn in series)),
        rows=tuple(
            (str(layer), *(column.get(layer, _ABSENT) for column in columns)) for layer in layers
        ),
    )


# -- predictions ---------------------------------------------------------------------------------


def predictions(report: CompressionReport) -> list[Figure]:
    """Return the charts of predicted losses and of trial cuts."""
    allocation = report.allocation
    if allocation is None:
        return []
    figures = [_trials(allocation), _predicted(report, allocation)]
    return [figure for figure in figures if figure is not None]


def _predicted(report: CompressionReport, allocation: AllocationReport) -> Figure | None:
    if not allocation.layers:
        return None
    allocator: str = f"{allocation.requested}, which were not used"
    if not allocation.fell_back:
        allocator = allocation.allocator
    caption = f"Predicted loss increase in nats for the shapes allocated by {allocator}."
    series = [
        _series("attention", [(layer.layer, layer.attention) for layer in allocation.layers]),
        _series("MLP", [(layer.layer, layer.mlp) for layer in allocation.layers]),
    ]

    def axis_from_zero(label: str, values: Sequence[float]) -> Axis:
        return linear_axis(label, values, include=(0.0,))

    return _by_layer(report, "Predicted loss", caption, axis_from_zero, series, style="bars")


def _trials(allocation: AllocationReport) -> Figure | None:
    if not allocation.trials:
        return None
    caption = _trials_caption(allocation)
    chart = Chart(
        title="Predicted and measured loss of the trial cuts",
        description=caption,
        x=linear_axis("predicted", [t.predicted for t in allocation.trials], include=(0.0,)),
        y=linear_axis("measured", [t.measured for t in allocation.trials], include=(0.0,)),
        series=tuple(
            Series(name=name, points=points)
            for name, points in _trial_points(allocation.trials)
            if points
        ),
        style="dots",
        diagonal=True,
    )
    return Figure(
        title=chart.title,
        caption=caption,
        svg=draw(chart),
        table=Table(
            columns=("layer and module", "removed", "predicted", "measured"),
            rows=tuple(_trial_row(trial) for trial in allocation.trials),
        ),
    )


def _trials_caption(allocation: AllocationReport) -> str:
    caption = "Loss increase in nats of reducing one module while all others stay dense."
    if allocation.rank_correlation is not None:
        caption += (
            f" Rank correlation {allocation.rank_correlation:.2f}, with each prediction scaled by"
            " the module's other trials: at 1 the predictions order the modules as the"
            " measurements do, at 0 they carry no information."
        )
    return f"{caption} On the dashed line both are equal."


def _trial_points(trials: Sequence[TrialReport]) -> Iterator[tuple[str, tuple[Point, ...]]]:
    """Yield the points of each kind of module."""
    for module, name in _NAMES.items():
        yield name, tuple(_trial_point(trial) for trial in trials if trial.module == module)


def _trial_row(trial: TrialReport) -> tuple[str, ...]:
    return (
        f"{trial.layer}, {_NAMES[trial.module]}",
        percent(trial.cut),
        number(trial.predicted),
        number(trial.measured),
    )


def _trial_point(trial: TrialReport) -> Point:
    text = (
        f"layer {trial.layer}, {_NAMES[trial.module]}, {percent(trial.cut)} removed: "
        f"predicted {number(trial.predicted)}, measured {number(trial.measured)}"
    )
    return Point(x=trial.predicted, y=trial.measured, text=text)


# -- recovery fine-tuning -------------------------------------------------------------------------


def recovery(report: CompressionReport) -> list[Figure]:
    """Return the chart of the fine-tuning loss."""
    if report.recovery is None or not report.recovery.losses:
        return []
    losses = report.recovery.losses
    caption = "Fine-tuning loss in nats per token, as a mean since the previous point."
    series = Series(name="loss", points=tuple(map(_loss_point, losses)))
    chart = Chart(
        title="Fine-tuning loss",
        description=f"{caption} {_ranges([series])}",
        x=count_axis("tokens", [point.x for point in series.points]),
        y=linear_axis("nats per token", [point.y for point in series.points]),
        series=(series,),
        style="dots",
    )
    rows = tuple((f"{point.tokens:,}", number(point.loss)) for point in losses)
    table = Table(columns=("tokens", "loss"), rows=rows)
    return [Figure(title=chart.title, caption=caption, svg=draw(chart), table=table)]


def _loss_point(point: LossPoint) -> Point:
    text = f"{point.tokens:,} tokens: {number(point.loss)} nats per token"
    return Point(x=point.tokens, y=point.loss, text=text)


# -- other jobs ----------------------------------------------------------------------------------


def quality_by_size(results: Sequence[ModelResult]) -> Figure | None:
    """Return the chart of all jobs scored on the same tokens; None without another such job."""
    scored = [job for job in results if job.is_comparable and job.perplexity_ratio is not None]
    this = next((job for job in scored if job.is_this), None)
    if this is None or len(scored) < 2:
        return None
    others = tuple(_result_point(job) for job in scored if not job.is_this)
    series = (
        Series(name="other jobs", points=others),
        Series(name="this job", points=(_result_point(this),)),
    )
    text = public_reference(this.text or "")
    caption = f"Perplexity on {text}, compressed / dense; lower and further left is better."
    points = [point for drawn in series for point in drawn.points]
    chart = Chart(
        title="Quality and size of this model's jobs",
        description=caption,
        x=count_axis("parameters", [point.x for point in points]),
        y=linear_axis("perplexity, compressed / dense", [point.y for point in points]),
        series=series,
        style="dots",
    )
    return Figure(
        title=chart.title, caption=caption, svg=draw(chart), table=results_table(results), wide=True
    )


def _result_point(result: ModelResult) -> Point:
    ratio = result.perplexity_ratio or 0.0
    text = f"{result.job_id}: {count(result.params_after)} parameters, perplexity {times(ratio)}"
    return Point(x=result.params_after, y=ratio, text=text)


def results_table(results: Sequence[ModelResult]) -> Table:
    """Return all jobs, including those scored on other texts or on none."""
    return Table(
        columns=(
            *("job", "created", "labels", "method", "removed", "parameters", "weights"),
            *("scored on", "perplexity", "KL", "top-1", "prompt processing", "generation"),
        ),
        rows=tuple(_result_row(result) for result in results),
        links=tuple("" if result.is_this else result.url for result in results),
    )


def _result_row(result: ModelResult) -> tuple[str, ...]:
    name = f"{result.job_id} (this job)" if result.is_this else result.job_id
    removed = result.removed_fraction
    return (
        name,
        f"{result.created_at:%Y-%m-%d %H:%M}",
        ", ".join(f"{key} = {value}" for key, value in result.labels.items()) or _ABSENT,
        f"{result.method}, {result.allocation}",
        _ABSENT if removed is None else percent(removed),
        count(result.params_after),
        size(result.bytes_after),
        public_reference(result.text) if result.text else _ABSENT,
        _times(result.perplexity_ratio),
        _ABSENT if result.kl is None else number(result.kl),
        _ABSENT if result.top1_agreement is None else percent(result.top1_agreement),
        _times(result.prefill_ratio),
        _times(result.decode_ratio),
    )


def _times(ratio: float | None) -> str:
    return _ABSENT if ratio is None else times(ratio)
