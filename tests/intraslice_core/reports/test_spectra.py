"""Spectra on the page: one plot per dimension, one row per layer, with the cut."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from intraslice_core.reports.page import report_page
from intraslice_core.reports.page_contents import ReportPage
from intraslice_core.reports.page_measures import spectra
from intraslice_core.reports.schema import (
    CompressionReport,
    LayerReport,
    ModuleReport,
    SpectrumReport,
)
from tests.intraslice_core.reports.samples import PLAN, report

SVG = "{http://www.w3.org/2000/svg}"


def neurons(kept: int, values: tuple[float, ...] = (0.5, 0.3, 0.15, 0.05)) -> SpectrumReport:
    return SpectrumReport(
        dimension="MLP neurons",
        measure="loss",
        size=len(values),
        kept=kept,
        kept_share=sum(values[:kept]),
        ranks=tuple(range(len(values))),
        values=values,
    )


def report_with_spectra(*kept: int) -> CompressionReport:
    """Return a report whose first layers retain these numbers of neurons and all attention."""
    layers = tuple(
        LayerReport(
            layer=index,
            plan=PLAN.layers[index],
            attention=ModuleReport(module="attention"),
            mlp=ModuleReport(module="mlp", spectra=(neurons(size),)),
            seconds=1.0,
        )
        for index, size in enumerate(kept)
    )
    return report().model_copy(update={"layers": layers})


def numbers(path: ElementTree.Element) -> list[float]:
    """Return the coordinates of a path: x and y by turns."""
    return [float(number) for number in re.findall(r"-?[0-9.]+", path.attrib["d"])]


def bars(svg: str, layer: int) -> list[ElementTree.Element]:
    """Return the cells of a layer's row, those that look alike as one bar."""
    return [
        path
        for path in ElementTree.fromstring(svg).iter(f"{SVG}path")
        if (path.findtext(f"{SVG}title") or "").startswith(f"layer {layer}:")
    ]


def extent(paths: list[ElementTree.Element]) -> tuple[float, float]:
    """Return the left and the right end of bars."""
    places = [x for path in paths for x in numbers(path)[::2]]
    return min(places), max(places)


def test_the_cut_of_every_layer_is_at_its_retained_fraction() -> None:
    (figure,) = spectra(report_with_spectra(1, 3))
    left, right = extent(bars(figure.svg, 0) + bars(figure.svg, 1))
    (cut,) = (
        path
        for path in ElementTree.fromstring(figure.svg).iter(f"{SVG}path")
        if (path.get("fill"), path.get("stroke")) == ("none", "var(--text)")
    )
    first, second = (left + (right - left) * fraction for fraction in (0.25, 0.75))
    assert numbers(cut)[::2] == pytest.approx([*[first] * 3, *[second] * 3], abs=0.1)
    for layer, fraction in enumerate((0.25, 0.75)):
        retained = [bar for bar in bars(figure.svg, layer) if bar.get("fill") == "var(--s1)"]
        ends = (left, left + (right - left) * fraction)
        assert extent(retained) == pytest.approx(ends, abs=0.1)
    assert figure.table.rows == (("0", "1", "4", "50.0 %"), ("1", "3", "4", "95.0 %"))


def test_larger_values_are_darker_and_removed_ones_have_another_colour() -> None:
    (figure,) = spectra(report_with_spectra(2))
    cells = bars(figure.svg, 0)
    shades = [(bar.get("fill"), float(bar.get("fill-opacity") or 1.0)) for bar in cells]
    assert shades == [
        ("var(--s1)", 1.0),
        ("var(--s1)", pytest.approx(opacity(0.3 / 0.5))),
        ("var(--s2)", pytest.approx(opacity(0.15 / 0.5))),
        ("var(--s2)", pytest.approx(opacity(0.05 / 0.5))),
    ]
    assert len({shade for _, shade in shades}) > 2


def opacity(ratio: float) -> float:
    """Return the opacity by a value's ratio to the largest: eight shades over three decades."""
    return (1 + round(7 * (1 + math.log10(ratio) / 3))) / 8


def test_rows_are_labelled_with_their_layers_and_ranks_with_percentages() -> None:
    content = report_with_spectra(2, 2, 2)
    changed = content.model_copy(update={"layers": content.layers[1:]})
    (figure,) = spectra(changed)
    texts = [text.text for text in ElementTree.fromstring(figure.svg).iter(f"{SVG}text")]
    assert [text for text in texts if (text or "").isdigit()] == ["1", "2"]
    assert {"0 %", "25 %", "100 %", "layer", "rank, most valuable first"} <= {*texts}


def test_a_plot_describes_itself_in_words() -> None:
    (figure,) = spectra(report_with_spectra(1, 3))
    assert "Layers retain 50.0 % to 95.0 % of the sum." in figure.svg
    assert "layer 1: 3 of 4 retained, 95.0 % of the sum" in figure.svg


def test_without_spectra_there_is_no_section() -> None:
    assert 'id="spectra"' not in report_page(ReportPage(report=report()))
    assert 'id="spectra"' in report_page(ReportPage(report=report_with_spectra(2)))


def test_dimensions_of_value_zero_are_drawn_too() -> None:
    layers = report_with_spectra(2).layers
    zeros = ModuleReport(module="mlp", spectra=(neurons(2, (0.0,) * 4),))
    changed = layers[0].model_copy(update={"mlp": zeros})
    (figure,) = spectra(report().model_copy(update={"layers": (changed,)}))
    assert "0.0 % of the sum" in figure.svg
