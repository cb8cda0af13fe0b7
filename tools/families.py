"""Lists of the supported model families in README.md and docs/inputs.md, made from the code.

    python tools/families.py

Writes the lists between the two markers in each file. A test compares them with the code.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from intraslice_core.export.targets import DEMANDS, STOCK_FAMILIES, StockFamily
from intraslice_core.families import FAMILIES, Family

BEGIN, END = "<!-- families: python tools/families.py -->", "<!-- end of families -->"
_MARKED = re.compile(f"{re.escape(BEGIN)}\n.*?{re.escape(END)}", re.DOTALL)
_OTHER_FILES = frozenset({"mistral", "olmo3", "granitemoehybrid"})
"""Families whose files have another's architecture: `llama`, `olmo2`, `granite`."""
_WIDTH = 124


def _families() -> list[Family]:
    return sorted(FAMILIES.values(), key=lambda family: family.title.lower())


def families_sentence() -> str:
    """Return all families in one sentence."""
    titles = [family.title for family in _families()]
    return textwrap.fill(f"{', '.join(titles[:-1])} and {titles[-1]}.", _WIDTH)


def families_table() -> str:
    """Return a Markdown table with one row per family."""
    header = "| family | `model_type` | `adaptive` | `stock` cuts | GGUF input | GGUF of `stock` |"
    return "\n".join((header, "|---|---|---|---|---|---|", *map(_row, _families())))


def _row(family: Family) -> str:
    name = family.model_type
    stock = STOCK_FAMILIES.get(name)
    cells = (
        family.title,
        f"`{name}`",
        _yes(name in DEMANDS["adaptive"].model_types),
        "no" if stock is None else _cut_dimensions(stock),
        _yes(family.gguf is not None or name in _OTHER_FILES),
        _yes(stock is not None and stock.gguf),
    )
    return f"| {' | '.join(cells)} |"


def _yes(condition: bool) -> str:
    return "yes" if condition else "no"


def _cut_dimensions(stock: StockFamily) -> str:
    return stock.describe().partition(";")[0].removeprefix("cuts ").replace(" and ", ", ")


_ROOT = Path(__file__).resolve().parents[1]
PAGES: Mapping[Path, Callable[[], str]] = MappingProxyType(
    {
        _ROOT / "README.md": families_sentence,
        _ROOT / "docs" / "inputs.md": lambda: f"\n{families_table()}\n",
    }
)
"""Functions that make each page's list."""


def with_families(page: Path) -> str:
    """Return a page's text with its list between the markers."""
    return _MARKED.sub(f"{BEGIN}\n{PAGES[page]()}\n{END}", page.read_text("utf-8"))


def main() -> None:
    """Write the lists."""
    for page in PAGES:
        page.write_text(with_families(page), "utf-8")


if __name__ == "__main__":
    main()
