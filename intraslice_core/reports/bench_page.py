"""HTML page of a comparison of methods: perplexity by size, with one curve per method."""

from __future__ import annotations

from intraslice_core.config import METHOD_CHOICES, MethodChoice
from intraslice_core.reports.chart import (
    Axis,
    Chart,
    Point,
    Series,
    count_axis,
    draw,
    linear_axis,
    log_axis,
)
from intraslice_core.reports.formatting import Table, rendered
from intraslice_core.reports.page import stylesheet
from intraslice_core.reports.page_figures import Figure
from intraslice_core.reports.quantities import count, duration, number, size
from intraslice_core.reports.references import public_reference
from intraslice_core.reports.sweep import TRADE_OFFS, SweepPoint, SweepReport
from intraslice_core.text_sources import DOMAIN_NAMES

_ABSENT = "–"  # noqa: RUF001  # shown for missing values
_DECADE = 10.0


def bench_page(report: SweepReport) -> str:
    """Render the page as an HTML document; all texts in it are escaped."""
    return str(
        rendered(
            "bench.html.j2",
            model=public_reference(report.model),
            report=report,
            style=stylesheet(),
            cautions=[check.warning for check in report.sizes if not check.equal],
            figures=[_curves(report, text) for text in report.dense_perplexity],
            results=_results(report),
        )
    )


def _curves(report: SweepReport, text: str) -> Figure:
    """Return the chart of one text: a curve for each method, and the dense model as a point."""
    dense = Series(
        name="dense",
        points=(_point("dense", report.params_before, report.dense_perplexity[text]),),
        is_dense=True,
    )
    series = (dense, *(_curve(report, method, text) for method in report.methods))
    series = tuple(drawn for drawn in series if drawn.points)
    points = [point for drawn in series for point in drawn.points]
    caption = (
        f"Perplexity on {text}{_domain(report, text)} by number of parameters; lower and further "
        "left is better."
    )
    chart = Chart(
        title=f"Perplexity on {text}",
        description=caption,
        x=count_axis("parameters", [point.x for point in points]),
        y=_perplexity_axis([point.y for point in points]),
        series=series,
        style="lines",
        curve=True,
    )
    return Figure(
        title=chart.title, caption=caption, svg=draw(chart), table=_series_table(series), wide=True
    )


def _domain(report: SweepReport, text: str) -> str:
    """Return the domain in parentheses; empty where it is unknown or differs between methods."""
    scores = [score for point in report.points for score in point.perplexity if score.text == text]
    domains = {score.domain for score in scores}
    domain = domains.pop() if len(domains) == 1 else None
    return f" ({DOMAIN_NAMES[domain]})" if domain else ""


def _curve(report: SweepReport, method: MethodChoice, text: str) -> Series:
    """Return the results of one method, by ascending size."""
    points = [
        _point(f"{method}, ratio {point.ratio:g}", point.params_after, score.compressed)
        for point in report.points
        if point.method == method and point.params_after is not None
        for score in point.perplexity
        if score.text == text
    ]
    ordered = sorted(points, key=lambda point: point.x)
    return Series(name=METHOD_CHOICES[method].title, points=tuple(ordered))


def _point(name: str, params: int, perplexity: float) -> Point:
    text = f"{name}: {count(params)} parameters, perplexity {number(perplexity)}"
    return Point(x=float(params), y=perplexity, text=text)


def _perplexity_axis(values: list[float]) -> Axis:
    if max(values) < _DECADE * min(values):
        return linear_axis("perplexity", values)
    return log_axis("perplexity", values)


def _series_table(series: tuple[Series, ...]) -> Table:
    return Table(
        columns=("method", "parameters", "perplexity"),
        rows=tuple(
            (drawn.name, f"{point.x:,.0f}", f"{point.y:,.3f}")
            for drawn in series
            for point in drawn.points
        ),
    )


# -- all results ---------------------------------------------------------------------------------


def _results(report: SweepReport) -> Table:
    """Return one row for the dense model and one for each result, by ratio."""
    texts, tasks = list(report.dense_perplexity), _tasks(report)
    measured = (*(f"perplexity, {text}" for text in texts), *(", ".join(task) for task in tasks))
    dense = (
        *(f"{value:,.3f}" for value in report.dense_perplexity.values()),
        *(f"{value:.4f}" for value in tasks.values()),
    )
    ends = ("prompt processing", "generation", "seconds", "peak memory", "trade-off")
    before = ("dense", "", f"{report.params_before:,}", size(report.bytes_before))
    rows = (
        (
            *_sizes(point),
            *_quality(point, texts, list(tasks)),
            *_cost(point),
            _trade_off(report, point),
        )
        for point in sorted(report.points, key=lambda point: point.ratio)
    )
    return Table(
        columns=("method", "ratio", "parameters", "weights", *measured, *ends),
        rows=((*before, *dense, *("" for _ in ends)), *rows),
    )


def _tasks(report: SweepReport) -> dict[tuple[str, str], float]:
    """Return the dense model's score by task and metric."""
    return {(task.task, task.metric): task.dense for point in report.points for task in point.tasks}


def _sizes(point: SweepPoint) -> tuple[str, ...]:
    method = METHOD_CHOICES[point.method].title if point.method else _ABSENT
    if point.params_after is None or point.bytes_after is None:
        return (method, f"{point.ratio:g}", "rejected", _ABSENT)
    return (method, f"{point.ratio:g}", f"{point.params_after:,}", size(point.bytes_after))


def _quality(point: SweepPoint, texts: list[str], tasks: list[tuple[str, str]]) -> tuple[str, ...]:
    perplexities = {score.text: f"{score.compressed:,.3f}" for score in point.perplexity}
    scores = {(task.task, task.metric): f"{task.compressed:.4f}" for task in point.tasks}
    return (
        *(perplexities.get(text, _ABSENT) for text in texts),
        *(scores.get(task, _ABSENT) for task in tasks),
    )


def _cost(point: SweepPoint) -> tuple[str, ...]:
    speed, memory = point.speed, point.peak_memory_bytes
    return (
        f"{speed.prefill.ratio:.2f}" if speed else _ABSENT,
        f"{speed.decode.ratio:.2f}" if speed else _ABSENT,
        _ABSENT if point.seconds is None else duration(point.seconds),
        _ABSENT if memory is None else size(memory),
    )


def _trade_off(report: SweepReport, point: SweepPoint) -> str:
    return TRADE_OFFS[report.is_dominated(point)] or _ABSENT
