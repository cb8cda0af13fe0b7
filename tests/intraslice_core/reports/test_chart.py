"""Charts of the report page: what matplotlib draws, as an element of the page."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from intraslice_core.reports.chart import (
    Axis,
    Chart,
    Point,
    Series,
    Style,
    count_axis,
    draw,
    layer_axis,
    linear_axis,
    log_axis,
)

SVG = "{http://www.w3.org/2000/svg}"


def series(name: str, *points: tuple[float, float], is_dense: bool = False) -> Series:
    return Series(
        name=name,
        points=tuple(Point(x=x, y=y, text=f"{name} at {x:g}: {y:g}") for x, y in points),
        is_dense=is_dense,
    )


def chart(
    *drawn: Series, style: Style = "lines", x: Axis | None = None, y: Axis | None = None
) -> Chart:
    points = [point for each in drawn for point in each.points]
    return Chart(
        title="Error <by> layer",
        description="Errors & more.",
        x=x or layer_axis(1 + round(max(point.x for point in points))),
        y=y or linear_axis("error", [point.y for point in points], include=(0.0,)),
        series=drawn,
        style=style,
    )


def texts(svg: str) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def tooltips(svg: str) -> list[str]:
    root = ElementTree.fromstring(svg)
    return [title.text or "" for title in root.iter(f"{SVG}title")][1:]


def marker_places(svg: str, name: str) -> list[tuple[float, float]]:
    """Return where the markers of a series are, in pixels from the top left corner."""
    places = []
    for marker in ElementTree.fromstring(svg).iter(f"{SVG}path"):
        if (marker.findtext(f"{SVG}title") or "").startswith(name):
            moved = re.fullmatch(r"translate\((\S+) (\S+)\)", marker.attrib["transform"])
            assert moved is not None
            places.append((float(moved[1]), float(moved[2])))
    return places


@pytest.mark.parametrize("style", ["lines", "bars", "dots"])
def test_every_point_has_a_tooltip(style: Style) -> None:
    drawn = chart(series("attention", (0, 3), (1, 1)), series("MLP", (0, 2)), style=style)
    assert tooltips(draw(drawn)) == ["attention at 0: 3", "attention at 1: 1", "MLP at 0: 2"]


def test_points_stand_where_the_axes_say() -> None:
    drawn = chart(series("error", (0, 0), (1, 5), (2, 10)))
    places = marker_places(draw(drawn), "error")
    (left, bottom), (middle, center), (right, top) = places
    assert right - middle == pytest.approx(middle - left, abs=0.01)
    assert bottom - center == pytest.approx(center - top, abs=0.01)
    assert right > left
    assert bottom > top


def test_a_logarithmic_axis_places_powers_of_ten_evenly() -> None:
    values = (10.0, 100.0, 1000.0)
    y = log_axis("perplexity", values)
    svg = draw(chart(series("PPL", *enumerate(values)), y=y))
    first, second = (above[1] - below[1] for below, above in pairwise(marker_places(svg, "PPL")))
    assert first == pytest.approx(second, abs=0.01)
    assert {"10", "100", "1,000"} <= set(texts(svg))


def test_values_within_a_decade_or_below_zero_get_a_linear_axis() -> None:
    assert log_axis("error", [2.0, 19.0]).kind == "linear"
    assert log_axis("error", [-1.0, 100.0]).kind == "linear"
    assert log_axis("error", [1.0, 100.0]).kind == "log"


def test_equal_values_and_a_single_layer_are_drawn() -> None:
    svg = draw(chart(series("error", (0, 0.25)), y=linear_axis("error", [0.25])))
    assert tooltips(svg) == ["error at 0: 0.25"]
    layers = [text for text in texts(svg) if text.isdigit()]
    assert layers == ["0"]


def test_large_numbers_are_short() -> None:
    sizes = [95e6, 134.5e6]
    drawn = chart(
        series("PPL", *((size, 20.0) for size in sizes)), x=count_axis("parameters", sizes)
    )
    labels = [text for text in texts(draw(drawn)) if text.endswith("M")]
    assert len(labels) >= 3


def test_layers_have_whole_numbers() -> None:
    svg = draw(chart(series("error", *((layer, 7.5) for layer in range(30))), y=log_axis("e", [7])))
    labels = [text for text in texts(svg) if re.fullmatch(r"[\d.,]+", text)]
    assert {"0", "5", "25"} <= set(labels)


def test_a_line_ends_at_a_gap_unless_it_is_a_curve() -> None:
    points = ((0, 1), (1, 2), (4, 1), (5, 2))
    broken = draw(chart(series("error", *points)))
    assert sorted(path.count("M") for path in line_paths(broken))[-1] == 2
    curve = Chart(**{**vars(chart(series("error", *points))), "curve": True})
    assert sorted(path.count("M") for path in line_paths(draw(curve)))[-1] == 1


def line_paths(svg: str) -> list[str]:
    """Return the paths in the colour of the first series."""
    root = ElementTree.fromstring(svg)
    return [
        path.attrib["d"]
        for path in root.iter(f"{SVG}path")
        if (path.get("fill"), path.get("stroke")) == ("none", "var(--s1)")
    ]


def test_the_page_gives_colours_and_fonts() -> None:
    svg = draw(chart(series("Original", (0, 1), is_dense=True), series("FLAP", (0, 2))))
    assert "var(--dense)" in svg
    assert "var(--s2)" in svg
    assert "#0000" not in svg
    assert "DejaVu" not in svg
    assert "font" not in svg


def test_several_series_are_named_and_one_is_not() -> None:
    names = [f"method {number}" for number in range(14)]
    several = draw(chart(*(series(name, (0, number)) for number, name in enumerate(names))))
    assert set(names) <= set(texts(several))
    assert "method 0" not in texts(draw(chart(series("method 0", (0, 1)))))


def test_the_element_has_a_title_and_a_description() -> None:
    root = ElementTree.fromstring(draw(chart(series("error", (0, 1)))))
    assert (root.attrib["role"], root.attrib["class"]) == ("img", "chart")
    assert root.findtext(f"{SVG}title") == "Error <by> layer"
    assert root.findtext(f"{SVG}desc") == "Errors & more."


def test_a_chart_reaches_no_further_than_itself() -> None:
    svg = draw(chart(series("error", (0, 1), (1, 2)), series("MLP", (0, 3))))
    assert not re.search(r"\bid=|href|style|url\(|<defs|<metadata", svg)


def test_equal_charts_are_equal_bytes() -> None:
    drawn = chart(series("error", (0, 1), (1, 2)))
    assert draw(drawn) == draw(drawn)
