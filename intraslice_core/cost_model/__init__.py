"""Size, memory and work of a compression, estimated before it runs without importing torch."""

from __future__ import annotations

from intraslice_core.cost_model.dense import DenseModel, describe_dense, read_dense
from intraslice_core.cost_model.durations import (
    AllocationSeconds,
    EvaluationSeconds,
    ExpectedDurations,
    allocation_seconds,
    evaluation_seconds,
    expected_durations,
    stage_seconds,
)
from intraslice_core.cost_model.flops import StageFlops, stage_flops
from intraslice_core.cost_model.memory import (
    StageBytes,
    fine_tuning_bytes,
    gpu_host_bytes,
    least_writing_bytes,
    peak_memory,
    stage_bytes,
)
from intraslice_core.cost_model.parallel import H100_SXM, Machine, StageCost, parallel_costs
from intraslice_core.cost_model.past_runs import PastRun, Prediction, predict_duration
from intraslice_core.cost_model.rates import REFERENCE_RATES, MachineRates, machine_rates
from intraslice_core.cost_model.sizes import Estimate, estimate
from intraslice_core.cost_model.tournament import Candidate, TournamentPlan, plan_tournament

__all__ = [
    "H100_SXM",
    "REFERENCE_RATES",
    "AllocationSeconds",
    "Candidate",
    "DenseModel",
    "Estimate",
    "EvaluationSeconds",
    "ExpectedDurations",
    "Machine",
    "MachineRates",
    "PastRun",
    "Prediction",
    "StageBytes",
    "StageCost",
    "StageFlops",
    "TournamentPlan",
    "allocation_seconds",
    "describe_dense",
    "estimate",
    "evaluation_seconds",
    "expected_durations",
    "fine_tuning_bytes",
    "gpu_host_bytes",
    "least_writing_bytes",
    "machine_rates",
    "parallel_costs",
    "peak_memory",
    "plan_tournament",
    "predict_duration",
    "read_dense",
    "stage_bytes",
    "stage_flops",
    "stage_seconds",
]
