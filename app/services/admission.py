"""Admission of jobs: allow-lists and limits, checked when a job is created and when it is run.

The size of a model on the hub, or in a package that is not installed here, is known only to the
worker that opens it: the engine checks the same limits there, before it allocates anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from app.adapters.local_paths import resolve_below
from app.domain.errors import (
    FieldProblem,
    IllegalTransitionError,
    InvalidRequestError,
    NotFoundError,
    ServiceError,
)
from app.domain.job import JobRequest
from app.domain.model_source import ModelSource, is_allowed, is_hub_name, is_revision
from app.domain.upload import REFERENCE, UploadKind
from app.domain.worker import DEVICE_NAMES, DeviceChoice
from app.settings import Settings
from intraslice_core.checkpoints.inspection import find_in_package, require_within
from intraslice_core.config import AUTO, CompressionConfig, EvaluationConfig, WeightedSource
from intraslice_core.cost_model import DenseModel, estimate, plan_tournament, read_dense
from intraslice_core.errors import ConfigurationError, ModelError, ModelNotFoundError
from intraslice_core.export.targets import DEMANDS, require_target
from intraslice_core.families.positions import require_lengths
from intraslice_core.families.wrappers import require_wrapper_budget
from intraslice_core.methods.auto import possible_methods
from intraslice_core.text_sources import HUB, NAMED, WEB, WEB_DATASET

_CALIBRATION, _RECOVER = "/compression/calibration", "/compression/recover"
Source = str | tuple[WeightedSource, ...]
Locate = Callable[[str, UploadKind], Path]
"""Path of an upload on the workers; raises a ServiceError if it cannot be used."""


class UploadFacts(Protocol):
    """Facts about ready uploads before a worker has their files."""

    def describe(self, upload_id: str) -> DenseModel | None:
        """Return the description of a model; None if it cannot be read now."""

    def text_problem(self, upload_id: str, text_field: str | None) -> str | None:
        """Return why a job could not read a text by this field; None if it could, or may."""


@dataclass(frozen=True, kw_only=True)
class AdmittedJob:
    """An admitted job in the engine's form: links resolved, every source allowed."""

    model: str
    compression: CompressionConfig
    evaluation: EvaluationConfig | None
    dense: DenseModel | None
    """Description of the model from its headers; None if they cannot be read here."""


class _RejectedError(Exception):
    def __init__(self, code: str, message: str, field: str = "") -> None:
        super().__init__(message)
        self.problem = (code, message, field)


def admit(
    settings: Settings, request: JobRequest, locate: Locate, uploads: UploadFacts | None = None
) -> AdmittedJob:
    """Resolve and check every source of the request.

    Args:
        settings: allow-lists and limits.
        request: the job.
        locate: paths of uploads.
        uploads: their contents; None where the files are on this machine.

    Raises:
        InvalidRequestError: names each field that is rejected.
    """
    problems: list[FieldProblem] = []

    def checked(pointer: str, source: str) -> str:
        try:
            return _text_source(settings, source, locate)
        except _RejectedError as error:
            problems.append(_problem(pointer, error))
            return source

    model, dense = "", None
    try:
        model = _model_reference(settings, request.model, locate)
        dense = _inspected(settings, request.model, model, uploads)
    except _RejectedError as error:
        problems.append(_problem("/model", error))
    compression, evaluation = request.compression, request.evaluation
    if not is_allowed(WEB_DATASET, settings.hub_data_allow):
        compression = compression.without_web()
    compression = _checked_texts(compression, checked)
    problems += _named_twice(compression)
    problems += _unreadable_texts(request, uploads) if uploads is not None else []
    if evaluation is not None:
        texts = tuple(
            checked(f"/evaluation/perplexity/{index}", source)
            for index, source in enumerate(evaluation.perplexity)
        )
        evaluation = evaluation.model_copy(update={"perplexity": texts})
    problems += _beyond_devices(compression)
    problems += _beyond_limits(settings, compression, evaluation)
    problems += _beyond_runtime(settings, request)
    problems += _beyond_positions(dense, compression, evaluation)
    problems += _beyond_target(dense, compression) or _beyond_reach(dense, compression)
    if problems:
        raise InvalidRequestError(
            "The job violates deployment limits or allow-lists", fields=tuple(problems)
        )
    return AdmittedJob(
        model=model,
        compression=compression,
        evaluation=evaluation,
        dense=dense,
    )


