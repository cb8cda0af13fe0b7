"""Source `web`: the beginning of a pinned file of the Hub, read from a local one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import huggingface_hub.constants
import pytest

from intraslice_core.calibration import Reading, load_text, source_tokens, web_text
from intraslice_core.errors import WebTextError
from intraslice_core.text_sources import (
    WEB_CALIBRATION_FILE,
    WEB_EVALUATION_FILE,
    WEB_REVISION,
    domain_of,
)
from tests.intraslice_core.calibration.web_hub import WebHub, page, web_hub
from tests.intraslice_core.tiny_models import tiny_tokenizer


@pytest.fixture
def hub() -> Iterator[WebHub]:
    with web_hub() as server:
        yield server


@pytest.mark.parametrize(
    ("part", "file"), [("calibration", WEB_CALIBRATION_FILE), ("evaluation", WEB_EVALUATION_FILE)]
)
def test_each_part_reads_the_pages_of_its_own_pinned_file(hub: WebHub, part: Any, file) -> None:
    pieces = load_text("web", Reading(part=part))
    assert [piece.text for piece in islice(pieces, 3)] == [page(file, n) for n in range(3)]
    assert hub.requests == [f"{WEB_REVISION}/{file.path}"]


def test_only_the_beginning_of_the_file_is_read(hub: WebHub) -> None:
    tokens = source_tokens("web", tiny_tokenizer(), part="calibration", max_tokens=20_000)
    assert len(tokens) == 20_000
    # The whole file has 32 MB here, and what was sent includes buffers of both sides.
    assert 0 < hub.bytes_sent < 16_000_000


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"status": 403}, "403"),
        ({"status": 404}, "404"),
        ({"status": 503}, "503"),
        ({"delay": 2.0}, "Timeout"),
        ({"sha256": "0" * 64}, "has SHA-256 00000000…, expected 8ef8d75b…"),
        ({"size": 12}, "has 12 bytes, expected 319308785"),
        ({"broken": True}, "records of web cannot be used"),
    ],
)
def test_an_unusable_answer_is_an_error_that_names_the_data_set(
    hub: WebHub, monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any], reason: str
) -> None:
    if "delay" in answer:
        monkeypatch.setattr(web_text, "_TIMEOUTS", (0.3, 0.3, 0.3, 0.3))
    for name, value in answer.items():
        setattr(hub, name, value)
    with pytest.raises(WebTextError) as caught:
        list(islice(load_text("web", Reading(part="calibration")), 10_000))
    assert reason in caught.value.message
    assert caught.value.field == "calibration.source"
    assert len(hub.requests) == 1


def test_a_mirror_without_digests_is_accepted(hub: WebHub) -> None:
    hub.sha256 = "an-etag-of-its-own"
    assert next(load_text("web", Reading(part="calibration")))


def test_offline_mode_of_the_hub_is_respected(hub: WebHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WebTextError, match="offline mode is enabled"):
        next(load_text("web", Reading(part="calibration")))
    assert hub.requests == []


def test_web_text_is_of_the_corpus_of_its_data_set() -> None:
    assert domain_of("hub:allenai/c4:en@validation", ["web"]) == "in"
    assert domain_of("web", ["pydoc", "self"]) == "out"
