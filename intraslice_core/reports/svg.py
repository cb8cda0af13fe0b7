"""Figures of matplotlib as SVG: elements of a page, or documents of their own.

Colours of an element are variables of the page's stylesheet, so that it follows the reader's
colour scheme; those of a document are fixed. Marks have tooltips.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

_POINTS_PER_INCH = 72
"""Resolution at which a pixel of the page is a point of matplotlib."""

INK, FAINT, GRID, DENSE, BAD = (f"#00000{number}" for number in range(1, 6))
_FIRST_SERIES = 16
SERIES = tuple(f"#0000{number:02x}" for number in range(_FIRST_SERIES, _FIRST_SERIES + 14))
"""Colours to draw with, which stand for those of a page or of a document."""

_PAGE_COLOURS = {
    INK: "var(--text)",
    FAINT: "var(--text-3)",
    GRID: "var(--border)",
    DENSE: "var(--dense)",
    BAD: "var(--bad)",
} | {colour: f"var(--s{number})" for number, colour in enumerate(SERIES, start=1)}
_PALETTE = ("#4477aa", "#228833", "#ccbb44", "#aa3377", "#66ccee", "#ee6677")
"""Colours that differ with every kind of colour vision; they recur after the last."""
_DOCUMENT_COLOURS = {
    INK: "#333333",
    FAINT: "#555555",
    GRID: "#cccccc",
    DENSE: "#7d8898",
    BAD: "#bb2222",
} | {colour: _PALETTE[number % len(_PALETTE)] for number, colour in enumerate(SERIES)}

_STYLE: dict[RcKeyType, Any] = {
    "axes.autolimit_mode": "round_numbers",
    "axes.axisbelow": True,
    "axes.edgecolor": FAINT,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": FAINT,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": FAINT,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.xmargin": 0.0,
    "axes.ymargin": 0.0,
    "figure.facecolor": "none",
    "font.size": 11,
    "grid.color": GRID,
    "legend.borderpad": 0.0,
    "legend.columnspacing": 1.2,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,  # names may contain dollar signs
    "xtick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "ytick.major.size": 0.0,
}
_RC_LOCK = threading.Lock()
"""matplotlib's settings belong to the process; pages are rendered in several threads."""
_METADATA = ("Creator", "Date", "Format", "Type")
"""Metadata that matplotlib would write into the file."""
_FONT = re.compile(r'font(-\w+)?: [^;"]*;? ?')

_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_MARK = "mark"
"""Class of a marker."""
# Once: names belong to the process, and another thread may be writing a chart meanwhile.
ElementTree.register_namespace("", _SVG.strip("{}"))


@dataclass(frozen=True, kw_only=True)
class Description:
    """Title and text for readers who do not see a figure, and the tooltips of its marks.

    `tooltips` holds the texts by the `gid` of an artist: one for each of its markers, or for each
    of its paths if it has none.
    """

    title: str
    text: str
    tooltips: Mapping[str, Sequence[str]]


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """Yield a figure of this size in pixels, in the page's style, to draw on and to write.

    Other threads wait until the context is left.
    """
    # Processes that draw nothing, and the API's start, do without the half second of this import.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    size = (width / _POINTS_PER_INCH, height / _POINTS_PER_INCH)
    with _RC_LOCK, rc_context(_STYLE):
        yield Figure(figsize=size, dpi=_POINTS_PER_INCH, layout="constrained")


def page_element(figure: Figure, description: Description, *, css_class: str = "chart") -> Markup:
    """Return the figure as an element of a page, whose stylesheet gives colours and fonts."""
    saved = _FONT.sub("", _saved(figure, _PAGE_COLOURS, "none"))
    root = _described(ElementTree.fromstring(saved), description)
    for element in root.iter():
        _take_style_apart(element)
    root.set("class", css_class)
    return _written(root)


def document(figure: Figure, description: Description) -> Markup:
    """Return the figure as the content of a file, with fixed colours on white."""
    saved = _saved(figure, _DOCUMENT_COLOURS, "white")
    return _written(_described(ElementTree.fromstring(saved), description))


def _saved(figure: Figure, colours: Mapping[str, str], background: str) -> str:
    """Return matplotlib's document, with the colours that its colours stand for."""
    file = io.StringIO()
    metadata = dict.fromkeys(_METADATA)
    figure.savefig(file, format="svg", metadata=metadata, facecolor=background)
    text = file.getvalue()
    for drawn, shown in colours.items():
        text = text.replace(drawn, shown)
    return text


def _described(root: ElementTree.Element, description: Description) -> ElementTree.Element:
    """Add size in pixels, title, text and tooltips; remove what would reach beyond the figure."""
    _, _, width, height = root.attrib["viewBox"].split()
    root.attrib |= {"width": width, "height": height, "role": "img"}
    texts = (("title", description.title), ("desc", description.text))
    for number, (tag, text) in enumerate(texts):
        element = ElementTree.Element(f"{_SVG}{tag}")
        element.text = text
        root.insert(number, element)
    groups = {element.get("id"): element for element in root.iter() if element.get("id")}
    _draw_markers(root, groups)
    for name, tooltips in description.tooltips.items():
        for mark, tooltip in zip(_marks(groups[name]), tooltips, strict=True):
            ElementTree.SubElement(mark, f"{_SVG}title").text = tooltip
    _remove_page_wide(root)
    return root


def _draw_markers(
    root: ElementTree.Element, groups: Mapping[str | None, ElementTree.Element]
) -> None:
    """Turn every use of a marker into a path of its own: a page refers to no names."""
    for use in root.iter(f"{_SVG}use"):
        marker = groups[use.attrib.pop(_HREF).removeprefix("#")]
        use.tag = f"{_SVG}path"
        use.attrib |= {
            "class": _MARK,
            "d": marker.attrib["d"],
            "transform": f"translate({use.attrib.pop('x')} {use.attrib.pop('y')})",
        }


def _marks(group: ElementTree.Element) -> list[ElementTree.Element]:
    """Return the markers of an artist in the order of its points, or else its paths."""
    paths = list(group.iter(f"{_SVG}path"))
    return [path for path in paths if path.get("class") == _MARK] or paths


def _take_style_apart(element: ElementTree.Element) -> None:
    """Replace an element's style by attributes, which the stylesheet may override."""
    for rule in element.attrib.pop("style", "").split(";"):
        name, colon, value = rule.partition(":")
        if colon:
            element.set(name.strip(), value.strip())


def _remove_page_wide(root: ElementTree.Element) -> None:
    """Remove what would reach beyond the figure: its style sheet, definitions and names.

    Clip paths go, too: nothing is drawn outside the axes.
    """
    for parent in list(root.iter()):
        parent.attrib.pop("id", None)
        parent.attrib.pop("clip-path", None)
        for child in list(parent):
            if child.tag in (f"{_SVG}defs", f"{_SVG}metadata"):
                parent.remove(child)


def _written(root: ElementTree.Element) -> Markup:
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # ElementTree has escaped it