def admit_model(settings: Settings, model: ModelSource, locate: Locate) -> str:
    """Resolve a model alone, and check it; return its reference as the engine takes it.

    Raises:
        InvalidRequestError: if it is not allowed, too large, or not there any more.
    """
    try:
        reference = _model_reference(settings, model, locate)
        _inspected(settings, model, reference)
    except _RejectedError as error:
        raise InvalidRequestError(
            "The model violates deployment limits or allow-lists",
            fields=(_problem("/model", error),),
        ) from error
    return reference


def _checked_texts(
    compression: CompressionConfig, checked: Callable[[str, str], str]
) -> CompressionConfig:
    """Return the settings with every source of calibration and training resolved."""
    calibration, recover = compression.calibration, compression.recover
    source = _checked_source(f"{_CALIBRATION}/source", calibration.source, checked)
    resolved = {"calibration": calibration.model_copy(update={"source": source})}
    if recover is None or recover.source is None:
        return compression.model_copy(update=resolved)
    source = _checked_source(f"{_RECOVER}/source", recover.source, checked)
    trained = {"recover": recover.model_copy(update={"source": source})}
    return compression.model_copy(update=resolved | trained)


def _checked_source(pointer: str, source: Source, checked: Callable[[str, str], str]) -> Source:
    """Resolve the sources of a mixture, each as if it were the only one."""
    if isinstance(source, str):
        return checked(pointer, source)
    return tuple(
        part.model_copy(update={"source": checked(f"{pointer}/{index}/source", part.source)})
        for index, part in enumerate(source)
    )


def _named_twice(compression: CompressionConfig) -> list[FieldProblem]:
    """Return problems with sources of different names that are the same file."""
    recover = compression.recover
    sources = {_CALIBRATION: compression.calibration.source, _RECOVER: recover and recover.source}
    return [
        FieldProblem(
            pointer=f"{pointer}/source/{index}/source",
            code="duplicate_source",
            message="is the same text as an earlier source: name it once, with both weights",
        )
        for pointer, source in sources.items()
        if isinstance(source, tuple)
        for index, part in enumerate(source)
        if part.source in [earlier.source for earlier in source[:index]]
    ]


def _unreadable_texts(request: JobRequest, uploads: UploadFacts) -> list[FieldProblem]:
    """Return problems with uploaded texts whose records lack the field that a job would read."""
    problems = []
    for pointer, source, text_field in _named_texts(request):
        if source.startswith(REFERENCE):
            message = uploads.text_problem(source.removeprefix(REFERENCE), text_field)
            if message is not None:
                problem = FieldProblem(pointer=pointer, code="text_field_missing", message=message)
                problems.append(problem)
    return problems


def _named_texts(request: JobRequest) -> Iterator[tuple[str, str, str | None]]:
    """Yield pointer, source and field of every text."""
    calibration, recover = request.compression.calibration, request.compression.recover
    yield from _parts(f"{_CALIBRATION}/source", calibration.source, calibration.text_field)
    if recover is not None and recover.source is not None:
        yield from _parts(f"{_RECOVER}/source", recover.source, recover.text_field)
    if request.evaluation is not None:
        for index, source in enumerate(request.evaluation.perplexity):
            yield f"/evaluation/perplexity/{index}", source, request.evaluation.text_field


def _parts(
    pointer: str, source: Source, text_field: str | None
) -> Iterator[tuple[str, str, str | None]]:
    if isinstance(source, str):
        yield pointer, source, text_field
        return
    for index, part in enumerate(source):
        yield f"{pointer}/{index}/source", part.source, part.text_field or text_field


def _model_reference(settings: Settings, model: ModelSource, locate: Locate) -> str:
    """Return the model's reference as the engine takes it."""
    if model.revision is not None and model.source != "hub":
        raise _RejectedError("not_applicable", "only hub models have revisions", "/revision")
    if model.source == "package":
        if model.ref not in settings.package_allow:
            raise _RejectedError("package_not_allowed", _not_allowed("packages"), "/ref")
        return f"package:{model.ref}"
    if model.source == "hub":
        return _hub_reference(model, settings.hub_allow)
    if model.source == "upload":
        return _uploaded(model.ref, UploadKind.MODEL, locate, "/ref")
    return _local(model.ref, settings.model_roots, "/ref")


