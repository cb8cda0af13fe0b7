"""The charts of a page, each with its numbers in a table; without data there is no chart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

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
from intraslice_core.reports.formatting import Table, count, number, percent, size, times
from intraslice_core.reports.page_contents import ModelResult
from intraslice_core.reports.plots import shape_plot
from intraslice_core.reports.schema import (
    AllocationReport,
    CompressionReport,
    LayerReport,
    ModuleReport,
    TrialReport,
)

_ABSENT = "–"  # noqa: RUF001  # what is not there is a dash in every table
_NAMES = {"attention": "attention", "mlp": "MLP"}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A drawing, what it shows, and the same as a table."""

    title: str
    caption: str
    svg: Markup
    table: Table
    wide: bool = False


def shapes(report: CompressionReport) -> Figure:
    """What every layer keeps."""
    plans = [("dense", report.geometry.dense_layer())]
    plans += [(str(index), plan) for index, plan in enumerate(report.plan.layers)]
    return Figure(
        title="Sizes by layer, against dense",
        caption="A bar is the part of the dense size that is kept; × is a module that is gone.",  # noqa: RUF001
        svg=shape_plot(report, inline=True),
        table=Table(
            columns=("layer", "query heads", "KV heads", "q/k width", "value width", "MLP width"),
            rows=tuple(
                (
                    name,
                    f"{plan.num_attention_heads:,}",
                    f"{plan.num_key_value_heads:,}",
                    f"{plan.qk_head_dim:,}",
                    f"{plan.v_head_dim:,}",
                    f"{plan.intermediate_size:,}",
                )
                for name, plan in plans
            ),
        ),
        wide=True,
    )


# -- by layer ------------------------------------------------------------------------------------


def refits(report: CompressionReport) -> list[Figure]:
    """What the solves of all layers had to say."""
    measures: list[tuple[str, str, AxisOf, Callable[[ModuleReport], float | None]]] = [
        (
            "Explained energy",
            "The part of the inner activations' energy that was kept: 1 is all of it.",
            linear_axis,
            lambda module: module.explained_energy,
        ),
        (
            "Relative error",
            "‖output − target‖² / ‖target‖² on the calibration tokens: 0 is exact.",  # noqa: RUF001
            log_axis,
            lambda module: module.relative_error,
        ),
    ]
    found = []
    for title, caption, axis_of, value in measures:
        series = [_of_module(report.layers, name, value) for name in _NAMES]
        found.append(_by_layer(report, title, caption, axis_of, series))
    caption = "λ by factorisation, relative to each one's own scale."
    found.append(_by_layer(report, "Damping", caption, log_axis, _dampings(report.layers)))
    return [one for one in found if one is not None]


def _of_module(
    layers: Sequence[LayerReport], name: str, value: Callable[[ModuleReport], float | None]
) -> Series:
    values = [(one.layer, value(getattr(one, name))) for one in layers]
    return _series(_NAMES[name], [(layer, found) for layer, found in values if found is not None])


def _dampings(layers: Sequence[LayerReport]) -> list[Series]:
    found: dict[str, list[tuple[int, float]]] = {}
    for name in _NAMES:
        for one in layers:
            for kind, value in getattr(one, name).damping.items():
                found.setdefault(f"{_NAMES[name]}, {kind}", []).append((one.layer, value))
    return [_series(name, values) for name, values in found.items()]


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
    drawn = tuple(one for one in series if one.points)
    if not drawn:
        return None
    label = title.lower() if len(drawn) > 1 else f"{title.lower()}, {drawn[0].name}"
    chart = Chart(
        title=f"{title} by layer",
        description=f"{caption} {_range(drawn)}",
        x=layer_axis(report.geometry.num_hidden_layers),
        y=axis_of(label, [point.y for one in drawn for point in one.points]),
        series=drawn,
        style=style,
    )
    return Figure(title=chart.title, caption=caption, svg=draw(chart), table=_layer_table(drawn))


def _range(series: Sequence[Series]) -> str:
    """A drawing in words, for those who do not see it."""
    ranges = (
        f"{one.name} from {number(min(p.y for p in one.points))} "
        f"to {number(max(p.y for p in one.points))}"
        for one in series
    )
    return f"{'; '.join(ranges)}."


def _layer_table(series: Sequence[Series]) -> Table:
    columns = [{round(point.x): number(point.y) for point in one.points} for one in series]
    layers = sorted({layer for column in columns for layer in column})
    return Table(
        columns=("layer", *(one.name for one in series)),
        rows=tuple(
            (str(layer), *(column.get(layer, _ABSENT) for column in columns)) for layer in layers
        ),
    )


# -- predictions ---------------------------------------------------------------------------------


def predictions(report: CompressionReport) -> list[Figure]:
    """What the allocator thought, and what trials showed."""
    allocation = report.allocation
    if allocation is None:
        return []
    found = [_trials(allocation), _predicted(report, allocation)]
    return [one for one in found if one is not None]


