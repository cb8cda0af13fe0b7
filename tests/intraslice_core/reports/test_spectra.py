"""Spectra on the page: a drawing a dimension, a row a layer, the cut where it was made."""

from __future__ import annotations

import re

import pytest

from intraslice_core.reports.page import report_page
from intraslice_core.reports.page_contents import ReportPage
from intraslice_core.reports.page_measures import spectra
from intraslice_core.reports.plots import LEFT, RIGHT, WIDTH
from intraslice_core.reports.schema import (
    CompressionReport,
    LayerReport,
    ModuleReport,
    SpectrumReport,
)
from tests.intraslice_core.reports.samples import PLAN, report


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


def cut_report(*kept: int) -> CompressionReport:
    """The first layers cut so, their attention left alone."""
    layers = tuple(
        LayerReport(
            layer=index,
            plan=PLAN.layers[index],
            attention=ModuleReport(module="attention"),
            mlp=ModuleReport(module="mlp", spectra=(neurons(one),)),
            seconds=1.0,
        )
        for index, one in enumerate(kept)
    )
    return report().model_copy(update={"layers": layers})


def test_the_cut_of_every_layer_is_where_it_was_made() -> None:
    (figure,) = spectra(cut_report(1, 3))
    cuts = [float(x) for x in re.findall(r'class="cut" d="M([0-9.]+) ', figure.svg)]
    inside = WIDTH - RIGHT - LEFT
    assert cuts == pytest.approx([LEFT + inside / 4, LEFT + inside * 3 / 4], abs=0.06)
    assert figure.table.rows == (("0", "1", "4", "50.0 %"), ("1", "3", "4", "95.0 %"))


def test_what_is_worth_more_is_darker_and_what_is_gone_has_the_other_colour() -> None:
    (figure,) = spectra(cut_report(2))
    shades = re.findall(r'class="cell( gone)?" opacity="([0-9.]+)" d="([^"]+)"', figure.svg)
    kept = [float(opacity) for gone, opacity, _ in shades if not gone]
    gone = [float(opacity) for gone, opacity, _ in shades if gone]
    assert max(kept) == 1.0
    assert max(gone) < max(kept)
    assert sum(path.count("M") for _, _, path in shades) == 40


def test_a_drawing_says_in_words_what_it_shows() -> None:
    (figure,) = spectra(cut_report(1, 3))
    assert "Layers keep 50.0 % to 95.0 % of the sum." in figure.svg
    assert "layer 1: 3 of 4 kept, 95.0 % of the sum" in figure.svg


def test_without_spectra_there_is_no_section() -> None:
    assert 'id="spectra"' not in report_page(ReportPage(report=report()))
    assert 'id="spectra"' in report_page(ReportPage(report=cut_report(2)))


def test_worthless_dimensions_are_drawn_all_the_same() -> None:
    layers = cut_report(2).layers
    worthless = ModuleReport(module="mlp", spectra=(neurons(2, (0.0,) * 4),))
    changed = layers[0].model_copy(update={"mlp": worthless})
    (figure,) = spectra(report().model_copy(update={"layers": (changed,)}))
    assert "0.0 % of the sum" in figure.svg
