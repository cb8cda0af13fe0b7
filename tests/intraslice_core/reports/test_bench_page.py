"""The page of a comparison draws a curve per method and the dense model as a point."""

from __future__ import annotations

import re

from intraslice_core.config import METHOD_DESCRIPTIONS, CompressionSettings
from intraslice_core.reports.bench_page import bench_page
from intraslice_core.reports.schema import PerplexityComparison
from intraslice_core.reports.sweep import SweepPoint, SweepReport
from intraslice_core.text_sources import Domain

METHODS = tuple(METHOD_DESCRIPTIONS)
HOSTILE = "<script>alert(1)</script>"


def score(compressed: float, domain: Domain) -> PerplexityComparison:
    return PerplexityComparison(
        text="pydoc", domain=domain, context_length=64, tokens=64, dense=10.0, compressed=compressed
    )


def comparison(domains: tuple[Domain, ...] = ("out",)) -> SweepReport:
    report = SweepReport(
        engine_version="1",
        model=HOSTILE,
        settings=CompressionSettings(),
        methods=METHODS,
        evaluation=None,
        params_before=1_000_000,
        bytes_before=2_000_000,
        opening_seconds=0.0,
    )
    for index, method in enumerate(METHODS):
        for ratio, params in ((0.2, 800_000), (0.4, 600_000 + 10_000 * index)):
            quality = score(20.0 / ratio + index, domains[index % len(domains)])
            point = SweepPoint(
                method=method,
                ratio=ratio,
                directory=f"{method}-ratio-{ratio}",
                params_after=params,
                bytes_after=2 * params,
                perplexity=(quality,),
            )
            report = report.with_point(point)
    return report


def test_every_method_has_a_curve_of_its_own_colour_through_all_its_sizes() -> None:
    page = bench_page(comparison())
    curves = re.findall(r'<path d="([^"]*)" fill="none" stroke="var\((--\S+?)\)"', page)
    lines: dict[str, str] = {}
    for path, colour in curves:  # that of the legend comes after the chart's
        lines.setdefault(colour, path)
    methods = [f"--s{number}" for number in range(2, 2 + len(METHODS))]
    assert [lines[colour].count("L") for colour in methods] == [1] * len(METHODS)
    for colour in ("--dense", *methods):
        assert f"{colour}: #" in page
    assert "dense: 1.00 M parameters, perplexity 10" in page


def test_unequal_sizes_are_a_warning_and_a_rejected_result_a_row() -> None:
    report = comparison()
    rejected = SweepPoint(method="flap", ratio=0.5, directory="x", refused="too bad")
    page = bench_page(report.with_point(rejected))
    assert "at ratio 0.4 the results have 600,000 to" in page
    assert "at ratio 0.2 the results" not in page
    assert "<td>rejected</td>" in page


def test_a_common_domain_is_named_and_hostile_names_are_escaped() -> None:
    page = bench_page(comparison())
    assert "Perplexity on pydoc (out-of-domain) by" in page
    assert "Perplexity on pydoc by" in bench_page(comparison(("out", "in")))
    assert HOSTILE not in page
