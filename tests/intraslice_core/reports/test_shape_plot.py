"""The drawing shows each size of each layer to scale, and needs nothing from outside."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from intraslice_core.allocation.shapes import allocation_report
from intraslice_core.plan import ModelPlan
from intraslice_core.reports.plots import ROW, shape_plot
from tests.intraslice_core.reports.samples import GEOMETRY, PRICED, layer, report

SVG = "{http://www.w3.org/2000/svg}"


def drawn(document: str) -> dict[str, ElementTree.Element]:
    """Bars and crosses by what their tooltip says."""
    root = ElementTree.fromstring(document)
    return {
        title.text or "": element
        for element in root.iter()
        for title in element.findall(f"{SVG}title")
        if element.tag in (f"{SVG}rect", f"{SVG}text")
    }


def test_bars_are_as_high_as_the_part_that_is_kept() -> None:
    bars = drawn(shape_plot(report()))
    assert len(bars) == 4 * GEOMETRY.num_hidden_layers
    for text, part in {
        "layer 0: 4 of 4 query heads": 1.0,
        "layer 1: 6 of 8 rotary pairs": 0.75,
        "layer 2: 12 of 16 value dims": 0.75,
        "layer 3: 192 of 256 MLP width": 0.75,
        "layer 1: 128 of 256 MLP width": 0.5,
    }.items():
        assert bars[text].tag == f"{SVG}rect"
        assert float(bars[text].attrib["height"]) == pytest.approx(ROW * part, abs=0.1)


def test_removed_modules_are_crossed_out() -> None:
    crosses = [
        text
        for text, one in drawn(shape_plot(report())).items()
        if one.text == "\N{MULTIPLICATION SIGN}"
    ]
    assert crosses == [
        "layer 3: 0 of 4 query heads",
        "layer 3: 0 of 8 rotary pairs",
        "layer 3: 0 of 16 value dims",
    ]


def test_names_are_escaped_and_nothing_is_loaded_or_run() -> None:
    document = shape_plot(report(allocation_report("auto", "lagrangian", PRICED)))
    root = ElementTree.fromstring(document)
    assert root.findtext(f"{SVG}title") == "A<b>&c: what every layer keeps"
    assert "allocated by lagrangian" in (root.findtext(f"{SVG}desc") or "")
    assert not [one for one in root.iter() if one.tag in (f"{SVG}script", f"{SVG}image")]
    assert "href" not in document
    assert document.count("http") == 1


@pytest.mark.parametrize("layers", [1, 2, 30, 126])
def test_bars_stay_within_the_drawing_at_any_depth(layers: int) -> None:
    made = report().model_copy(
        update={
            "geometry": GEOMETRY.model_copy(update={"num_hidden_layers": layers}),
            "plan": ModelPlan(layers=(layer(2, 2, 4, 8, 64),) * layers),
        }
    )
    document = shape_plot(made)
    width = float(ElementTree.fromstring(document).attrib["width"])
    ends = [float(bar.attrib["x"]) + float(bar.attrib["width"]) for bar in drawn(document).values()]
    assert len(ends) == 4 * layers
    assert max(ends) <= width
