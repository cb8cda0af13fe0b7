"""The HTTP surface of validation: the answers of creation, and a look ahead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.domain.validation import cautions
from app.services import estimates
from app.services.resources import Resources
from app.settings import Settings
from intraslice_core.config import CompressionConfig, EvaluationConfig
from intraslice_core.cost_model import stage_work
from intraslice_core.progress import Stage
from tests.app.builders import BODY, running

pytestmark = [pytest.mark.postgres, pytest.mark.broker]

GEOMETRY = {
    "model_type": "llama",
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "tie_word_embeddings": True,
    "max_position_embeddings": 512,
}
COMPRESSIBLE = 4 * (64 * 16 * (4 + 2) * 2 + 3 * 64 * 256)
PARAMETERS = COMPRESSIBLE + 100 * 64 + (2 * 4 + 1) * 64


@pytest.fixture
def model(tmp_path: Path) -> dict[str, str]:
    """A model of which only the headers are real."""
    directory = tmp_path / "models" / "small"
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(GEOMETRY))
    entry = {"dtype": "BF16", "shape": [PARAMETERS], "data_offsets": [0, 2 * PARAMETERS]}
    header = json.dumps({"model.norm.weight": entry}).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2 * PARAMETERS)
    return {"source": "path", "ref": str(directory)}


def validate(client: TestClient, body: dict[str, Any]) -> Any:
    return client.post("/v1/jobs:validate", json=body)


def warnings(answer: Any) -> set[str]:
    return {warning["code"] for warning in answer.json()["warnings"]}


def measured_on(device: str, *, compressible: int) -> dict[str, Any]:
    """What a job's report says about the machine and the model."""
    return {"device": device, "compressible_before": compressible, "geometry": GEOMETRY}


def test_estimate_tells_sizes_and_queues_nothing(client: TestClient, model: dict[str, str]) -> None:
    answer = validate(client, {"model": model, "compression": {"ratio": 0.25}})
    assert answer.status_code == 200, answer.text
    told = answer.json()["estimate"]
    assert (told["params_before"], told["compressible_before"]) == (PARAMETERS, COMPRESSIBLE)
    assert told["compressible_after"] == pytest.approx(0.75 * COMPRESSIBLE, rel=0.005)
    removed = told["compressible_before"] - told["compressible_after"]
    assert told["params_after"] == PARAMETERS - removed
    assert told["bytes_before"] == 2 * PARAMETERS
    assert told["bytes_after"] == 2 * told["params_after"]
    assert client.get("/v1/jobs").json()["data"] == []


def test_memory_grows_with_calibration_and_method(
    client: TestClient, model: dict[str, str]
) -> None:
    def peak(method: str, samples: int) -> int:
        calibration = {"samples": samples, "sequence_length": 512}
        compression = {"method": method, "calibration": calibration}
        answer = validate(client, {"model": model, "compression": compression})
        told: int = answer.json()["estimate"]["peak_memory_bytes"]
        return told

    states = 1024 * 512 * 64 * 4
    assert peak("intraslice_plus", 2048) - peak("intraslice_plus", 1024) == 2 * states
    assert peak("intraslice", 2048) - peak("intraslice", 1024) == states


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"source": "package", "ref": "os"}},
        {"model": {"source": "path", "ref": "/etc"}},
        {"compression": {"ratio": 1.5}},
        {"compression": {"calibration": {"source": "/etc/passwd"}}},
        {"evaluation": {"perplexity": ["/etc/passwd"]}},
        {"labels": {"": "x"}},
        {"surprise": 1},
    ],
)
def test_what_creation_refuses_is_refused_in_the_same_words(
    client: TestClient, changes: dict[str, Any]
) -> None:
    answers = [client.post(path, json=BODY | changes) for path in ("/v1/jobs:validate", "/v1/jobs")]
    validated, created = ({**one.json(), "instance": "", "request_id": ""} for one in answers)
    assert answers[0].status_code == 422
    assert validated == created


@pytest.mark.parametrize("path", ["/v1/jobs:validate", "/v1/jobs"])
def test_unknown_architecture_is_refused_with_the_known_ones(
    client: TestClient, model: dict[str, str], path: str
) -> None:
    config = Path(model["ref"]) / "config.json"
    config.write_text(json.dumps(GEOMETRY | {"model_type": "gpt2"}))
    answer = client.post(path, json={"model": model})
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert (error["pointer"], error["code"]) == ("/model/ref", "unsupported_architecture")
    assert "gpt2" in error["message"]
    assert "llama" in error["message"]


def test_budget_that_rounding_misses_is_refused_at_its_ratio(
    client: TestClient, model: dict[str, str]
) -> None:
    coarse = {"round_to": 512}
    body = {"model": model, "compression": coarse | {"ratio": 0.5}}
    errors = client.post("/v1/jobs", json=body).json()["errors"]
    assert [error["pointer"] for error in errors] == ["/compression/ratio"]
    sweep = {"model": model, "compression": coarse, "ratios": [0.0, 0.5]}
    errors = client.post("/v1/sweeps", json=sweep).json()["errors"]
    assert [error["pointer"] for error in errors] == ["/ratios/1"]


