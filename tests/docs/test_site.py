"""The site builds without warnings, is complete and loads nothing from other hosts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from app.cli.main import app

ROOT = Path(__file__).parents[2]
SECTIONS = ["Quickstart", "Concepts", "How-to", "Reference", "Explanation"]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
REDIRECTS = {"choosing": "choose-ratio", "engine": "python"}
"""Former addresses of pages, with their present ones."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Site as `make docs` builds it."""
    place = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "tools.build_docs", "--site", str(place)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert not re.search("warning", done.stdout + done.stderr, re.IGNORECASE), done.stdout
    return place


def text(site: Path, page: str) -> str:
    return (site / page / "index.html").read_text("utf-8")


def test_every_page_is_built_and_loads_nothing_from_other_hosts(site: Path) -> None:
    for page in PAGES:
        name = page.relative_to(ROOT / "docs").with_suffix("").as_posix()
        assert (site / ("" if name == "index" else name) / "index.html").is_file(), name
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|link|img)\b[^>]*(?:src|href)="(https?://[^"]+)"', page.read_text("utf-8")
        )
        assert [url for url in loaded if "canonical" not in url] == [], page.name


def test_the_search_knows_every_section(site: Path) -> None:
    index = (site / "search.json").read_text("utf-8")
    for phrase in ("Choose a target", "INTRASLICE_CHILD_GRACE_SECONDS", "Rotary pairs"):
        assert phrase.lower() in index.lower()


def test_the_reference_has_every_operation_schema_and_command(site: Path) -> None:
    document = json.loads((ROOT / "openapi.json").read_text("utf-8"))
    api, cli = text(site, "api"), text(site, "client")
    for path, methods in document["paths"].items():
        for method in {"get", "post", "put", "patch", "delete"} & methods.keys():
            assert f"{method.upper()} {path}</code>" in api
    for name in document["components"]["schemas"]:
        assert f'id="schema-{name.lower()}"' in api
    names = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for command in (*names, "sweeps-create", "webhooks-test", "config-show"):
        assert f'id="intraslice-{command}"' in cli
    assert "--max-perplexity-ratio" in cli
    python = text(site, "python")
    assert all(name in python for name in ("compress_model", "Raises", "AsyncClient", "wait"))


@pytest.mark.parametrize(("former", "present"), REDIRECTS.items())
def test_former_addresses_lead_to_the_present_ones(site: Path, former: str, present: str) -> None:
    assert f"url=../{present}/" in text(site, former)
    assert (site / present / "index.html").is_file()


def test_every_page_stands_in_one_of_the_five_sections() -> None:
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]
    assert [next(iter(entry)) for entry in navigation] == SECTIONS
    listed = re.findall(r"[\w/-]+\.md", json.dumps(navigation))
    assert sorted(listed) == [page.relative_to(ROOT / "docs").as_posix() for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_page_begins_with_its_readers(page: Path) -> None:
    title, first, *_ = page.read_text("utf-8").split("\n\n")
    assert title.startswith("# ")
    # The specification begins with what it is.
    assert first.startswith("This page is" if page.stem == "method" else "For "), first
