"""Plot of the retained sizes: to scale, within its bounds, escaped and self-contained."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from intraslice_core.allocation.shapes import allocation_report
from intraslice_core.plan import LayerPlan, ModelPlan
from intraslice_core.reports.page_figures import shapes
from intraslice_core.reports.plots import SHAPE_ROW, shape_plot
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


def elements_by_tooltip(document: str) -> dict[str, ElementTree.Element]:
    """Return the bars and crosses by the text of their tooltip."""
    root = ElementTree.fromstring(document)
    return {
        title.text or "": element
        for element in root.iter()
        for title in element.findall(f"{SVG}title")
        if element.tag in (f"{SVG}rect", f"{SVG}text")
    }


def test_the_height_of_a_bar_is_the_retained_fraction() -> None:
    bars = elements_by_tooltip(shape_plot(report()))
    assert len(bars) == 4 * GEOMETRY.num_hidden_layers
    for text, fraction in {
        "layer 0: 4 of 4 query heads": 1.0,
        "layer 1: 6 of 8 rotary pairs": 0.75,
        "layer 2: 12 of 16 value dims": 0.75,
        "layer 3: 192 of 256 MLP width": 0.75,
        "layer 1: 128 of 256 MLP width": 0.5,
    }.items():
        assert bars[text].tag == f"{SVG}rect"
        assert float(bars[text].attrib["height"]) == pytest.approx(SHAPE_ROW * fraction, abs=0.1)


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
    bars = elements_by_tooltip(shape_plot(residual_report(layer)))
    assert len(bars) == (4 + len(sizes)) * GEOMETRY.num_hidden_layers
    for name, size in sizes.items():
        height = float(bars[f"layer 2: {size} of 64 {name}"].attrib["height"])
        assert height == pytest.approx(SHAPE_ROW * size / 64, abs=0.1)
    table = shapes(residual_report(layer)).table
    assert table.columns[6:] == tuple(sizes)
    assert table.rows[0][6:] == ("64",) * len(sizes)
    assert table.rows[1][6:] == tuple(str(size) for size in sizes.values())
    assert not set(sizes) & set(shapes(report()).table.columns)


def test_the_names_of_the_rows_have_room_on_the_left() -> None:
    root = ElementTree.fromstring(shape_plot(report()))
    names = {
        text.text: float(text.attrib["x"])
        for text in root.iter(f"{SVG}text")
        if text.attrib.get("text-anchor") == "end" and text.attrib.get("font-weight") == "bold"
    }
    assert set(names) == {"query heads", "rotary pairs", "value dims", "MLP width"}
    # About 7 pixels per character of bold text, which ends at x.
    assert all(x >= 7 * len(name or "") for name, x in names.items())


def test_removed_modules_are_crossed_out() -> None:
    crosses = [
        text
        for text, element in elements_by_tooltip(shape_plot(report())).items()
        if element.text == "\N{MULTIPLICATION SIGN}"
    ]
    assert crosses == [
        "layer 3: 0 of 4 query heads",
        "layer 3: 0 of 8 rotary pairs",
        "layer 3: 0 of 16 value dims",
    ]


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
    bars = elements_by_tooltip(document).values()
    ends = [float(bar.attrib["x"]) + float(bar.attrib["width"]) for bar in bars]
    assert len(ends) == 4 * layers
    assert max(ends) <= width
