"""Words of the dashboard: complete for what the API returns, and those of the design."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_origin

import pytest
from pydantic import BaseModel

from app.api.audit_trail import UNKNOWN_ROUTE
from app.domain.errors import ServiceError
from app.domain.events import EventType
from app.domain.lifecycle import State
from app.domain.model_source import ModelSource
from app.domain.service import HandOffTarget
from app.domain.upload import UploadState
from app.domain.worker import WaitingCode
from app.main import create_app
from app.services import claims
from app.settings import Settings
from intraslice_core.config import (
    Allocation,
    Allocator,
    CompressionConfig,
    EvaluationConfig,
    RecoveryLoss,
    Target,
)
from intraslice_core.errors import IntraSliceError
from intraslice_core.methods import METHODS
from intraslice_core.progress import Stage
from intraslice_core.text_sources import NAMED, WEB
from workers import failures

REPOSITORY = Path(__file__).parents[3]
PLACE = REPOSITORY / "app" / "dashboard"

RETIRED = (
    *("What would come of it", "Where the model is", "a Python package of the workers"),
    *("sent from this computer", "Allowed here: none", "Below: models", "How small"),
    *("reach a number of parameters", "Where it is to run", "Sequences", "Tokens in each"),
    *("Sizes in multiples of", "in turns", "Train afterwards", "Who decides", "to find it by"),
    *("flatters", "known once a first job", "made 3 min", "Again, changed", "It waits for"),
    *("A worker has taken it", "can spare", "What both write", "no other beats it"),
    *("None is like that", "rule over keys", "one of the service's"),
)
"""Words that the design replaced."""


def source(name: str) -> str:
    return (PLACE / name).read_text("utf-8")


def keys(name: str, table: str) -> set[str]:
    """Return the names of the entries of an object literal in a module."""
    text = source(name)
    begin = re.search(rf"^(?:export )?const {table}\b[^=]*= \{{", text, re.M)
    assert begin is not None, table
    body = text[begin.end() : text.index("};", begin.end())]
    return set(re.findall(r'(?:^|[{,])\s*"?([\w./-]+)"?: ', body, re.M))


def codes(kind: type[ServiceError] | type[IntraSliceError]) -> Iterator[str]:
    yield kind.code
    for child in kind.__subclasses__():
        yield from codes(child)


def test_every_error_of_the_api_has_words() -> None:
    assert set(codes(ServiceError)) <= keys("problems.js", "PROBLEM_WORDS")


def test_every_failure_of_a_job_has_words() -> None:
    engine = set(codes(IntraSliceError))
    worker = {claims.WORKER_LOST, claims.TIMEOUT, failures.OUT_OF_MEMORY, failures.CHILD_CRASHED}
    words = keys("problems.js", "FAILURE_WORDS")
    assert engine | worker | {failures.CANCELLED, failures.INTERNAL} <= words
    assert words | keys("problems.js", "PROBLEM_WORDS") >= failures.RETRYABLE


@pytest.mark.parametrize(
    ("table", "values"),
    [
        ("STAGES", {*Stage}),
        ("WAITING_WORDS", {*WaitingCode}),
        ("STATE_NAMES", {*State, *UploadState}),
        ("SOURCES", {*get_args(ModelSource.model_fields["source"].annotation)}),
        ("TARGET_NAMES", {*get_args(Target)}),
        ("TEXT_NAMES", {*NAMED, WEB}),
        ("RECOVERY_NAMES", {*get_args(RecoveryLoss)}),
        ("REGISTRIES", {*HandOffTarget}),
        ("EVENT_NAMES", {*EventType}),
        ("ALLOCATION_NAMES", {*get_args(Allocation), *get_args(Allocator)}),
    ],
)
def test_every_value_of_the_api_has_a_name(table: str, values: set[str]) -> None:
    assert {str(value) for value in values} <= keys("words.js", table)


def test_every_call_of_the_audit_log_has_a_name() -> None:
    calls = {
        f"{method.upper()} {path}"
        for path, operations in create_app(Settings()).openapi()["paths"].items()
        for method in operations.keys() - {"get", "head"}
    }
    table = source("words.js").partition("const CALL_NAMES = {")[2].partition("};")[0]
    assert calls == set(re.findall(r'^  "(\w+ /[^"]+)": ', table, re.M))
    assert f'route === "{UNKNOWN_ROUTE}"' in source("words.js")


def settings_of(config: type[BaseModel], path: str) -> Iterator[str]:
    """Yield the paths of all settings that are no groups of settings."""
    for name, field in config.model_fields.items():
        is_list = get_origin(field.annotation) is tuple
        kinds = () if is_list else (field.annotation, *get_args(field.annotation))
        groups = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if groups:
            yield from settings_of(groups[0], f"{path}.{name}")
        else:
            yield f"{path}.{name}"


def test_every_setting_of_a_job_has_a_name() -> None:
    compression = {*settings_of(CompressionConfig, "compression")}
    assert "compression.recover.auxiliary.ce" in compression
    settings = compression | {*settings_of(EvaluationConfig, "evaluation")}
    assert settings - keys("words.js", "SETTING_NAMES") == set()


def test_stages_are_listed_in_order() -> None:
    names = re.findall(r"(\w+): \"", source("words.js").partition("export const STAGES")[2])
    assert names[: len(Stage)] == [stage.value for stage in Stage]


def test_the_form_lists_the_allocations_and_the_methods_that_train_masks() -> None:
    listed = re.search(r"ALLOCATIONS = \[(.*?)\]", source("form/request.js"))
    assert listed is not None
    assert set(re.findall(r'"(\w+)"', listed[1])) == set(get_args(Allocation))
    training = re.search(r"TRAINING = \[(.*?)\]", source("form/masks.js"))
    assert training is not None
    trainable = {name for name, method in METHODS.items() if method.trains_masks}
    assert set(re.findall(r'"(\w+)"', training[1])) == trainable


@pytest.mark.parametrize("words", RETIRED)
def test_replaced_words_do_not_return(words: str) -> None:
    for file in PLACE.rglob("*.js"):
        if "vendor" not in file.parts and "node_modules" not in file.parts:
            assert words not in file.read_text("utf-8"), file.name


def test_the_threshold_of_the_recommendation_is_documented() -> None:
    page = (REPOSITORY / "docs" / "results.md").read_text("utf-8")
    accepted = re.search(r"ACCEPTED = ([\d.]+);", source("views/sweep/points.js"))
    assert accepted is not None
    assert f"at most {100 * float(accepted[1]) - 100:.0f} %" in page
