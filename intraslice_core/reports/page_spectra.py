"""The section of a page about what every dimension was cut by."""

from __future__ import annotations

from collections.abc import Iterator

from intraslice_core.reports.page_figures import Figure
from intraslice_core.reports.quantities import percent
from intraslice_core.reports.schema import CompressionReport
from intraslice_core.reports.spectrum_plot import LayerSpectrum, spectrum_plot
from intraslice_core.reports.table import Table

_MEASURES = {
    "eigenvalue": "Eigenvalues of the values' moment, weighted by what reads them",
    "loss": "Predicted loss of being the next to go",
    "score": "Scores that the method ranks by",
}
_TITLES = {
    "rotary pairs": "Rotary pairs",
    "value dims": "Value dims",
    "MLP neurons": "MLP neurons",
}
_HOW = (
    "a row a layer, darker by powers of ten; right of the cut is what was removed, in the other "
    "colour."
)


def spectra(report: CompressionReport) -> tuple[Figure, ...]:
    """A drawing for each dimension that was cut in any layer."""
    by_dimension: dict[str, list[LayerSpectrum]] = {}
    for one in _all(report):
        by_dimension.setdefault(one.spectrum.dimension, []).append(one)
    return tuple(
        _figure(_TITLES[name], by_dimension[name]) for name in _TITLES if name in by_dimension
    )


def _all(report: CompressionReport) -> Iterator[LayerSpectrum]:
    for one in report.layers:
        for module in (one.attention, one.mlp):
            for spectrum in module.spectra:
                yield LayerSpectrum(layer=one.layer, spectrum=spectrum)


def _figure(title: str, layers: list[LayerSpectrum]) -> Figure:
    measure = _MEASURES[layers[0].spectrum.measure]
    shares = [one.spectrum.kept_share for one in layers]
    caption = f"{measure}: {_HOW}"
    words = f"{caption} Layers keep {percent(min(shares))} to {percent(max(shares))} of the sum."
    return Figure(
        title=f"{title}: spectrum and cut",
        caption=caption,
        svg=spectrum_plot(f"{title}: spectrum and cut by layer", words, layers),
        table=Table(
            columns=("layer", "kept", "of", "share of the sum"),
            rows=tuple(
                (
                    str(one.layer),
                    f"{one.spectrum.kept:,}",
                    f"{one.spectrum.size:,}",
                    percent(one.spectrum.kept_share),
                )
                for one in layers
            ),
        ),
    )
