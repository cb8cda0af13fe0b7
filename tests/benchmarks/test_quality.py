"""The table of targets on a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.intraslice_core.tiny_models import tiny_checkpoint

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_a_method_that_cannot_compress_the_model_is_left_out_with_its_reason(
    tmp_path: Path,
) -> None:
    model = tiny_checkpoint(tmp_path / "tiny", "gemma3")
    command = [sys.executable, str(BENCHMARKS / "quality.py"), "--model", str(model)]
    command += ["--only", "methods", "--methods", "slicegpt,magnitude", "--ratios", "0.3"]
    command += ["--calibration", "pydoc", "--evaluation", "pydoc", "--also", "pycode"]
    command += ["--samples", "4", "--sequence-length", "32"]
    command += ["--evaluation-tokens", "128", "--context-length", "32"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS.parent), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    facts = json.loads(done.stdout.splitlines()[-1])
    assert [*facts["perplexity"]["0.3"]] == ["magnitude"]
    reason = facts["failed"]["pydoc"]["0.3"]["slicegpt"]
    assert "does not support gemma3_text models" in reason
