"""What every layer keeps, drawn: a self-contained SVG that needs no script, font or network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from intraslice_core.plan import LayerPlan, ModelPlan
from intraslice_core.reports.schema import CompressionReport
from intraslice_core.reports.template import rendered

LEFT, TOP, RIGHT, BOTTOM = 128.0, 58.0, 16.0, 40.0
ROW, GAP = 84.0, 22.0
"""Height of a row, and the space below it."""
_WIDEST_BAR = 22.0
_NARROWEST_PLOT = 480.0
_MOST_LABELS = 16
_SIZE: dict[str, Callable[[LayerPlan], int]] = {
    "query heads": lambda layer: layer.num_attention_heads,
    "rotary pairs": lambda layer: layer.qk_pairs,
    "value dims": lambda layer: layer.v_head_dim,
    "MLP width": lambda layer: layer.intermediate_size,
}
_COLOURS = ("#4477aa", "#228833", "#ccbb44", "#aa3377")
"""Told apart with any kind of sight."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One layer's size in one dimension; `removed` ones have no height to see."""

    x: float
    y: float
    height: float
    text: str
    removed: bool


@dataclass(frozen=True, kw_only=True)
class Row:
    """One dimension over all layers."""

    name: str
    dense: int
    top: float
    colour: str
    bars: tuple[Bar, ...]


def shape_plot(report: CompressionReport, *, inline: bool = False) -> Markup:
    """Four rows, one a dimension, with a bar a layer: the part of the dense size that is kept.

    Args:
        report: of the model.
        inline: for an HTML page, whose stylesheet may give the classes other colours.

    Returns:
        An SVG document; an element of one where `inline`.
    """
    layers = len(report.plan.layers)
    step = max(_NARROWEST_PLOT / layers, 6.0)
    step = min(step, _WIDEST_BAR * 1.25) if layers > 1 else _WIDEST_BAR
    rows = _rows(report, step)
    every = -(-layers // _MOST_LABELS)
    return rendered(
        "shape_plot.svg.j2",
        inline=inline,
        title=f"{report.model.rsplit('/', 1)[-1]}: what every layer keeps",
        subtitle=_subtitle(report),
        rows=rows,
        ticks=[(LEFT + (layer + 0.5) * step, layer) for layer in range(0, layers, every)],
        left=LEFT,
        right=LEFT + layers * step,
        width=max(LEFT + layers * step, LEFT + _NARROWEST_PLOT) + RIGHT,
        height=TOP + len(rows) * (ROW + GAP) + BOTTOM,
        bar_width=0.8 * step,
        row_height=ROW,
    )


def _rows(report: CompressionReport, step: float) -> list[Row]:
    dense = report.geometry.dense_layer()
    return [
        Row(
            name=name,
            dense=size(dense),
            top=TOP + index * (ROW + GAP),
            colour=_COLOURS[index],
            bars=_bars(report.plan, name, size(dense), (TOP + index * (ROW + GAP), step)),
        )
        for index, (name, size) in enumerate(_SIZE.items())
    ]


def _bars(plan: ModelPlan, name: str, dense: int, place: tuple[float, float]) -> tuple[Bar, ...]:
    top, step = place
    bars = []
    for index, layer in enumerate(plan.layers):
        kept = _SIZE[name](layer)
        height = ROW * kept / dense
        bars.append(
            Bar(
                x=LEFT + (index + 0.1) * step,
                y=top + ROW - height,
                height=height,
                text=f"layer {index}: {kept} of {dense} {name}",
                removed=kept == 0,
            )
        )
    return tuple(bars)


def _subtitle(report: CompressionReport) -> str:
    allocator = f", allocated by {report.allocation.allocator}" if report.allocation else ""
    return f"{report.removed_fraction:.1%} removed by {report.method}{allocator}"
