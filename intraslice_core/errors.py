"""Exceptions of the engine, in one hierarchy.

IntraSliceError
├── ConfigurationError            a setting is out of range or contradicts another
│   └── BudgetOutOfReachError     no shapes of the model have the requested size
├── ModelError                    the model cannot be used
│   ├── ModelNotFoundError
│   ├── UnsupportedArchitectureError
│   ├── UnsupportedFormatError    quantised by an unsupported scheme, an adapter, another file type
│   ├── BrokenCheckpointError     a file is missing, truncated or invalid
│   ├── TokenizerError            the tokenizer is missing, broken or does not fit the model
│   ├── NonFiniteWeightError
│   └── ModelTooLargeError        larger than the deployment allows
├── CalibrationError
│   ├── CalibrationSourceError    the text cannot be read
│   │   └── WebTextError          the source `web` cannot be read from the hub
│   ├── CalibrationTooShortError
│   └── CalibrationUniformError   the text repeats itself
├── TaskError                     a zero-shot task cannot be measured
│   ├── MissingExtraError         the harness is not installed
│   ├── TaskNotFoundError
│   └── TaskDataError             its examples cannot be read
├── NumericalError                a factorisation or an activation failed, with layer and module
├── OutOfDeviceMemoryError        the compute device has too little memory
├── InsufficientDiskError
├── OutputExistsError
├── OutputInUseError              another running process writes to the same output
├── OutputNotWritableError        a path to write to cannot be created or written
├── VerificationError             the written files do not behave like the model in memory
├── QualityGateError              the compressed model is worse than allowed
├── ManifestError                 files do not match their manifest
├── MeasurementError              a speed or size could not be measured
├── RankFailedError               a process that shares the work has ended or cannot be reached
└── CompressionCancelledError     the run was cancelled on request

`code` is the stable name for API clients, `field` is the name of the invalid input, and `hint` says
what to do about it.
"""

from __future__ import annotations

from typing import ClassVar


class IntraSliceError(Exception):
    """Base class of the errors that the engine reports."""

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
    """No shapes of the model have the requested size."""

    code = "budget_out_of_reach"


class ModelError(IntraSliceError):
    """The model cannot be used."""

    code = "bad_model"


class ModelNotFoundError(ModelError):
    """The model reference names no model."""

    code = "model_not_found"


class UnsupportedArchitectureError(ModelError):
    """The engine has no adapter for this architecture."""

    code = "unsupported_architecture"


class UnsupportedFormatError(ModelError):
    """The model's files are in a form that the engine does not read."""

    code = "unsupported_format"


class BrokenCheckpointError(ModelError):
    """A checkpoint file is missing, truncated or invalid."""

    code = "broken_checkpoint"


class TokenizerError(ModelError):
    """The model's tokenizer is missing, cannot be loaded, or does not fit the embedding."""

    code = "bad_tokenizer"


class NonFiniteWeightError(ModelError):
    """A weight contains NaN or infinity."""

    code = "non_finite_weight"


class ModelTooLargeError(ModelError):
    """The model is larger than the deployment allows."""

    code = "model_too_large"


class CalibrationError(IntraSliceError):
    """The calibration text cannot be used."""

    code = "bad_calibration"


class CalibrationSourceError(CalibrationError):
    """The calibration text cannot be read."""

    code = "calibration_source"


class WebTextError(CalibrationSourceError):
    """The source `web` cannot be read from the hub."""

    code = "web_text"


class CalibrationTooShortError(CalibrationError):
    """The source contains fewer tokens than the settings require."""

    code = "calibration_too_short"


class CalibrationUniformError(CalibrationError):
    """The text repeats so few tokens that its statistics have almost no rank."""

    code = "calibration_too_uniform"


class ManifestError(IntraSliceError):
    """Files do not match their manifest, or the manifest's signature is not the expected one."""

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
    """A factorisation or an activation failed; `layer` and `module` say where."""

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


class OutOfDeviceMemoryError(IntraSliceError):
    """The compute device has too little memory, even for a batch of one sequence.

    Args:
        message: sizes for people.
        field: setting to lower.
        hint: advice.
        needed_bytes: size of the allocation that failed; None if unknown.
        free_bytes: free memory of the device then; None if unknown.
        total_bytes: memory of the device; None if unknown.
    """

    code = "out_of_device_memory"

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        hint: str | None = None,
        needed_bytes: int | None = None,
        free_bytes: int | None = None,
        total_bytes: int | None = None,
    ) -> None:
        super().__init__(message, field=field, hint=hint)
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes
        self.total_bytes = total_bytes


class InsufficientDiskError(IntraSliceError):
    """The target file system cannot hold the result."""

    code = "insufficient_disk"


class OutputExistsError(IntraSliceError):
    """The output directory already exists."""

    code = "output_exists"


class OutputInUseError(IntraSliceError):
    """Another running process writes to the same output."""

    code = "output_in_use"


class OutputNotWritableError(IntraSliceError):
    """A path to write to cannot be created or written."""

    code = "output_not_writable"


class VerificationError(IntraSliceError):
    """The written files do not behave like the model in memory."""

    code = "verification_failed"


class QualityGateError(IntraSliceError):
    """The compressed model is worse than the job allows."""

    code = "quality_gate"


class MeasurementError(IntraSliceError):
    """A speed or size could not be measured."""

    code = "measurement_failed"


class RankFailedError(IntraSliceError):
    """A process that shares the work has ended or cannot be reached."""

    code = "rank_failed"


class CompressionCancelledError(IntraSliceError):
    """The run was cancelled on request; its files were removed."""

    code = "cancelled"
