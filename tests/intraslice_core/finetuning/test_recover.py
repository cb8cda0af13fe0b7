"""A finished checkpoint may be trained some other day, with the bytes of a run that did it all."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from intraslice_core import errors
from intraslice_core.config import CompressionConfig, EvaluationConfig
from intraslice_core.finetuning.recover import REWRITTEN_FILES, recover_model
from intraslice_core.pipeline import compress_model
from intraslice_core.reports.schema import REPORT_FILE, CompressionReport
from tests.intraslice_core.finetuning.training_runs import compression, files_of, recovery_config
from tests.intraslice_core.tiny_models import tiny_llama

RECOVER = recovery_config(loss="ce")


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "dense")


def compressed(dense: Path, out: Path, settings: CompressionConfig) -> Path:
    evaluation = EvaluationConfig(max_tokens=256, context_length=32, benchmark=False)
    compress_model(str(dense), out, settings, evaluation=evaluation, verify=False)
    return out


@pytest.mark.parametrize("target", ["research", "stock"])
def test_it_ends_with_the_bytes_of_a_compression_that_recovers(
    dense: Path, tmp_path: Path, target: str
) -> None:
    plain = compressed(dense, tmp_path / "plain", compression(target=target))
    before = files_of(plain)
    report = recover_model(plain, str(dense), tmp_path / "out", RECOVER, dtype="float32")
    assert files_of(plain) == before
    whole = compressed(dense, tmp_path / "whole", compression(target=target, recover=RECOVER))
    found, expected = files_of(tmp_path / "out"), files_of(whole)
    assert found.keys() - REWRITTEN_FILES == expected.keys() - REWRITTEN_FILES
    assert all(found[name] == expected[name] for name in found.keys() - REWRITTEN_FILES)
    assert report.recovery is not None
    assert report.recovery.held_out.after < report.recovery.held_out.before
    assert report.evaluation is None
    assert report.config.recover == RECOVER
    stored = CompressionReport.model_validate_json((tmp_path / "out" / REPORT_FILE).read_text())
    assert stored == report
    assert "Fine-tuned after compression" in (tmp_path / "out" / "README.md").read_text()


def test_what_cannot_be_trained_is_refused_and_nothing_is_left(dense: Path, tmp_path: Path) -> None:
    plain = compressed(dense, tmp_path / "plain", compression())
    other = tiny_llama(tmp_path / "other", vocab_size=300)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    shutil.copytree(plain, tmp_path / "damaged")
    (tmp_path / "damaged" / REPORT_FILE).write_text("{}")
    before = set(tmp_path.rglob("*"))
    for directory, teacher, out, expected, field in (
        (dense, dense, "out", errors.ModelNotFoundError, "directory"),
        (tmp_path / "damaged", dense, "out", errors.ModelNotFoundError, "directory"),
        (plain, other, "out", errors.ConfigurationError, "teacher"),
        (plain, tmp_path / "none", "out", errors.ModelNotFoundError, "model"),
        (plain, dense, "taken", errors.OutputExistsError, "out"),
    ):
        with pytest.raises(expected) as refused:
            recover_model(directory, str(teacher), tmp_path / out, RECOVER)
        assert refused.value.field == field
    assert set(tmp_path.rglob("*")) == before


def test_a_second_training_is_refused(dense: Path, tmp_path: Path) -> None:
    short = recovery_config(loss="ce", max_tokens=4 * 32)
    whole = compressed(dense, tmp_path / "whole", compression(recover=short))
    with pytest.raises(errors.ConfigurationError, match="already been recovered"):
        recover_model(whole, str(dense), tmp_path / "out", short)
