"""The engine's errors, one tree.

IntraSliceError
├── ConfigurationError            a setting is out of range or contradicts another
│   └── BudgetOutOfReachError     no shapes of this model have the size asked for
├── ModelError                    the model cannot be used
│   ├── ModelNotFoundError
│   ├── UnsupportedArchitectureError
│   ├── BrokenCheckpointError     a file is missing, truncated or not what it says
│   ├── NonFiniteWeightError
│   └── ModelTooLargeError        larger than this deployment allows
├── CalibrationError
│   ├── CalibrationSourceError    the text cannot be read
│   └── CalibrationTooShortError
├── TaskError                     a zero-shot task cannot be measured
│   ├── MissingExtraError         the harness is not installed
│   ├── TaskNotFoundError
│   └── TaskDataError             its examples cannot be read
├── NumericalError                a factorisation or an activation failed, with layer and module
├── InsufficientDiskError
├── OutputExistsError
├── VerificationError             the written files do not behave like the model in memory
├── QualityGateError
└── CompressionCancelledError     somebody asked to stop

`code` is the stable name that reaches API clients; `field` names the input at fault and `hint`
says what to do about it.
"""

from __future__ import annotations

from typing import ClassVar


class IntraSliceError(Exception):
    """Something the engine refuses to do or could not do."""

    code: ClassVar[str] = "engine_error"

    def __init__(self, message: str, *, field: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.hint = hint

    def __str__(self) -> str:
        where = f"{self.field}: " if self.field else ""
        advice = f" ({self.hint})" if self.hint else ""
        return f"{where}{self.message}{advice}"


class ConfigurationError(IntraSliceError):
    """A setting is out of range or contradicts another."""

    code = "bad_configuration"


class BudgetOutOfReachError(ConfigurationError):
    """No shapes of this model have the size asked for."""

    code = "budget_out_of_reach"


class ModelError(IntraSliceError):
    """The model cannot be used."""

    code = "bad_model"


class ModelNotFoundError(ModelError):
    """The model reference leads nowhere."""

    code = "model_not_found"


class UnsupportedArchitectureError(ModelError):
    """The engine has no adapter for this architecture."""

    code = "unsupported_architecture"


class BrokenCheckpointError(ModelError):
    """A checkpoint file is missing, truncated or not what it says it is."""

    code = "broken_checkpoint"


class NonFiniteWeightError(ModelError):
    """A weight holds NaN or infinity."""

    code = "non_finite_weight"


class ModelTooLargeError(ModelError):
    """The model is larger than allowed."""

    code = "model_too_large"


class CalibrationError(IntraSliceError):
    """The calibration text cannot be used."""

    code = "bad_calibration"


class CalibrationSourceError(CalibrationError):
    """The calibration text cannot be read."""

    code = "calibration_source"


class CalibrationTooShortError(CalibrationError):
    """The source holds fewer tokens than the settings ask for."""

    code = "calibration_too_short"


class ManifestError(IntraSliceError):
    """Files are not those that a manifest names, or a manifest is not by whom it should be."""

    code = "manifest_mismatch"


class TaskError(IntraSliceError):
    """A zero-shot task cannot be measured."""

    code = "bad_task"


class MissingExtraError(TaskError):
    """The evaluation harness is not installed."""

    code = "missing_extra"


class TaskNotFoundError(TaskError):
    """No task has this name."""

    code = "task_not_found"


class TaskDataError(TaskError):
    """A task's examples cannot be read."""

    code = "task_data"


class NumericalError(IntraSliceError):
    """A factorisation or an activation failed; names the layer and the module."""

    code = "numerical"

    def __init__(
        self,
        message: str,
        *,
        layer: int | None = None,
        module: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.layer = layer
        self.module = module

    def __str__(self) -> str:
        where = ", ".join(
            part
            for part in (
                f"layer {self.layer}" if self.layer is not None else "",
                self.module or "",
            )
            if part
        )
        return f"{where}: {super().__str__()}" if where else super().__str__()


class InsufficientDiskError(IntraSliceError):
    """The target file system cannot hold the result."""

    code = "insufficient_disk"


class OutputExistsError(IntraSliceError):
    """The output directory is already there."""

    code = "output_exists"


class VerificationError(IntraSliceError):
    """The written files do not behave like the model in memory."""

    code = "verification_failed"


class QualityGateError(IntraSliceError):
    """The compressed model is worse than the job allows."""

    code = "quality_gate"


class MeasurementError(IntraSliceError):
    """Something could not be measured."""

    code = "measurement_failed"


class CompressionCancelledError(IntraSliceError):
    """Somebody asked the engine to stop; nothing is left behind."""

    code = "cancelled"