def _inspected(
    settings: Settings, model: ModelSource, reference: str, uploads: UploadFacts | None = None
) -> DenseModel | None:
    """Return the model's description from its headers, if it can be read here."""
    place = Path(reference)
    is_stored = model.source == "upload" and not place.is_dir()
    if model.source == "hub" or (is_stored and uploads is None):
        return None
    if model.source == "package":
        try:
            place = find_in_package(model.ref)
        except ModelNotFoundError:
            # It need not be installed where the API runs.
            return None
    try:
        dense = uploads.describe(model.ref) if is_stored and uploads else _described(place)
        if dense is not None:
            require_within(dense.facts, settings.model_limits)
    except ModelError as error:
        hint = f"; {error.hint}" if error.hint else ""
        raise _RejectedError(error.code, error.message + hint, "/ref") from error
    return dense


def _described(place: Path) -> DenseModel:
    return _read_once(place, _version(place)) if place.is_file() else read_dense(place)


@lru_cache(maxsize=16)
def _read_once(file: Path, _version: tuple[int, int]) -> DenseModel:
    """Return the description of a GGUF file, cached: its header takes a tenth of a second."""
    return read_dense(file)


def _version(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_mtime_ns, status.st_size


def _beyond_devices(compression: CompressionConfig) -> list[FieldProblem]:
    """Return a problem if the job names a device as torch does, or asks for several CPUs."""
    code = "device_not_allowed"
    if compression.device not in DEVICE_NAMES:
        message = (
            f"{compression.device!r} is a device of one machine: write gpu, cpu or auto; the"
            " service selects the worker and its GPU"
        )
        return [FieldProblem(pointer="/compression/device", code=code, message=message)]
    if compression.devices > 1 and compression.device == DeviceChoice.CPU:
        message = f"a job on a CPU runs on 1 device, not on {compression.devices}: use gpu or auto"
        return [FieldProblem(pointer="/compression/devices", code=code, message=message)]
    return []


def _beyond_positions(
    dense: DenseModel | None, compression: CompressionConfig, evaluation: EvaluationConfig | None
) -> list[FieldProblem]:
    """Return a problem if a sequence is longer than the model's table of learned positions."""
    try:
        require_lengths(dense.learned_positions if dense else None, compression, evaluation)
    except ConfigurationError as error:
        pointer = f"/{(error.field or 'compression').replace('.', '/')}"
        message = f"{error.message}; {error.hint}"
        return [FieldProblem(pointer=pointer, code=error.code, message=message)]
    return []


def _beyond_target(dense: DenseModel | None, compression: CompressionConfig) -> list[FieldProblem]:
    """Return problems of the target with this model and method."""
    try:
        # A method may be rejected before the model can be read.
        any_type = DEMANDS[compression.target].model_types[0]
        model_type = (dense and dense.target_type(compression.target)) or any_type
        if compression.method == AUTO:
            possible_methods(compression, lambda fixed: require_target(fixed, model_type))
        else:
            require_target(compression, model_type)
        require_wrapper_budget(compression, None if dense is None else dense.wrapper)
    except ConfigurationError as error:
        pointer = f"/{(error.field or 'compression.target').replace('.', '/')}"
        message = f"{error.message}; {error.hint}"
        return [FieldProblem(pointer=pointer, code="target_not_available", message=message)]
    return []


def _beyond_reach(dense: DenseModel | None, compression: CompressionConfig) -> list[FieldProblem]:
    """Return a problem if no shapes that kernels support meet the budget."""
    if dense is None or dense.geometry is None:
        return []
    try:
        model_type = dense.target_type(compression.target)
        if compression.method == AUTO:
            plan_tournament(compression, dense.geometry, dense.item_bytes, model_type)
        else:
            estimate(dense.geometry, dense.item_bytes, compression, None, model_type)
    except ConfigurationError as error:
        pointer = f"/compression/{compression.budget_field}"
        message = f"{error.message}; {error.hint}"
        return [FieldProblem(pointer=pointer, code=error.code, message=message)]
    return []


def _not_allowed(kind: str) -> str:
    setting = {"packages": "PACKAGE_ALLOW", "hub models": "HUB_ALLOW"}[kind]
    return (
        f"not among the allowed {kind}, which GET /v1/models lists; the operator sets them in"
        f" INTRASLICE_{setting}"
    )


def _hub_reference(model: ModelSource, allowed: tuple[str, ...]) -> str:
    if not is_hub_name(model.ref):
        raise _RejectedError("malformed", "a hub model is named org/name", "/ref")
    if not is_allowed(model.ref, allowed):
        raise _RejectedError("hub_not_allowed", _not_allowed("hub models"), "/ref")
    if model.revision is None:
        return f"{HUB}{model.ref}"
    if not is_revision(model.revision):
        raise _RejectedError("malformed", "not a branch, tag or commit", "/revision")
    return f"{HUB}{model.ref}@{model.revision}"


def _text_source(settings: Settings, source: str, locate: Locate) -> str:
    if source in NAMED:
        return source
    if source == WEB:
        if is_allowed(WEB_DATASET, settings.hub_data_allow):
            return source
        raise _RejectedError(
            "hub_not_allowed", f"web is a hub data set that is not allowed here: {WEB_DATASET}"
        )
    if source.startswith(REFERENCE):
        return _uploaded(source.removeprefix(REFERENCE), UploadKind.TEXT, locate, "")
    if source.startswith(HUB):
        name = source.removeprefix(HUB).partition("@")[0].partition(":")[0]
        if not is_hub_name(name) or not is_allowed(name, settings.hub_data_allow):
            raise _RejectedError("hub_not_allowed", "not among the allowed hub data sets")
        return source
    return _local(source, settings.data_roots, "")


def _uploaded(upload_id: str, kind: UploadKind, locate: Locate, field: str) -> str:
    try:
        return str(locate(upload_id, kind))
    except (NotFoundError, IllegalTransitionError) as error:
        raise _RejectedError(error.code, error.message, field) from error


def _local(path: str, roots: tuple[Path, ...], field: str) -> str:
    try:
        return str(resolve_below(path, roots))
    except ServiceError as error:
        raise _RejectedError(error.code, error.message, field) from error


def _beyond_limits(
    settings: Settings, compression: CompressionConfig, evaluation: EvaluationConfig | None
) -> list[FieldProblem]:
    """Return problems with settings above the deployment's limits."""
    calibration = compression.calibration
    length, tokens = settings.max_sequence_length, settings.max_calibration_tokens
    requested = [
        (f"{_CALIBRATION}/sequence_length", calibration.sequence_length, length),
        (f"{_CALIBRATION}/samples", calibration.samples * calibration.sequence_length, tokens),
    ]
    if compression.recover is not None:
        requested += [
            (f"{_RECOVER}/sequence_length", compression.recover.sequence_length, length),
            (f"{_RECOVER}/max_tokens", compression.recover.max_tokens, tokens),
        ]
    if compression.mask_training is not None:
        training = compression.mask_training
        requested.append(("/compression/mask_training/max_tokens", training.max_tokens, tokens))
    if evaluation is not None:
        requested += [
            ("/evaluation/context_length", evaluation.context_length, length),
            ("/evaluation/max_tokens", evaluation.max_tokens, tokens),
        ]
        for index, load in enumerate(evaluation.speed_grid):
            pointer = f"/evaluation/speed_grid/{index}"
            requested += [
                (f"{pointer}/context_length", load.context_length, length),
                (pointer, load.batch_size * load.context_length, tokens),
            ]
    return [
        FieldProblem(
            pointer=pointer,
            code="too_many_tokens",
            message=f"makes {found} tokens, {allowed} are allowed",
        )
        for pointer, found, allowed in requested
        if found > allowed
    ]


def _beyond_runtime(settings: Settings, request: JobRequest) -> list[FieldProblem]:
    requested, allowed = request.max_runtime_s, settings.max_runtime_s
    if requested is None or allowed is None or requested <= allowed:
        return []
    message = f"{requested} s, {allowed} are allowed"
    return [FieldProblem(pointer="/max_runtime_s", code="too_long", message=message)]


def _problem(pointer: str, error: _RejectedError) -> FieldProblem:
    code, message, field = error.problem
    return FieldProblem(pointer=pointer + field, code=code, message=message)
