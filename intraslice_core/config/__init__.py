"""Settings of the engine: frozen pydantic models shared by API, CLI and workers."""

from __future__ import annotations

from intraslice_core.config.base import FrozenModel
from intraslice_core.config.calibration import (
    DEFAULT_MIXTURE,
    MAX_SEQUENCES,
    CalibrationConfig,
    CalibrationPart,
    TextField,
    WeightedSource,
)
from intraslice_core.config.compression import (
    COMPRESSED_MODEL_TYPES,
    DEFAULT_RATIO,
    FORMER_METHOD,
    RENAMED_METHOD_ERROR,
    SUPPORTED_MODEL_TYPES,
    UNLIMITED,
    Allocation,
    Allocator,
    BudgetField,
    CompressionConfig,
    CompressionSettings,
    ComputeDtype,
    ExportFormat,
    GgufFormat,
    Method,
    ModelLimits,
    Ratio,
    Target,
)
from intraslice_core.config.evaluation import EvaluationConfig, GateConfig, SpeedPoint, TaskName
from intraslice_core.config.recovery import HELD_OUT_SEQUENCES, RecoveryConfig, RecoveryLoss

__all__ = [
    "COMPRESSED_MODEL_TYPES",
    "DEFAULT_MIXTURE",
    "DEFAULT_RATIO",
    "FORMER_METHOD",
    "HELD_OUT_SEQUENCES",
    "MAX_SEQUENCES",
    "RENAMED_METHOD_ERROR",
    "SUPPORTED_MODEL_TYPES",
    "UNLIMITED",
    "Allocation",
    "Allocator",
    "BudgetField",
    "CalibrationConfig",
    "CalibrationPart",
    "CompressionConfig",
    "CompressionSettings",
    "ComputeDtype",
    "EvaluationConfig",
    "ExportFormat",
    "FrozenModel",
    "GateConfig",
    "GgufFormat",
    "Method",
    "ModelLimits",
    "Ratio",
    "RecoveryConfig",
    "RecoveryLoss",
    "SpeedPoint",
    "Target",
    "TaskName",
    "TextField",
    "WeightedSource",
]
