"""Spectra on the page: one plot per dimension, one row per layer, with the cut."""

from __future__ import annotations

import re

import pytest

from intraslice_core.reports.page import report_page
from intraslice_core.reports.page_contents import ReportPage
from intraslice_core.reports.page_measures import spectra
from intraslice_core.reports.plots import SPECTRUM_MARGINS, SPECTRUM_WIDTH
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


def test_the_cut_of_every_layer_is_at_its_retained_fraction() -> None:
    (figure,) = spectra(report_with_spectra(1, 3))
    cuts = [float(x) for x in re.findall(r'class="cut" d="M([0-9.]+) ', figure.svg)]
    left = SPECTRUM_MARGINS.left
    inside = SPECTRUM_WIDTH - SPECTRUM_MARGINS.right - left
    assert cuts == pytest.approx([left + inside / 4, left + inside * 3 / 4], abs=0.06)
    assert figure.table.rows == (("0", "1", "4", "50.0 %"), ("1", "3", "4", "95.0 %"))


def test_larger_values_are_darker_and_removed_ones_have_another_colour() -> None:
    (figure,) = spectra(report_with_spectra(2))
    shades = re.findall(r'class="cell( removed)?" opacity="([0-9.]+)" d="([^"]+)"', figure.svg)
    retained_opacities = [float(opacity) for removed, opacity, _ in shades if not removed]
    removed_opacities = [float(opacity) for removed, opacity, _ in shades if removed]
    assert max(retained_opacities) == 1.0
    assert max(removed_opacities) < max(retained_opacities)
    assert sum(path.count("M") for _, _, path in shades) == 40


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
