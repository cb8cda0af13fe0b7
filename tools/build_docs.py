"""Builder of the documentation's site; a warning is an error.

    python -m tools.build_docs [--site site]

The site generator runs on a staged copy of `mkdocs.yml` and `docs`, in which the parts that are
generated from `openapi.json` and from the commands stand in place of their markers. So it needs no
hook of a particular generator, and the pages in the repository hold nothing that can be stale.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from tools.api_reference import operations, schemas
from tools.cli_reference import commands

ROOT = Path(__file__).resolve().parents[1]
GENERATED: Mapping[str, Callable[[], str]] = MappingProxyType(
    {
        "<!-- the operations of openapi.json -->": operations,
        "<!-- the schemas of openapi.json -->": schemas,
        "<!-- every command and its options -->": commands,
    }
)
"""Functions that make the text in place of each marker."""
_GENERATOR = ("zensical", "build", "--strict")


def stage(place: Path) -> None:
    """Copy the configuration and the pages, with the generated parts in place of their markers."""
    shutil.copy(ROOT / "mkdocs.yml", place)
    programs = shutil.ignore_patterns("*.py", "__pycache__")
    shutil.copytree(ROOT / "docs", place / "docs", ignore=programs)
    for page in (place / "docs").rglob("*.md"):
        text = page.read_text("utf-8")
        for marker, content in GENERATED.items():
            if marker in text:
                text = text.replace(marker, content())
        page.write_text(text, "utf-8")


def build(site: Path) -> int:
    """Build the site in place of an earlier one; return the exit status of the generator."""
    with tempfile.TemporaryDirectory(prefix="intraslice-docs-") as temporary:
        place = Path(temporary)
        stage(place)
        paths = filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
        status = subprocess.run(
            [sys.executable, "-m", *_GENERATOR],
            cwd=place,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        ).returncode
        if status == 0:
            shutil.rmtree(site, ignore_errors=True)
            shutil.move(place / "site", site)
    return status


def main() -> None:
    """Build the site."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--site", type=Path, default=ROOT / "site", help="output directory")
    sys.exit(build(parser.parse_args().site))


if __name__ == "__main__":
    main()
