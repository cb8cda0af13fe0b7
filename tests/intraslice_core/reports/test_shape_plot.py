"""Plot of the retained sizes: to scale, within its bounds, escaped and self-contained."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from intraslice_core.allocation.shapes import allocation_report
from intraslice_core.plan import LayerPlan, ModelPlan
from intraslice_core.reports.page_figures import shapes
from intraslice_core.reports.plots import shape_plot
from tests.intraslice_core.reports.samples import (
    GEOMETRY,
    LAYER_OF_PARTS,
    PRICED,
    SLICED_LAYER,
    layer,
    report,
    residual_report,
)

SVG = "{http://www.w3.org/2000/svg}"


def marks_by_tooltip(document: str) -> dict[str, ElementTree.Element]:
    """Return the bars and crosses by the text of their tooltip."""
    root = ElementTree.fromstring(document)
    return {
        path.findtext(f"{SVG}title") or "": path
        for path in root.iter(f"{SVG}path")
        if path.find(f"{SVG}title") is not None
    }


def corners(bar: ElementTree.Element) -> tuple[list[float], list[float]]:
    """Return the horizontal and the vertical coordinates of a bar's corners."""
    numbers = [float(number) for number in re.findall(r"-?[0-9.]+", bar.attrib["d"])]
    return numbers[::2], numbers[1::2]


def height(bar: ElementTree.Element) -> float:
    _, vertical = corners(bar)
    return max(vertical) - min(vertical)


def is_cross(mark: ElementTree.Element) -> bool:
    return mark.get("class") == "mark"


def test_the_height_of_a_bar_is_the_retained_fraction() -> None:
    bars = marks_by_tooltip(shape_plot(report()))
    assert len(bars) == 4 * GEOMETRY.num_hidden_layers
    whole = height(bars["layer 0: 4 of 4 query heads"])
    assert whole > 50
    for text, fraction in {
        "layer 1: 6 of 8 rotary pairs": 0.75,
        "layer 2: 12 of 16 value dims": 0.75,
        "layer 0: 256 of 256 MLP width": 1.0,
        "layer 3: 192 of 256 MLP width": 0.75,
        "layer 1: 128 of 256 MLP width": 0.5,
    }.items():
        assert height(bars[text]) == pytest.approx(whole * fraction, abs=0.1)


@pytest.mark.parametrize(
    ("layer", "sizes"),
    [
        (SLICED_LAYER, {"residual width": 40}),
        (
            LAYER_OF_PARTS,
            {"attention reads": 10, "attention writes": 20, "MLP reads": 30, "MLP writes": 64},
        ),
    ],
    ids=["sliced", "parts"],
)
def test_sizes_in_the_residual_stream_are_shown_where_it_is_cut(
    layer: LayerPlan, sizes: dict[str, int]
) -> None:
    bars = marks_by_tooltip(shape_plot(residual_report(layer)))
    assert len(bars) == (4 + len(sizes)) * GEOMETRY.num_hidden_layers
    whole = height(bars["layer 2: 4 of 4 query heads"])
    for name, size in sizes.items():
        bar = bars[f"layer 2: {size} of 64 {name}"]
        assert height(bar) == pytest.approx(whole * size / 64, abs=0.1)
    table = shapes(residual_report(layer)).table
    assert table.columns[6:] == tuple(sizes)
    assert table.rows[0][6:] == ("64",) * len(sizes)
    assert table.rows[1][6:] == tuple(str(size) for size in sizes.values())
    assert not set(sizes) & set(shapes(report()).table.columns)


def test_every_row_names_its_dimension_and_all_share_the_layers() -> None:
    root = ElementTree.fromstring(shape_plot(report()))
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"query heads of 4", "rotary pairs of 8", "value dims of 16", "MLP width of 256"} <= {
        *texts
    }
    assert texts.count("100 %") == 4
    assert [text for text in texts if (text or "").isdigit()] == ["0", "1", "2", "3"]


def test_removed_modules_are_crossed_out() -> None:
    marks = marks_by_tooltip(shape_plot(report()))
    assert [text for text, mark in marks.items() if is_cross(mark)] == [
        "layer 3: 0 of 4 query heads",
        "layer 3: 0 of 8 rotary pairs",
        "layer 3: 0 of 16 value dims",
    ]


def test_the_page_gives_colours_and_fonts_and_a_file_has_its_own() -> None:
    element, file = shape_plot(report(), inline=True), shape_plot(report())
    assert ElementTree.fromstring(element).attrib["class"] == "shapes"
    for colour in ("var(--s1)", "var(--s4)", "var(--bad)", "var(--text)"):
        assert colour in element
        assert colour not in file
    assert "font" not in element
    assert "sans-serif" in file
    assert "#0000" not in element + file
    assert "#ffffff" in file


def test_names_are_escaped_and_the_plot_is_self_contained() -> None:
    document = shape_plot(report(allocation_report("auto", "lagrangian", PRICED)))
    root = ElementTree.fromstring(document)
    assert root.findtext(f"{SVG}title") == "A<b>&c: retained size by layer"
    assert "allocated by lagrangian" in (root.findtext(f"{SVG}desc") or "")
    assert not [
        element for element in root.iter() if element.tag in (f"{SVG}script", f"{SVG}image")
    ]
    assert "href" not in document
    assert document.count("http") == 1


def test_the_title_names_the_model_without_its_revision() -> None:
    root = ElementTree.fromstring(shape_plot(report(model=f"hub:org/small@{'0' * 40}")))
    assert root.findtext(f"{SVG}title") == "small: retained size by layer"


@pytest.mark.parametrize("layers", [1, 2, 30, 126])
def test_bars_stay_within_the_plot_at_any_depth(layers: int) -> None:
    deep = report().model_copy(
        update={
            "geometry": GEOMETRY.model_copy(update={"num_hidden_layers": layers}),
            "plan": ModelPlan(layers=(layer(2, 2, 4, 8, 64),) * layers),
        }
    )
    document = shape_plot(deep)
    width = float(ElementTree.fromstring(document).attrib["width"])
    bars = marks_by_tooltip(document).values()
    ends = [max(corners(bar)[0]) for bar in bars]
    assert len(ends) == 4 * layers
    assert max(ends) <= width
