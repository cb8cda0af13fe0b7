"""Report of a job, for processes that import neither the service nor the engine."""

from __future__ import annotations

from typing import Any

from tests.intraslice_core.reports import samples

_PHASE = {"dense": 10.0, "dense_spread": 0.1, "compressed_spread": 0.1}
_SPEED = {
    "batch_size": 1,
    "prompt_tokens": 16,
    "new_tokens": 4,
    "repeats": 3,
    "whole": {
        "prefill": _PHASE | {"compressed": 13.0, "ratio": 1.3},
        "decode": _PHASE | {"compressed": 12.0, "ratio": 1.2},
    },
}
PERPLEXITY = {
    "text": "pydoc",
    "context_length": 64,
    "tokens": 63,
    "dense": 10.0,
    "compressed": 12.0,
    "kl": 0.125,
    "kl_stderr": 0.01,
    "top1_agreement": 0.75,
    "domain": "out",
}
_TASK = {
    "task": "arc_easy",
    "metric": "acc",
    "higher_is_better": True,
    "examples": 10,
    "shots": 0,
    "dense": 0.5,
    "compressed": 0.4,
}
REPORT: dict[str, Any] = samples.report().model_dump(mode="json") | {
    "params_before": 1000,
    "params_after": 700,
    "compressible_before": 800,
    "compressible_after": 500,
    "bytes_before": 4000,
    "bytes_after": 2800,
    "calibration_hash": "abc",
    "evaluation": {"perplexity": [PERPLEXITY], "tasks": [_TASK], "speed": _SPEED},
}
