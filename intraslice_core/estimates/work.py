"""How much each stage has to do, in a unit that its duration grows with."""

from __future__ import annotations

from intraslice_core.config import CompressionConfig, EvaluationConfig
from intraslice_core.progress import Stage

_BENCHMARK_TOKENS = 2 * 3 * (256 + 32)
"""Both models, three repeats, prompt and answer."""


def stage_work(
    params: int, compression: CompressionConfig, evaluation: EvaluationConfig | None
) -> dict[Stage, float]:
    """Tokens times parameters where tokens pass the model; parameters where only weights move.

    Stages that are not in it are not worth predicting.
    """
    calibration = compression.calibration
    tokens = calibration.samples * calibration.sequence_length
    work = {
        Stage.LOAD: float(params),
        Stage.CALIBRATE: float(tokens) * (params if calibration.source == "self" else 1),
        Stage.COMPRESS: float(tokens) * params,
        Stage.VERIFY: float(params),
        Stage.EXPORT: float(params),
        Stage.PUBLISH: float(params),
    }
    if evaluation is not None:
        scored = 2 * len(evaluation.perplexity) * evaluation.max_tokens
        benchmark = _BENCHMARK_TOKENS if evaluation.benchmark else 0
        work[Stage.EVALUATE] = float(scored + benchmark) * params
    return work
