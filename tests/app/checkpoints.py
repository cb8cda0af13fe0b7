"""A finished checkpoint of a few bytes, with manifest, report and card."""

from __future__ import annotations

from pathlib import Path

from intraslice_core.checkpoints.manifest import write_manifest
from intraslice_core.reports.schema import (
    REPORT_FILE,
    EvaluationReport,
    PerplexityComparison,
    TaskComparison,
)
from tests.intraslice_core.reports.samples import report

EVALUATION = EvaluationReport(
    perplexity=(
        PerplexityComparison(
            text="upload:upl_1",
            context_length=64,
            tokens=640,
            dense=12.5,
            compressed=15.25,
            kl=0.25,
            top1_agreement=0.8,
        ),
    ),
    tasks=(
        TaskComparison(
            task="arc_easy",
            metric="acc,none",
            higher_is_better=True,
            examples=8,
            shots=0,
            dense=0.75,
            compressed=0.5,
        ),
    ),
)


def finished_checkpoint(directory: Path, *, weights: bytes = bytes(range(256))) -> Path:
    """Write a checkpoint like the engine's, with weights that are large enough for LFS."""
    (directory / "more").mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(weights)
    (directory / "more" / "notes.txt").write_text("unchanged")
    (directory / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Small\n")
    evaluated = report().with_evaluation(EVALUATION)
    evaluated = evaluated.model_copy(
        update={"model": "hub:org/Big-1B@main", "base_licence": "apache-2.0"}
    )
    (directory / REPORT_FILE).write_text(evaluated.model_dump_json())
    write_manifest(directory, {"model": evaluated.model})
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    """Return the content of all files by name."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}