def _predicted(report: CompressionReport, allocation: AllocationReport) -> Figure | None:
    if not allocation.layers:
        return None
    whose: str = f"{allocation.requested}, which were not taken"
    if not allocation.fell_back:
        whose = allocation.allocator
    caption = f"Loss increase in nats that was predicted for the shapes of {whose}."
    series = [
        _series("attention", [(one.layer, one.attention) for one in allocation.layers]),
        _series("MLP", [(one.layer, one.mlp) for one in allocation.layers]),
    ]

    def axis_from_zero(label: str, values: Sequence[float]) -> Axis:
        return linear_axis(label, values, include=(0.0,))

    return _by_layer(report, "Predicted loss", caption, axis_from_zero, series, style="bars")


def _trials(allocation: AllocationReport) -> Figure | None:
    if not allocation.trials:
        return None
    series = tuple(
        Series(
            name=shown, points=tuple(_trial(one) for one in allocation.trials if one.module == n)
        )
        for n, shown in _NAMES.items()
    )
    caption = "One module cut for trial, all others left alone; loss increase in nats."
    if allocation.rank_correlation is not None:
        caption += (
            f" Rank correlation {allocation.rank_correlation:.2f}, after each prediction was scaled"
            " by the module's other trials: 1 orders modules as measuring does, 0 says nothing."
        )
    chart = Chart(
        title="Predicted against measured loss of the trials",
        description=f"{caption} On the dashed line both are equal.",
        x=linear_axis("predicted", [one.predicted for one in allocation.trials], include=(0.0,)),
        y=linear_axis("measured", [one.measured for one in allocation.trials], include=(0.0,)),
        series=tuple(one for one in series if one.points),
        style="dots",
        diagonal=True,
    )
    return Figure(
        title=chart.title,
        caption=f"{caption} On the dashed line both are equal.",
        svg=draw(chart),
        table=Table(
            columns=("layer and module", "cut", "predicted", "measured"),
            rows=tuple(
                (
                    f"{one.layer}, {_NAMES[one.module]}",
                    percent(one.cut),
                    number(one.predicted),
                    number(one.measured),
                )
                for one in allocation.trials
            ),
        ),
    )


def _trial(trial: TrialReport) -> Point:
    text = (
        f"layer {trial.layer}, {_NAMES[trial.module]}, {percent(trial.cut)} cut: "
        f"predicted {number(trial.predicted)}, measured {number(trial.measured)}"
    )
    return Point(x=trial.predicted, y=trial.measured, text=text)


# -- recovery -------------------------------------------------------------------------------------


def recovery(report: CompressionReport) -> list[Figure]:
    """The loss of the training."""
    trained = report.recovery
    if trained is None or not trained.losses:
        return []
    caption = "Mean training loss in nats a token, of the tokens since the point before."
    points = tuple(
        Point(
            x=one.tokens,
            y=one.loss,
            text=f"{one.tokens:,} tokens: {number(one.loss)} nats a token",
        )
        for one in trained.losses
    )
    chart = Chart(
        title="Loss of the training",
        description=f"{caption} {_range([Series(name='loss', points=points)])}",
        x=count_axis("tokens", [one.x for one in points]),
        y=linear_axis("nats a token", [one.y for one in points]),
        series=(Series(name="loss", points=points),),
        style="dots",
    )
    rows = tuple((f"{one.tokens:,}", number(one.loss)) for one in trained.losses)
    return [
        Figure(
            title=chart.title,
            caption=caption,
            svg=draw(chart),
            table=Table(columns=("tokens", "loss"), rows=rows),
        )
    ]


# -- other jobs ----------------------------------------------------------------------------------


def quality_by_size(results: Sequence[ModelResult]) -> Figure | None:
    """Jobs that were scored on the same text as this one; None if it stands alone."""
    scored = [one for one in results if one.is_comparable and one.perplexity_ratio is not None]
    this = next((one for one in scored if one.is_this), None)
    if this is None or len(scored) < 2:
        return None
    series = (
        Series(
            name="earlier jobs", points=tuple(map(_result, (o for o in scored if not o.is_this)))
        ),
        Series(name="this job", points=(_result(this),)),
    )
    caption = f"Perplexity on {this.text}, compressed over dense; further down and left is better."
    points = [point for one in series for point in one.points]
    chart = Chart(
        title="Quality and size of this model's jobs",
        description=caption,
        x=count_axis("parameters", [one.x for one in points]),
        y=linear_axis("perplexity, compressed / dense", [one.y for one in points]),
        series=series,
        style="dots",
    )
    return Figure(
        title=chart.title, caption=caption, svg=draw(chart), table=results_table(results), wide=True
    )


def _result(result: ModelResult) -> Point:
    ratio = result.perplexity_ratio or 0.0
    text = f"{result.job_id}: {count(result.params_after)} parameters, perplexity {times(ratio)}"
    return Point(x=result.params_after, y=ratio, text=text)


def results_table(results: Sequence[ModelResult]) -> Table:
    """All of them, those too that were scored on other texts or on none."""
    return Table(
        columns=(
            *("job", "made", "labels", "method", "removed", "parameters", "weights"),
            *("scored on", "perplexity", "prefill", "decode"),
        ),
        rows=tuple(_result_row(one) for one in results),
        links=tuple("" if one.is_this else one.url for one in results),
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
        result.text or _ABSENT,
        *(
            _ABSENT if ratio is None else times(ratio)
            for ratio in (result.perplexity_ratio, result.prefill_ratio, result.decode_ratio)
        ),
    )
