"""The plan depends on dtype and seed no more than the judge's standard errors say.

`benchmarks/stability.py` measures the same on a real model, by perplexities.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import Tensor

from intraslice_core import pipeline
from intraslice_core.allocation.estimators import CalibrationSplit
from intraslice_core.allocation.judge import HeldOutDivergence, difference
from intraslice_core.allocation.shapes import AllocationContext, Shapes, choose_shapes
from intraslice_core.allocation.uniform import uniform_plan
from intraslice_core.calibration import sequence_sources
from intraslice_core.config import CompressionConfig
from intraslice_core.evaluation.loaded_models import load_model
from intraslice_core.plan import ModelPlan
from intraslice_core.statistics import kl_divergence
from tests.intraslice_core.compressing import compress_unverified
from tests.intraslice_core.tiny_models import tiny_llama

TOLERANCE = 3.0
"""Standard errors of a plan's difference from the first; with 2 one of three plans would often
differ by chance."""
SHARE = 0.05
"""Share of what the plan gains over equal layers, within which plans count as alike: the standard
error is that of the check set, and does not have the calibration's own scatter."""


class Judge:
    """Choice of plans with any seed and dtype, and their comparison on one check set in float32."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.monkeypatch = monkeypatch
        self.dense = tiny_llama(directory / "dense")
        self.numbers = count()
        self.reference, self.split, self.equal_layers = self._first()

    def config(self, seed: int, dtype: str) -> CompressionConfig:
        calibration = {"source": "pydoc", "samples": 64, "sequence_length": 32, "seed": seed}
        settings = {"ratio": 0.3, "round_to": 4, "dtype": dtype, "calibration": calibration}
        return CompressionConfig.model_validate(settings)

    def compress(self, config: CompressionConfig) -> tuple[Path, ModelPlan]:
        out = self.directory / f"out-{next(self.numbers)}"
        return out, compress_unverified(self.dense, out, config).plan

    def _first(self) -> tuple[Shapes, CalibrationSplit, ModelPlan]:
        """Return the shapes and check set of the first run, and equal layers of its size."""
        recorded: list[tuple[AllocationContext, Tensor, Shapes]] = []

        def recording(context: AllocationContext, tokens: Tensor) -> Shapes:
            recorded.append((context, tokens, choose_shapes(context, tokens)))
            return recorded[-1][2]

        config = self.config(0, "float32")
        with self.monkeypatch.context() as patch:
            patch.setattr(pipeline, "choose_shapes", recording)
            self.compress(config)
        context, tokens, shapes = recorded[0]
        kinds = sequence_sources(config.resolved_calibration)
        equal = uniform_plan(context.geometry, 0.3, 4, context.demands.shapes)
        return shapes, CalibrationSplit.of(tokens, kinds), equal

    def divergence(self, plan: ModelPlan) -> HeldOutDivergence:
        """Compress with a plan, by the first run's sensitivity; compare with the dense model."""
        with self.monkeypatch.context() as patch:
            shapes = replace(self.reference, plan=plan)
            patch.setattr(pipeline, "choose_shapes", lambda *_: shapes)
            out, _ = self.compress(self.config(0, "float32"))
        check = self.split.judged
        with torch.inference_mode():
            dense, compressed = (
                load_model(place, dtype="float32", device="cpu")(input_ids=check)
                .logits.flatten(0, 1)
                .log_softmax(-1)
                for place in (self.dense, out)
            )
        tokens = kl_divergence(dense, compressed)
        return HeldOutDivergence(tokens=tokens.view(check.shape), kinds=self.split.judged_kinds)


def test_the_plan_depends_on_dtype_and_seed_within_the_standard_error(tmp_path, monkeypatch):
    judge = Judge(tmp_path, monkeypatch)
    reference = judge.divergence(judge.reference.plan)
    # The check set can tell plans apart: equal layers, the usual fallback, are clearly worse.
    fallback = difference(reference, judge.divergence(judge.equal_layers))
    assert fallback.value > 2 * TOLERANCE * fallback.standard_error

    runs = [(0, "bfloat16"), (1, "float32"), (2, "float32")]
    for seed, dtype in runs:
        _, plan = judge.compress(judge.config(seed, dtype))
        other = difference(judge.divergence(plan), reference)
        limit = max(TOLERANCE * other.standard_error, SHARE * fallback.value)
        assert abs(other.value) <= limit, (seed, dtype)
