"""The HTTP surface of validation: the errors of creation, estimates and warnings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from app.adapters.database import past_runs
from app.domain.validation import cautions
from app.services import claims, estimates
from app.services.resources import Resources
from app.settings import Settings
from intraslice_core.config import CompressionConfig, EvaluationConfig
from intraslice_core.cost_model import PastRun, stage_seconds
from intraslice_core.cost_model.past_runs import WIDE_FACTOR
from intraslice_core.plan import ModelGeometry
from intraslice_core.progress import Stage
from tests.app.builders import BODY, claim_job, running
from tests.app.fleets import CPU, register
from tests.app.stored_report import REPORT

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
SHAPES = ModelGeometry(
    **{name: GEOMETRY[name] for name in GEOMETRY if name in ModelGeometry.model_fields},
    head_dim=16,
)
COMPRESSIBLE = 4 * (64 * 16 * (4 + 2) * 2 + 3 * 64 * 256)
PARAMETERS = COMPRESSIBLE + 100 * 64 + (2 * 4 + 1) * 64


@pytest.fixture
def model(tmp_path: Path) -> dict[str, str]:
    """Create a model of which only the headers are real."""
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


def measured_on(device: str) -> dict[str, Any]:
    """Return the report of a job on the model that ran on a device."""
    sizes = {"params_before": PARAMETERS, "bytes_before": 2 * PARAMETERS}
    return REPORT | sizes | {"device": device, "geometry": SHAPES.model_dump(mode="json")}


def work_of(compression: CompressionConfig) -> dict[Stage, float]:
    """Return the seconds of each stage on the reference machine."""
    seconds = stage_seconds(SHAPES, compression, None, 2)
    return {stage: work for stage, work in seconds.items() if work > 0.0}


def finish(
    resources: Resources, compression: CompressionConfig, slowness: float, device: str = "cpu x 2"
) -> None:
    """Record a job whose stages take half a second, and so many times their work."""
    report = measured_on(device) | {"method": compression.method}
    seconds = {stage: 0.5 + slowness * work for stage, work in work_of(compression).items()}
    estimates.record_run(resources, running(resources, compression=compression), report, seconds)


def test_an_estimate_has_the_sizes_and_queues_nothing(
    client: TestClient, model: dict[str, str]
) -> None:
    answer = validate(client, {"model": model, "compression": {"ratio": 0.25}})
    assert answer.status_code == 200, answer.text
    assert answer.json()["calibration_sources"] == ["pydoc", "pycode", "chat", "self"]
    estimate = answer.json()["estimate"]
    sizes_before = (estimate["params_before"], estimate["compressible_before"])
    assert sizes_before == (PARAMETERS, COMPRESSIBLE)
    assert estimate["compressible_after"] == pytest.approx(0.75 * COMPRESSIBLE, rel=0.005)
    assert estimate["round_to"] == min(
        8, GEOMETRY["hidden_size"] // GEOMETRY["num_attention_heads"] // 8
    )
    removed = estimate["compressible_before"] - estimate["compressible_after"]
    assert estimate["params_after"] == PARAMETERS - removed
    assert estimate["bytes_before"] == 2 * PARAMETERS
    assert estimate["bytes_after"] == 2 * estimate["params_after"]
    assert estimate["least_memory_bytes"] <= estimate["peak_memory_bytes"]
    assert answer.json()["gpu_host_bytes"] > 0
    assert client.get("/v1/jobs").json()["data"] == []


def test_memory_grows_with_calibration_and_method(
    client: TestClient, model: dict[str, str]
) -> None:
    def peak(method: str, samples: int) -> int:
        calibration = {"samples": samples, "sequence_length": 512}
        compression = {"method": method, "calibration": calibration}
        answer = validate(client, {"model": model, "compression": compression})
        estimate: int = answer.json()["estimate"]["peak_memory_bytes"]
        return estimate

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
def test_validation_returns_the_errors_of_creation(
    client: TestClient, changes: dict[str, Any]
) -> None:
    answers = [client.post(path, json=BODY | changes) for path in ("/v1/jobs:validate", "/v1/jobs")]
    validated, created = ({**answer.json(), "instance": "", "request_id": ""} for answer in answers)
    assert answers[0].status_code == 422
    assert validated == created


@pytest.mark.parametrize("path", ["/v1/jobs:validate", "/v1/jobs"])
def test_an_unknown_architecture_is_rejected_with_the_supported_ones(
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


@pytest.mark.parametrize(
    ("file", "content", "code", "words"),
    [
        (
            "config.json",
            json.dumps(GEOMETRY | {"quantization_config": {"quant_method": "gptq", "bits": 4}}),
            "unsupported_format",
            "GPTQ (4 bits)",
        ),
        (
            "adapter_config.json",
            '{"peft_type": "LORA", "base_model_name_or_path": "org/base"}',
            "unsupported_format",
            "LORA adapter of org/base; merge it into its base first",
        ),
        (
            "tokenizer.json",
            "version https://git-lfs.github.com/spec/v1\n",
            "broken_checkpoint",
            "git lfs pull",
        ),
    ],
)
def test_other_forms_of_models_are_named_with_the_remedy(
    client: TestClient, model: dict[str, str], file: str, content: str, code: str, words: str
) -> None:
    (Path(model["ref"]) / file).write_text(content)
    (error,) = validate(client, {"model": model}).json()["errors"]
    assert (error["pointer"], error["code"]) == ("/model/ref", code)
    assert words in error["message"]


def test_a_budget_that_rounding_misses_is_rejected_at_its_ratio(
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
def test_target_sizes_are_estimated_like_ratios(
    client: TestClient, model: dict[str, str], field: str, target: int
) -> None:
    compression = {field: target, "round_to": 2, "allocation": "uniform"}
    answer = validate(client, {"model": model, "compression": compression})
    assert answer.status_code == 200, answer.text
    estimate = answer.json()["estimate"]
    size_after = {"target_params": "params_after", "target_bytes": "bytes_after"}[field]
    assert estimate[size_after] == pytest.approx(target, rel=0.03)
    removed = estimate["compressible_before"] - estimate["compressible_after"]
    assert estimate["achieved_ratio"] == pytest.approx(removed / estimate["compressible_before"])
    assert ("ratio_extreme" in warnings(answer)) == (estimate["achieved_ratio"] > 0.5)


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
def test_target_sizes_out_of_reach_are_rejected_at_their_field(
    client: TestClient, model: dict[str, str], path: str, compression: dict[str, int]
) -> None:
    answer = client.post(path, json={"model": model, "compression": compression})
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["pointer"] == f"/compression/{next(iter(compression))}"
    assert error["code"] == "budget_out_of_reach"
    assert "; give " in error["message"]


def test_a_model_that_is_not_local_has_no_estimate(client: TestClient) -> None:
    answer = validate(client, {"model": {"source": "hub", "ref": "allowed/model"}})
    assert answer.status_code == 200
    assert (answer.json()["estimate"], answer.json()["seconds"]) == (None, None)
    assert "model_not_readable_here" in warnings(answer)


def test_settings_of_likely_poor_quality_are_warnings(
    client: TestClient, model: dict[str, str], settings: Settings, resources: Resources
) -> None:
    register(resources, "worker", CPU)
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


def test_a_method_says_before_the_work_what_a_target_lacks(
    client: TestClient, model: dict[str, str]
) -> None:
    body: dict[str, Any] = {"model": model, "evaluation": {"perplexity": ["chat"]}}
    flap = {"method": "flap", "calibration": {"source": "pydoc", "sequence_length": 512}}
    published = validate(client, body | {"compression": flap})
    assert "no_bias_compensation" not in warnings(published)
    biases = 4 * 2 * 64
    after = published.json()["estimate"]
    removed = after["compressible_before"] - after["compressible_after"]
    assert after["params_after"] == PARAMETERS - removed + biases
    adaptive = validate(client, body | {"compression": flap | {"target": "adaptive"}})
    assert "no_bias_compensation" in warnings(adaptive)
    stock = validate(client, body | {"compression": flap | {"target": "stock"}})
    assert stock.status_code == 422
    (error,) = stock.json()["errors"]
    assert error["pointer"] == "/compression/method"
    assert "use intraslice_plus or wanda_sp or transact or shortgpt or fusegpt" in error["message"]
    fisher = validate(client, body | {"compression": flap | {"allocation": "lagrangian"}})
    assert "flap does not support allocation lagrangian" in fisher.text


def test_methods_with_trained_masks_are_checked_before_the_work(
    client: TestClient, model: dict[str, str]
) -> None:
    body: dict[str, Any] = {"model": model, "evaluation": {"perplexity": ["chat"]}}
    calibration = {"source": "pydoc", "sequence_length": 512}

    def errors(**compression: Any) -> list[tuple[str, str]]:
        settings = {"calibration": calibration, "ratio": 0.3} | compression
        answer = validate(client, body | {"compression": settings})
        if answer.status_code == 200:
            estimate = answer.json()["estimate"]
            assert estimate["achieved_ratio"] == pytest.approx(0.3, abs=0.005)
            return []
        return [(error["pointer"], error["message"]) for error in answer.json()["errors"]]

    training = {"max_tokens": 10_000}
    for method in ("spp", "disp"):
        assert errors(method=method) == errors(method=method, mask_training=training) == []
    ((pointer, message),) = errors(method="disp", target="stock")
    assert pointer == "/compression/method"
    assert "stock does not support method disp" in message
    ((pointer, message),) = errors(method="flap", mask_training=training)
    assert pointer == "/compression/mask_training"
    assert "use method spp or disp" in message
    ((pointer, _),) = errors(method="spp", mask_training={"max_tokens": 2**26})
    assert pointer == "/compression/mask_training/max_tokens"


def test_whole_layers_say_before_the_work_which_ratios_a_target_can_meet(
    client: TestClient, model: dict[str, str]
) -> None:
    body: dict[str, Any] = {"model": model, "evaluation": {"perplexity": ["chat"]}}
    settings = {"method": "shortgpt", "calibration": {"source": "pydoc", "sequence_length": 512}}
    free = validate(client, body | {"compression": settings | {"ratio": 0.3}})
    estimate = free.json()["estimate"]
    assert estimate["achieved_ratio"] == pytest.approx(0.3, abs=0.005)
    assert estimate["layers_after"] == 3
    stock = validate(client, body | {"compression": settings | {"target": "stock", "ratio": 0.3}})
    assert stock.status_code == 422
    (error,) = stock.json()["errors"]
    assert error["pointer"] == "/compression/ratio"
    assert "a ratio of 0.2500 (1 layer), a ratio of 0.5000 (2 layers)" in error["message"]
    whole = settings | {"target": "stock", "ratio": 0.25}
    assert validate(client, body | {"compression": whole}).json()["estimate"]["achieved_ratio"] == (
        0.25
    )


def test_a_sliced_residual_stream_says_before_the_work_what_it_costs(
    client: TestClient, model: dict[str, str]
) -> None:
    body: dict[str, Any] = {"model": model, "evaluation": {"perplexity": ["chat"]}}
    settings = {"method": "slicegpt", "calibration": {"source": "pydoc", "sequence_length": 512}}
    small = validate(client, body | {"compression": settings | {"ratio": 0.1}})
    assert "shortcuts_costly" in warnings(small)
    estimate = small.json()["estimate"]
    residual = estimate["first_layer"]["residual"]
    assert residual["attention"] < 64
    assert estimate["achieved_ratio"] == pytest.approx(0.1, abs=0.005)
    removed = estimate["compressible_before"] - estimate["compressible_after"]
    assert estimate["params_after"] == estimate["params_before"] - removed
    target = validate(client, body | {"compression": settings | {"target": "adaptive"}})
    assert "target adaptive does not support method slicegpt" in target.text
    beyond = validate(client, body | {"compression": settings | {"ratio": 0.99, "round_to": 32}})
    assert beyond.status_code == 422
    (error,) = beyond.json()["errors"]
    assert error["pointer"] == "/compression/ratio"
    assert "residual stream of 32 dimensions" in error["message"]
    recover = {"loss": "hidden", "max_tokens": 4096, "source": "pydoc"}
    hidden = validate(client, body | {"compression": settings | {"recover": recover}})
    (error,) = hidden.json()["errors"]
    assert error["pointer"] == "/compression/recover/loss"


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
def test_in_domain_evaluation_is_a_warning(
    calibration: list[str], evaluation: list[str], expected: set[str]
) -> None:
    mixture = [{"source": source} for source in calibration]
    config = CompressionConfig.model_validate({"calibration": {"source": mixture}})
    texts = EvaluationConfig(perplexity=tuple(evaluation))
    assert {caution.code for caution in cautions(None, config, texts)} == expected


def test_tasks_of_unknown_size_are_a_warning() -> None:
    def codes(**settings: object) -> set[str]:
        config = EvaluationConfig.model_validate({"perplexity": ["pydoc"], **settings})
        return {caution.code for caution in cautions(None, CompressionConfig(), config)}

    assert "tasks_not_timed" in codes(tasks=["arc_easy"])
    assert "tasks_not_timed" not in codes(tasks=["arc_easy"], task_limit=10)
    assert "tasks_not_timed" not in codes()


def test_errors_of_a_mixture_point_to_the_source(client: TestClient) -> None:
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


def test_text_that_the_model_generates_costs_memory(
    client: TestClient, model: dict[str, str]
) -> None:
    def memory(*sources: str) -> int:
        calibration = {"source": [{"source": source} for source in sources], "samples": 8}
        compression = {"calibration": calibration | {"sequence_length": 512}, "method": "magnitude"}
        evaluation = {"perplexity": ["pydoc"], "max_tokens": 64}
        body = {"model": model, "compression": compression, "evaluation": evaluation}
        peak: int = validate(client, body).json()["estimate"]["peak_memory_bytes"]
        return peak

    read, written, mixed = (
        memory(*sources) for sources in (["pydoc"], ["chat"], ["pydoc", "self"])
    )
    cache = 2 * 4 * 2 * 16 * 4 * 8 * 512
    assert written > mixed >= read
    assert written - mixed == cache / 2


def test_before_any_job_the_time_is_the_cost_models_within_a_wide_factor(
    client: TestClient, model: dict[str, str]
) -> None:
    answer = validate(client, {"model": model})
    times = answer.json()
    assert times["durations"] == []
    assert times["seconds"] > sum(work_of(CompressionConfig()).values())
    assert times["seconds_low"] * WIDE_FACTOR == pytest.approx(times["seconds"])
    assert times["seconds_high"] == pytest.approx(times["seconds"] * WIDE_FACTOR)
    (unknown,) = (each for each in times["warnings"] if each["code"] == "speed_unknown")
    assert "factor of 6" in unknown["message"]


def test_the_time_is_estimated_from_finished_jobs(
    client: TestClient, resources: Resources, model: dict[str, str]
) -> None:
    config = CompressionConfig().without_web()  # the API's default where web text is not admitted
    finish(resources, config, slowness=3.0)
    answer = validate(client, {"model": model})
    assert "speed_unknown" not in warnings(answer)
    (duration,) = answer.json()["durations"]
    assert (duration["device"], duration["jobs"]) == ("cpu x 2", 1)
    for name in ("seconds_low", "seconds", "seconds_high"):
        assert answer.json()[name] == duration[name]
    work = work_of(config)
    expected = 0.5 * len(work) + 3.0 * sum(work.values())
    assert duration["seconds"] == pytest.approx(expected, rel=0.05)
    assert duration["seconds_low"] < duration["seconds"] < duration["seconds_high"]
    shorter = {"model": model, "compression": {"calibration": {"samples": 64}}}
    assert validate(client, shorter).json()["seconds"] < 0.8 * duration["seconds"]
    with resources.database.transaction() as transaction:
        later = "jsonb_build_object('stage_of_a_later_release', 1e6)"
        columns = f"work = work || {later}, seconds = seconds || {later}"
        transaction.execute(text(f"UPDATE past_runs SET {columns}"))
    assert validate(client, {"model": model}).json()["seconds"] == duration["seconds"]


def test_a_method_without_a_finished_job_is_estimated_from_others_with_a_wider_range(
    client: TestClient, resources: Resources, model: dict[str, str]
) -> None:
    finish(resources, CompressionConfig(), slowness=3.0)
    other = validate(client, {"model": model, "compression": {"method": "intraslice"}})
    (duration,) = other.json()["durations"]
    assert duration["jobs"] == 0
    assert duration["seconds_high"] == pytest.approx(3 * duration["seconds"])
    assert "speed_unknown" in warnings(other)


def test_a_time_limit_bounds_the_estimate(
    client: TestClient, resources: Resources, model: dict[str, str]
) -> None:
    finish(resources, CompressionConfig(), slowness=1.0)

    def seconds(**recover: Any) -> float:
        body = {"model": model, "compression": {"recover": {"max_tokens": 10**7} | recover}}
        answer = validate(client, body)
        assert answer.status_code == 200, answer.text
        predicted: float = answer.json()["seconds"]
        return predicted

    assert seconds(max_seconds=60.0) < seconds() - 60.0
    assert seconds(max_seconds=60.0) - seconds(max_seconds=30.0) == pytest.approx(30.0)


def test_several_devices_shorten_the_time_and_need_the_same_memory_each(
    client: TestClient, resources: Resources, model: dict[str, str]
) -> None:
    finish(resources, CompressionConfig(), slowness=3.0)

    def estimated(devices: int) -> dict[str, Any]:
        compression = {"device": "gpu", "devices": devices}
        answer: dict[str, Any] = validate(
            client, {"model": model, "compression": compression}
        ).json()
        return answer

    alone, together = estimated(1), estimated(4)
    assert together["seconds"] < alone["seconds"]
    assert together["gpu_bytes"] == alone["gpu_bytes"]
    assert together["gpu_host_bytes"] > alone["gpu_host_bytes"]
    # Its time is of no use for jobs on one device.
    finish(resources, CompressionConfig(device="gpu", devices=4), slowness=100.0)
    assert estimated(1)["seconds"] == alone["seconds"]


def test_a_job_that_was_interrupted_teaches_nothing(
    client: TestClient, resources: Resources, model: dict[str, str]
) -> None:
    job = running(resources)
    claims.requeue_job(resources, job.lease, None)
    resumed = claim_job(resources, job.id)
    assert resumed.attempt == 1
    seconds = {Stage.COMPRESS: 10.0}
    estimates.record_run(resources, resumed, measured_on("cpu x 2"), seconds)
    assert validate(client, {"model": model}).json()["durations"] == []


def test_a_finished_job_is_recorded_with_what_was_predicted_for_it(resources: Resources) -> None:
    for slowness in (3.0, 4.5):
        finish(resources, CompressionConfig(), slowness)
    with resources.database.transaction() as transaction:
        ((newest, first),) = (group.runs for group in past_runs.by_device(transaction))
    assert first.ratio is None
    assert newest.ratio == pytest.approx(1.5, rel=0.05)


def test_only_the_newest_jobs_are_kept(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(past_runs, "KEPT_RUNS", 3)
    run = PastRun(method="flap", work={Stage.COMPRESS: 1.0}, seconds={Stage.COMPRESS: 1.0})
    with resources.database.transaction() as transaction:
        past_runs.record(transaction, "other", run)
        for number in range(past_runs.KEPT_RUNS + 3):
            past_runs.record(transaction, "cpu x 2", replace(run, predicted=1.0 + number))
        groups = {group.device: group.runs for group in past_runs.by_device(transaction)}
    assert len(groups["other"]) == 1
    assert len(groups["cpu x 2"]) == past_runs.KEPT_RUNS
    assert groups["cpu x 2"][0].predicted == past_runs.KEPT_RUNS + 3


def test_auto_lists_its_candidates_and_is_estimated_by_the_slowest_of_them(
    client: TestClient, resources: Resources, model: dict[str, str]
) -> None:
    compression = {"method": "auto", "target": "stock", "calibration": {"source": "pydoc"}}
    body = {"model": model, "compression": compression}
    answer = validate(client, body)
    assert answer.status_code == 200, answer.text
    tournament = answer.json()["tournament"]
    assert tournament["candidates"][0] == "intraslice_plus"
    assert "target stock does not support method flap" in tournament["excluded"]["flap"]
    assert 0.0 < tournament["seconds"] < answer.json()["seconds"]
    assert "speed_unknown" in warnings(answer)
    assert answer.json()["estimate"]["achieved_ratio"] == pytest.approx(0.3, rel=0.03)
    assert validate(client, {"model": model}).json()["tournament"] is None

    for method, slowness in (("intraslice_plus", 1.0), ("wanda_sp", 15.0)):
        settings = {**compression, "method": method}
        finish(resources, CompressionConfig.model_validate(settings), slowness)
    fixed = {**compression, "method": "wanda_sp"}
    alone = validate(client, {"model": model, "compression": fixed}).json()["seconds"]
    answer = validate(client, body).json()
    trials = answer["tournament"]["seconds"]
    assert 0.0 < trials < alone
    assert answer["seconds"] == pytest.approx(alone + trials)


def test_auto_takes_a_target_size(client: TestClient, model: dict[str, str]) -> None:
    ratio = validate(client, {"model": model, "compression": {"method": "auto"}}).json()
    size = ratio["estimate"]["params_after"]
    body = {"model": model, "compression": {"method": "auto", "target_params": size}}
    answer = validate(client, body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["tournament"]["candidates"] == ratio["tournament"]["candidates"]
    assert answer.json()["estimate"]["params_after"] == size


def test_a_finished_job_of_auto_counts_for_its_winner(
    client: TestClient, resources: Resources, model: dict[str, str]
) -> None:
    job = running(resources, compression=CompressionConfig(method="auto"))
    report = measured_on("cpu x 2") | {"method": "flap"}
    seconds = {Stage.COMPRESS: 10.0, Stage.TOURNAMENT: 5.0}
    estimates.record_run(resources, job, report, seconds)
    for method, jobs in (("flap", 1), ("2ssp", 0)):
        answer = validate(client, {"model": model, "compression": {"method": method}}).json()
        assert [duration["jobs"] for duration in answer["durations"]] == [jobs]


def test_a_target_that_no_method_has_is_rejected_for_auto(
    client: TestClient, model: dict[str, str]
) -> None:
    config = Path(model["ref"]) / "config.json"
    config.write_text(json.dumps(GEOMETRY | {"model_type": "qwen3"}))
    body = {"model": model, "compression": {"method": "auto", "target": "adaptive"}}
    answer = validate(client, body)
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["pointer"] == "/compression/target"
    far = {"model": model, "compression": {"method": "auto", "ratio": 0.99}}
    (error,) = validate(client, far).json()["errors"]
    assert error["pointer"] in ("/compression/ratio", "/compression/target")


def test_unavailable_targets_are_marked(client: TestClient, model: dict[str, str]) -> None:
    assert available_targets(client, model) == {"research", "adaptive", "stock"}
    config = Path(model["ref"]) / "config.json"
    config.write_text(json.dumps(GEOMETRY | {"model_type": "qwen3"}))
    assert available_targets(client, model) == {"research", "stock"}


def test_dimensions_that_stock_cuts_are_named(client: TestClient, model: dict[str, str]) -> None:
    config = Path(model["ref"]) / "config.json"
    config.write_text(json.dumps(GEOMETRY | {"model_type": "qwen3"}))
    targets = validate(client, {"model": model}).json()["targets"]
    details = {target["target"]: target["detail"] for target in targets}
    stock = details["stock"]
    assert "; cuts the MLP width and heads and the head dim; with GGUF files only" in stock
    assert "rope_type longrope, which transformers and vLLM read" in stock
    assert "set compression.target to research" in details["adaptive"]


def test_runtimes_of_stock_are_named_without_an_encoding_that_the_model_lacks(
    client: TestClient, model: dict[str, str]
) -> None:
    config = Path(model["ref"]) / "config.json"
    config.write_text(json.dumps(GEOMETRY | {"model_type": "starcoder2"}))
    targets = validate(client, {"model": model}).json()["targets"]
    (stock,) = (target for target in targets if target["target"] == "stock")
    assert stock["runtimes"] == ["any that runs the original model"]
    assert "longrope" not in stock["detail"]


@pytest.mark.parametrize(
    ("model_type", "in_vllm"), [("qwen2", True), ("qwen3", False), ("gemma2", False)]
)
def test_research_models_that_vllm_runs_slowly_are_named(
    client: TestClient, model: dict[str, str], model_type: str, in_vllm: bool
) -> None:
    config = Path(model["ref"]) / "config.json"
    config.write_text(json.dumps(GEOMETRY | {"model_type": model_type}))
    targets = validate(client, {"model": model}).json()["targets"]
    (research,) = (target for target in targets if target["target"] == "research")
    assert ("vLLM with the intraslice package" in research["runtimes"]) == in_vllm
    assert ("use target stock for vLLM" in research["detail"]) == (not in_vllm)


def available_targets(client: TestClient, model: dict[str, str]) -> set[str]:
    targets = validate(client, {"model": model}).json()["targets"]
    assert {target["target"] for target in targets} == {"research", "adaptive", "stock"}
    return {target["target"] for target in targets if target["available"]}


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/compression/calibration/sequence_length"),
        ({"evaluation": {"context_length": 513}}, "/evaluation/context_length"),
    ],
)
def test_sequences_longer_than_a_table_of_positions_are_rejected(
    client: TestClient, model: dict[str, str], body: dict[str, Any], pointer: str
) -> None:
    settings = GEOMETRY | {"model_type": "opt", "ffn_dim": 256}
    (Path(model["ref"]) / "config.json").write_text(json.dumps(settings))
    compression = {"calibration": {"sequence_length": 512}} if body else {}
    answer = validate(client, {"model": model, "compression": compression} | body)
    assert answer.status_code == 422
    problems = {(error["pointer"], error["code"]) for error in answer.json()["errors"]}
    assert (pointer, "bad_configuration") in problems


@pytest.mark.parametrize("path", ["/v1/jobs:validate", "/v1/jobs"])
@pytest.mark.parametrize(
    ("model_type", "options", "pointer"),
    [
        ("qwen3", {"target": "adaptive"}, "/compression/target"),
        ("llama", {"target": "stock", "method": "intraslice"}, "/compression/method"),
        (
            "opt",
            {
                "target": "stock",
                "exports": ["safetensors", "gguf-f16"],
                "calibration": {"sequence_length": 64},
            },
            "/compression/exports",
        ),
    ],
)
def test_a_target_that_a_model_or_method_does_not_support_is_rejected(
    client: TestClient,
    model: dict[str, str],
    path: str,
    model_type: str,
    options: dict[str, Any],
    pointer: str,
) -> None:
    config = Path(model["ref"]) / "config.json"
    config.write_text(json.dumps(GEOMETRY | {"model_type": model_type}))
    answer = client.post(path, json={"model": model, "compression": options})
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert (error["pointer"], error["code"]) == (pointer, "target_not_available")


@pytest.mark.parametrize(
    ("target", "result"),
    [("research", "the language model alone"), ("stock", "the whole model")],
)
def test_the_result_of_a_multimodal_model_is_told_beforehand(
    client: TestClient, model: dict[str, str], target: str, result: str
) -> None:
    plain = validate(client, {"model": model}).json()["estimate"]
    text = {name: value for name, value in GEOMETRY.items() if name != "tie_word_embeddings"}
    settings = {"model_type": "mistral3", "text_config": text | {"model_type": "mistral"}}
    (Path(model["ref"]) / "config.json").write_text(json.dumps(settings | {"vision_config": {}}))
    answer = validate(client, {"model": model, "compression": {"target": target}}).json()
    (message,) = [w["message"] for w in answer["warnings"] if w["code"] == "multimodal"]
    assert result in message
    assert answer["estimate"]["compressible_before"] == plain["compressible_before"]


def test_a_size_of_a_whole_multimodal_model_is_rejected(
    client: TestClient, model: dict[str, str]
) -> None:
    settings = {"model_type": "mistral3", "text_config": GEOMETRY | {"model_type": "mistral"}}
    (Path(model["ref"]) / "config.json").write_text(json.dumps(settings))
    compression = {"target": "stock", "target_params": PARAMETERS - 10_000}
    answer = validate(client, {"model": model, "compression": compression})
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["pointer"] == "/compression/target_params"


def test_the_estimate_has_the_shapes_of_the_stock_target(
    client: TestClient, model: dict[str, str]
) -> None:
    body = {"model": model, "compression": {"target": "stock", "ratio": 0.3, "round_to": 2}}
    first = validate(client, body).json()["estimate"]["first_layer"]
    assert 2 * first["qk_pairs"] == first["v_head_dim"]
