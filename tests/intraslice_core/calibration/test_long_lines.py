"""Memory while text of one very long line is read."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

MEGABYTES = 100
FORMS = {"txt": 60, "txt.gz": 60, "jsonl": 220, "json": 220}
"""Largest growth of the peak memory in MB, of this format and those before it."""

PROGRAM = """
import resource, sys
from intraslice_core.calibration import source_tokens
from tests.intraslice_core.tiny_models import tiny_tokenizer

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

def read(source):
    return len(source_tokens(source, tokenizer, part="calibration", max_tokens=20_000))

tokenizer = tiny_tokenizer()
small, *large = sys.argv[1:]
read(small)
before = peak()
for source in large:
    print(read(source), (peak() - before) // 1024)
"""


def write_line(path: Path, megabytes: int) -> Path:
    """Write a file of one line of words; `.txt.gz` consists of one word."""
    form = path.name.partition(".")[2]
    if form == "json":
        path.symlink_to(path.with_suffix(".jsonl"))
        return path
    words = b"x" * 2**20 if form == "txt.gz" else b"some words and more " * 52_429
    begin, end = (b'{"id": 1, "text": "', b'"}') if form == "jsonl" else (b"", b"")
    packed = form.endswith("gz")
    with gzip.open(path, "wb", compresslevel=1) if packed else path.open("wb") as stream:
        stream.write(begin)
        for _ in range(megabytes):
            stream.write(words)
        stream.write(end)
    return path


def test_memory_does_not_grow_with_the_length_of_a_line(tmp_path):
    large = [write_line(tmp_path / f"large.{form}", MEGABYTES) for form in FORMS]
    files = [write_line(tmp_path / "small.txt", 1), *large]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, files)],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(FORMS)
    for line, limit in zip(lines, FORMS.values(), strict=True):
        count, megabytes = map(int, line.split())
        assert count == 20_000
        assert megabytes < limit
