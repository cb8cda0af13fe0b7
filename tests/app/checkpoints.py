"""Checkpoints of a few bytes: a finished one, and a dense model of which only headers are real."""

from __future__ import annotations

import json
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


def headers_only(directory: Path, **sizes: int) -> Path:
    """Write a directory whose settings describe a Llama in bfloat16 that is not there."""
    directory.mkdir(parents=True)
    settings: dict[str, object] = {
        "model_type": "llama",
        "num_hidden_layers": 4,
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 100,
        "tie_word_embeddings": True,
        "max_position_embeddings": 4096,
        "dtype": "bfloat16",
    }
    (directory / "config.json").write_text(json.dumps(settings | sizes))
    entry = {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}
    header = json.dumps({"model.norm.weight": entry}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(8)
    (directory / "model.safetensors").write_bytes(content)
    return directory
