"""A tokenizer that begins a text with BOS: calibration, evaluation, caches and fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from intraslice_core import pipeline, planned_work
from intraslice_core.calibration import tokens as calibration_tokens_module
from intraslice_core.config import (
    HELD_OUT_SEQUENCES,
    CalibrationConfig,
    CompressionConfig,
    EvaluationConfig,
)
from intraslice_core.evaluation import scoring
from intraslice_core.evaluation.comparison import Materials, evaluate_pair
from intraslice_core.evaluation.loaded_models import load_model
from intraslice_core.evaluation.overlap import SeenNgrams
from intraslice_core.evaluation.perplexity import evaluation_tokens, perplexity
from intraslice_core.finetuning.procedure import recover_checkpoint
from intraslice_core.progress import ignore_progress, never_cancelled
from intraslice_core.reports.schema import CompressionReport
from intraslice_core.resume_state import ResumeState
from intraslice_core.run import OpenedModel, Run
from intraslice_core.statistics_cache import StatisticsCache
from intraslice_core.tokenizer import load_tokenizer
from tests.intraslice_core.finetuning.training_runs import recovery_config, tokens, work_on
from tests.intraslice_core.tiny_models import save_checkpoint, tiny_model

BOS = 0
CONFIG = CompressionConfig(
    ratio=0.3,
    round_to=2,
    dtype="float32",
    allocation="uniform",
    calibration=CalibrationConfig(source="pydoc", samples=8, sequence_length=32, self_share=0.0),
)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tiny_model(), tmp_path_factory.mktemp("bos") / "dense", adds_bos=True)


def compressed(
    dense: Path, out: Path, config: CompressionConfig = CONFIG, **caches: Any
) -> tuple[CompressionReport, torch.Tensor]:
    """Return report and calibration of a compression."""
    run = Run(on_progress=ignore_progress, should_cancel=never_cancelled, **caches)
    opened = OpenedModel(reference=str(dense), directory=dense)
    report = pipeline._compress_checkpoint(opened, out, config, run)
    assert run.calibration is not None
    return report, run.calibration


@pytest.mark.parametrize("source", ["pydoc", "self", "chat"])
def test_calibration_sequences_of_every_source_begin_with_bos(dense, tmp_path, source):
    calibration = CONFIG.calibration.model_copy(update={"source": source})
    config = CompressionConfig.model_validate(
        CONFIG.model_dump() | {"calibration": calibration.model_dump()}
    )
    report, sequences = compressed(dense, tmp_path / "out", config)
    assert report.begins_with_bos
    assert report.calibration_tokens == 8 * 32
    assert sequences.shape == (8, 32)
    assert bool((sequences[:, 0] == BOS).all())


@pytest.mark.parametrize("source", ["pydoc", "self", "chat"])
def test_windows_of_every_evaluation_text_begin_with_bos_and_the_report_says_so(
    dense, tmp_path, source, monkeypatch
):
    compressed(dense, tmp_path / "out")
    windows: list[list[int]] = []
    real = scoring.perplexity

    def recorded(model: Any, text: torch.Tensor, **settings: Any) -> Any:
        def record(_module: object, inputs: tuple[torch.Tensor, ...]) -> None:
            windows.extend(inputs[0].tolist())

        handle = model.get_input_embeddings().register_forward_pre_hook(record)
        result = real(model, text, **settings)
        handle.remove()
        return result

    monkeypatch.setattr(scoring, "perplexity", recorded)
    config = EvaluationConfig(
        perplexity=(source,), max_tokens=128, context_length=32, benchmark=False
    )
    (text,) = evaluate_pair(dense, tmp_path / "out", config).perplexity
    assert text.begins_with_bos
    # `self` and `chat` are written with BOS: four windows of 32 tokens hold 31 to score each.
    assert text.tokens == (128 if source == "pydoc" else 4 * 31)
    assert {window[0] for window in windows} == {BOS}
    assert max(map(len, windows)) == 32


def test_bos_is_no_overlap(dense):
    config = EvaluationConfig(max_tokens=64, context_length=32, benchmark=False)
    text = evaluation_tokens("pydoc", load_tokenizer(dense), 64)
    seen = torch.cat((torch.tensor([BOS]), text[:39])).unsqueeze(0)
    overlaps = [
        evaluate_pair(dense, dense, config, materials=Materials(calibration=calibration))
        .perplexity[0]
        .calibration_overlap
        for calibration in (seen, torch.full((2, 40), BOS))
    ]
    assert overlaps == [SeenNgrams(text[None, :39].numpy()).fraction_of(text.numpy()), 0.0]


def test_a_tokenizer_without_bos_changes_nothing(tmp_path):
    plain = save_checkpoint(tiny_model(), tmp_path / "dense")
    report, sequences = compressed(plain, tmp_path / "out")
    assert not report.begins_with_bos
    assert not bool((sequences == BOS).any())
    config = EvaluationConfig(max_tokens=128, context_length=32, benchmark=False)
    (text,) = evaluate_pair(plain, tmp_path / "out", config).perplexity
    assert (text.begins_with_bos, text.tokens) == (False, 4 * 31)


def test_neither_cache_nor_resume_state_serves_sequences_that_begin_otherwise(
    dense, tmp_path, monkeypatch
):
    def run(name: str) -> tuple[CompressionReport, torch.Tensor]:
        return compressed(
            dense,
            tmp_path / name,
            statistics_cache=StatisticsCache(directory=tmp_path / "cache", max_bytes=2**30),
            resume_state=ResumeState(directory=tmp_path / "state"),
        )

    with monkeypatch.context() as patch:
        for module in (planned_work, calibration_tokens_module):
            patch.setattr(module, "text_prefix", lambda _: ())
        earlier, without = run("earlier")
    later, sequences = run("later")
    assert not bool((without == BOS).any())
    assert bool((sequences[:, 0] == BOS).all())
    assert (later.resumed_layers, earlier.begins_with_bos) == (0, False)
    again, _ = run("again")
    assert again.resumed_layers == len(again.layers)


def test_held_out_text_of_fine_tuning_is_scored_after_bos(dense, tmp_path):
    compressed(dense, tmp_path / "compressed")
    text = tokens(recovery_config(max_tokens=4 * 32))
    text[:, 0] = BOS
    work = work_on(
        (dense, tmp_path / "compressed"),
        tmp_path / "out",
        max_tokens=4 * 32,
        tokens=text,
        prefix=(BOS,),
    )
    report, _ = recover_checkpoint(work)
    held_out = text[-HELD_OUT_SEQUENCES:, 1:].flatten()
    model = load_model(dense, dtype="float32", device="cpu")
    expected = perplexity(model, held_out, context_length=32, batch_size=4, prefix=(BOS,))
    assert report.held_out.tokens == len(held_out)
    assert report.held_out.dense == pytest.approx(expected.perplexity, rel=1e-5)