@pytest.mark.parametrize(
    ("field", "target"),
    [("target_params", PARAMETERS - COMPRESSIBLE // 2), ("target_bytes", PARAMETERS + 9_000)],
)
def test_sizes_are_estimated_as_ratios_are(
    client: TestClient, model: dict[str, str], field: str, target: int
) -> None:
    compression = {field: target, "round_to": 2, "allocation": "uniform"}
    answer = validate(client, {"model": model, "compression": compression})
    assert answer.status_code == 200, answer.text
    told = answer.json()["estimate"]
    got = {"target_params": "params_after", "target_bytes": "bytes_after"}[field]
    assert told[got] == pytest.approx(target, rel=0.03)
    removed = told["compressible_before"] - told["compressible_after"]
    assert told["achieved_ratio"] == pytest.approx(removed / told["compressible_before"])
    assert ("ratio_extreme" in warnings(answer)) == (told["achieved_ratio"] > 0.5)


@pytest.mark.parametrize("path", ["/v1/jobs:validate", "/v1/jobs"])
@pytest.mark.parametrize(
    "compression",
    [
        {"target_params": PARAMETERS + 1},
        {"target_params": 1000},
        {"target_bytes": 3 * PARAMETERS},
        {"target_bytes": 1000},
    ],
)
def test_sizes_out_of_reach_are_refused_where_they_stand(
    client: TestClient, model: dict[str, str], path: str, compression: dict[str, int]
) -> None:
    answer = client.post(path, json={"model": model, "compression": compression})
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["pointer"] == f"/compression/{next(iter(compression))}"
    assert error["code"] == "budget_out_of_reach"
    assert "; give " in error["message"]


def test_model_that_is_not_here_leaves_the_estimate_open(client: TestClient) -> None:
    answer = validate(client, {"model": {"source": "hub", "ref": "allowed/model"}})
    assert answer.status_code == 200
    assert (answer.json()["estimate"], answer.json()["seconds"]) == (None, None)
    assert "model_not_readable_here" in warnings(answer)


def test_settings_that_are_likely_to_disappoint_are_named(
    client: TestClient, model: dict[str, str], settings: Settings
) -> None:
    text = settings.data_roots[0] / "a.txt"
    text.parent.mkdir()
    text.write_text("words " * 100)
    calibration = {"source": str(text), "samples": 1, "sequence_length": 768}
    answer = validate(
        client,
        {
            "model": model,
            "compression": {"ratio": 0.6, "calibration": calibration},
            "evaluation": {"perplexity": [str(text)]},
        },
    )
    assert warnings(answer) == {
        "calibration_short",
        "evaluation_is_calibration",
        "ratio_extreme",
        "sequences_long",
        "speed_unknown",
    }
    sound = {"model": model, "evaluation": {"perplexity": ["pydoc", str(text)]}}
    sound["compression"] = {"calibration": {"sequence_length": 512}}
    assert warnings(validate(client, sound)) == {"speed_unknown"}


@pytest.mark.parametrize(
    ("calibration", "evaluation", "expected"),
    [
        (["pydoc", "pycode"], ["pydoc"], {"evaluation_of_same_kind"}),
        (["pydoc", "pycode"], ["pycode", "pydoc"], {"evaluation_of_same_kind"}),
        (["pydoc", "pycode"], ["pydoc", "chat"], set()),
        (["self"], ["chat"], set()),
        (["self"], ["self"], {"evaluation_of_same_kind"}),
        (["hub:allowed/d@train", "self"], ["hub:allowed/d@test"], {"evaluation_of_same_kind"}),
    ],
)
def test_a_mixture_flatters_where_all_that_is_scored_is_in_it(
    calibration: list[str], evaluation: list[str], expected: set[str]
) -> None:
    mixture = [{"source": source} for source in calibration]
    config = CompressionConfig.model_validate({"calibration": {"source": mixture}})
    texts = EvaluationConfig(perplexity=tuple(evaluation))
    assert {one.code for one in cautions(None, config, texts)} == expected


def test_tasks_of_unknown_size_are_not_in_the_time() -> None:
    def codes(**asked: object) -> set[str]:
        config = EvaluationConfig.model_validate({"perplexity": ["pydoc"], **asked})
        found = cautions(None, CompressionConfig(), config)
        return {one.code for one in found}

    assert "tasks_not_timed" in codes(tasks=["arc_easy"])
    assert "tasks_not_timed" not in codes(tasks=["arc_easy"], task_limit=10)
    assert "tasks_not_timed" not in codes()


def test_what_is_wrong_with_a_mixture_is_told_at_its_place(client: TestClient) -> None:
    def pointers(source: object, **more: object) -> set[str]:
        body = BODY | {"compression": {"calibration": {"source": source, **more}}}
        answer = validate(client, body)
        assert answer.status_code == 422
        return {error["pointer"] for error in answer.json()["errors"]}

    place = "/compression/calibration"
    assert pointers([{"source": "pydoc", "weight": 0}]) >= {f"{place}/source/0/weight"}
    assert pointers([{"source": "pydoc"}, {"source": "pydoc"}]) == {f"{place}/source"}
    assert pointers([{"source": "a\0b"}, {"source": "pydoc"}]) == {"/compression"}
    few = [{"source": "pydoc"}, {"source": "pycode"}]
    assert pointers(few, samples=1) == {f"{place}/samples"}


def test_written_text_takes_time_and_memory(client: TestClient, model: dict[str, str]) -> None:
    def told(*sources: str) -> Any:
        calibration = {"source": [{"source": one} for one in sources], "samples": 8}
        compression = {"calibration": calibration | {"sequence_length": 512}, "method": "magnitude"}
        body = {"model": model, "compression": compression, "evaluation": {"perplexity": ["pydoc"]}}
        config = CompressionConfig.model_validate(compression)
        memory = validate(client, body).json()["estimate"]["peak_memory_bytes"]
        return memory, stage_work(10**9, 16, config, None)[Stage.CALIBRATE]

    read, written, mixed = (told(*one) for one in (["pydoc"], ["chat"], ["pydoc", "self"]))
    assert written[1] == 8 * 512 * 10**9
    assert mixed[1] == (read[1] + written[1]) / 2
    cache = 2 * 4 * 2 * 16 * 4 * 8 * 512
    assert written[0] > mixed[0] >= read[0]
    assert written[0] - mixed[0] == cache / 2


def test_time_is_told_from_what_workers_have_shown(
    client: TestClient, resources: Resources, model: dict[str, str]
) -> None:
    job = running(resources)
    tokens = job.compression.calibration.samples * job.compression.calibration.sequence_length
    # One million parameters took so long; the estimate is for another number of them.
    report = measured_on("cpu x 2", compressible=1_000_000)
    seconds = {Stage.COMPRESS: 100.0, Stage.LOAD: 2.0, Stage.VERIFY: 0.0001}
    estimates.record_rates(resources, job, report, seconds)
    answer = validate(client, {"model": model}).json()
    (duration,) = answer["durations"]
    assert duration["device"] == "cpu x 2"
    assert answer["seconds"] == duration["seconds"]
    assert answer["seconds"] == pytest.approx(102.0 * COMPRESSIBLE / 1_000_000)
    half = {"calibration": {"samples": 64}}
    assert tokens == 64 * 2 * 2048
    shorter = validate(client, {"model": model, "compression": half}).json()["seconds"]
    assert shorter == pytest.approx(52.0 * COMPRESSIBLE / 1_000_000)
    other = validate(client, {"model": model, "compression": {"method": "intraslice"}})
    assert other.json()["seconds"] is None
    assert "speed_unknown" in warnings(other)


def test_newest_measurement_replaces_the_older(
    client: TestClient, resources: Resources, model: dict[str, str]
) -> None:
    report = measured_on("cpu x 2", compressible=COMPRESSIBLE)
    for seconds in (100.0, 10.0):
        estimates.record_rates(resources, running(resources), report, {Stage.COMPRESS: seconds})
    assert validate(client, {"model": model}).json()["seconds"] == pytest.approx(10.0)


def test_targets_say_what_is_not_built(client: TestClient, model: dict[str, str]) -> None:
    assert available_targets(client, model) == {"research", "adaptive", "stock"}
    config = Path(model["ref"]) / "config.json"
    config.write_text(json.dumps(GEOMETRY | {"model_type": "qwen3"}))
    assert available_targets(client, model) == {"research"}


def available_targets(client: TestClient, model: dict[str, str]) -> set[str]:
    targets = validate(client, {"model": model}).json()["targets"]
    assert {one["target"] for one in targets} == {"research", "adaptive", "stock"}
    return {one["target"] for one in targets if one["available"]}


@pytest.mark.parametrize("path", ["/v1/jobs:validate", "/v1/jobs"])
@pytest.mark.parametrize(
    ("model_type", "method", "pointer"),
    [
        ("qwen3", "intraslice_plus", "/compression/target"),
        ("llama", "intraslice", "/compression/method"),
    ],
)
def test_target_that_a_model_or_method_cannot_have_is_refused(
    client: TestClient,
    model: dict[str, str],
    path: str,
    model_type: str,
    method: str,
    pointer: str,
) -> None:
    config = Path(model["ref"]) / "config.json"
    config.write_text(json.dumps(GEOMETRY | {"model_type": model_type}))
    compression = {"target": "stock", "method": method}
    answer = client.post(path, json={"model": model, "compression": compression})
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert (error["pointer"], error["code"]) == (pointer, "target_not_available")
    assert "research" in error["message"]


def test_stock_shapes_are_estimated_as_the_target_wants_them(
    client: TestClient, model: dict[str, str]
) -> None:
    body = {"model": model, "compression": {"target": "stock", "ratio": 0.3, "round_to": 2}}
    first = validate(client, body).json()["estimate"]["first_layer"]
    assert 2 * first["qk_pairs"] == first["v_head_dim"]
