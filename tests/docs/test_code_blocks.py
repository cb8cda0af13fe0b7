"""Code blocks of the documentation are run or name the reason why they are not.

Shell blocks of a page run one after the other in one directory, against a real service with a
worker; `MODEL` and `OPTIONS` are a tiny model's. A block after `<!-- not run: REASON -->` is not
run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.api.schemas import JobCreate
from app.api.sweep_schemas import SweepCreate
from app.settings import Settings
from tests.app.api.serving import serving
from tests.workers.test_worker import tiny_model, worker

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
OPTIONS = "--calibration pydoc --samples 8 --sequence-length 64 --round-to 2 --no-evaluation"
_BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]+) -->\n)?```(?P<kind>\w*)\n(?P<text>.*?)```", re.S
)


@dataclass(frozen=True)
class Block:
    kind: str
    text: str
    skip_reason: str | None


def blocks(page: Path) -> list[Block]:
    return [
        Block(kind=match["kind"], text=match["text"], skip_reason=match["reason"])
        for match in _BLOCK.finditer(page.read_text("utf-8"))
    ]


def is_run(block: Block) -> bool:
    return block.kind in ("bash", "python") and block.skip_reason is None


def test_every_block_has_a_language_and_most_are_run() -> None:
    shown = [block for page in PAGES for block in blocks(page)]
    assert {block.kind for block in shown} <= {"bash", "python", "json", "toml"}
    skipped = [block for block in shown if block.skip_reason]
    assert all(len(block.skip_reason or "") > 10 for block in skipped)
    assert len(shown) - len(skipped) > 3 * len(skipped), [block.text for block in skipped]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT / "docs")))
def test_requests_and_settings_are_valid(page: Path) -> None:
    for block in blocks(page):
        if block.kind == "json":
            body = json.loads(block.text)
            (SweepCreate if "ratios" in body else JobCreate).model_validate(body)
        elif block.kind == "toml":
            assert tomllib.loads(block.text)


@pytest.fixture
def environment(settings: Settings, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Environment with this checkout's `intraslice` and a service with a worker."""
    program = tmp_path / "bin" / "intraslice"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m app.cli.main "$@"\n')
    program.chmod(0o755)
    model = tiny_model(tmp_path)
    with serving(settings) as (url, _), worker(settings, tmp_path / "worker.log"):
        yield {
            **os.environ,
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "INTRASLICE_URL": url,
            "MODEL": f"path:{model}",
            "OPTIONS": OPTIONS,
            "HF_HUB_OFFLINE": "1",
        }


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.broker
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(is_run(block) for block in blocks(page))],
    ids=lambda page: str(page.relative_to(ROOT / "docs")),
)
def test_programs_run(page: Path, environment: dict[str, str], tmp_path: Path) -> None:
    place = tmp_path / "work"
    place.mkdir()
    for block in blocks(page):
        if not is_run(block):
            continue
        shell = ["bash", "-e", "-o", "pipefail", "-c", block.text]
        command = shell if block.kind == "bash" else [sys.executable, "-c", block.text]
        done = subprocess.run(
            command, cwd=place, env=environment, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, f"{block.text}\n{done.stdout[-1000:]}{done.stderr[-3000:]}"
    if page.stem == "index":
        assert (place / "report.html").is_file()
        assert (place / "again" / "model.safetensors").is_file()
