"""Fine-tuning a finished checkpoint later gives the bytes of a compression with fine-tuning."""

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
def test_the_result_equals_a_compression_with_fine_tuning(
    dense: Path, tmp_path: Path, target: str
) -> None:
    plain = compressed(dense, tmp_path / "plain", compression(target=target))
    before = files_of(plain)
    report = recover_model(plain, str(dense), tmp_path / "out", RECOVER, dtype="float32")
    assert files_of(plain) == before
    whole = compressed(dense, tmp_path / "whole", compression(target=target, recover=RECOVER))
    result, expected = files_of(tmp_path / "out"), files_of(whole)
    assert result.keys() - REWRITTEN_FILES == expected.keys() - REWRITTEN_FILES
    assert all(result[name] == expected[name] for name in result.keys() - REWRITTEN_FILES)
    assert report.recovery is not None
    assert report.recovery.held_out.after < report.recovery.held_out.before
    assert report.evaluation is None
    assert report.config.recover == RECOVER
    stored = CompressionReport.model_validate_json((tmp_path / "out" / REPORT_FILE).read_text())
    assert stored == report
    assert "Fine-tuned after compression" in (tmp_path / "out" / "README.md").read_text()


def test_invalid_inputs_are_rejected_and_leave_no_files(dense: Path, tmp_path: Path) -> None:
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
        with pytest.raises(expected) as rejected:
            recover_model(directory, str(teacher), tmp_path / out, RECOVER)
        assert rejected.value.field == field
    assert set(tmp_path.rglob("*")) == before


def test_a_second_training_is_rejected(dense: Path, tmp_path: Path) -> None:
    short = recovery_config(loss="ce", max_tokens=4 * 32)
    whole = compressed(dense, tmp_path / "whole", compression(recover=short))
    with pytest.raises(errors.ConfigurationError, match="already been recovered"):
        recover_model(whole, str(dense), tmp_path / "out", short)
