"""Reports of earlier schema versions are still read."""

from __future__ import annotations

import json

import pytest

from intraslice_core.reports.schema import SCHEMA_VERSION, CompressionReport, PerplexityComparison
from tests.intraslice_core.reports.samples import report


@pytest.mark.parametrize(
    ("stored", "method"),
    [("paper", "intraslice"), ("intraslice", "intraslice_plus"), ("magnitude", "magnitude")],
)
@pytest.mark.parametrize("unversioned", [True, False])
def test_version_1_is_read_with_the_new_method_names(
    stored: str, method: str, unversioned: bool
) -> None:
    data = json.loads(report().model_dump_json())
    data |= {"method": stored, "schema_version": 1}
    data["config"]["method"] = stored
    if unversioned:
        del data["schema_version"]
    read = CompressionReport.model_validate_json(json.dumps(data))
    assert (read.method, read.config.method) == (method, method)
    assert read.schema_version == SCHEMA_VERSION


def test_a_new_report_has_the_name_of_its_method() -> None:
    fields = dict(report())
    del fields["schema_version"]
    config = report().config.model_copy(update={"method": "intraslice"})
    new = CompressionReport(**fields | {"method": "intraslice", "config": config})
    assert (new.method, new.config.method) == ("intraslice", "intraslice")


def test_a_stored_report_has_the_method_of_its_settings() -> None:
    data = json.loads(report().model_dump_json())
    data["config"]["method"] = "intraslice"
    data["method"] = "intraslice_plus"  # as the engine wrote it
    assert CompressionReport.model_validate_json(json.dumps(data)).method == "intraslice"


def test_texts_are_read_without_divergence_and_domain() -> None:
    old = {"text": "pydoc", "context_length": 64, "tokens": 63, "dense": 10.0, "compressed": 12.0}
    read = PerplexityComparison.model_validate(old)
    assert (read.kl, read.kl_stderr, read.top1_agreement, read.domain) == (None,) * 4


def test_the_current_version_is_read_as_written() -> None:
    written = report()
    assert CompressionReport.model_validate_json(written.model_dump_json()) == written
