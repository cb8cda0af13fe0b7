"""Objectives and trained parameters: losses by their formulas, training, merging and resuming."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from intraslice_core import modeling
from intraslice_core.config import HELD_OUT_SEQUENCES
from intraslice_core.errors import ConfigurationError
from intraslice_core.finetuning import objective as objective_module
from intraslice_core.finetuning.adapters import prepare_parameters
from intraslice_core.finetuning.objective import Objective
from intraslice_core.finetuning.procedure import recover_checkpoint
from intraslice_core.finetuning.training import Moment
from intraslice_core.plan import ModelPlan
from intraslice_core.resume_state import ResumeState
from tests.intraslice_core.compressing import compress_unverified
from tests.intraslice_core.finetuning.training_runs import (
    LENGTH,
    compression,
    files_of,
    make_pair,
    recovery_config,
    tokens,
    work_on,
)
from tests.intraslice_core.tiny_models import tiny_llama

COMBINED = {
    "loss": "distill",
    "temperature": 2.0,
    "auxiliary": {"ce": 0.5, "hidden": 3.0},
}
ALL_WEIGHTS = {"adapter": "none", "learning_rate": 2e-3}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_pair(tmp_path_factory.mktemp("pair"))


def load(directory: Path) -> PreTrainedModel:
    modeling.register()
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model.eval()


def expected_loss(
    student: PreTrainedModel, teacher: PreTrainedModel, batch: Tensor, first: int
) -> Tensor:
    """Return the loss of `COMBINED` per window from the definitions, all logits at once."""
    ours, theirs = (model(batch, output_hidden_states=True) for model in (student, teacher))
    log_probs = ours.logits.log_softmax(-1)
    ce = -log_probs[:, first - 1 : -1].gather(-1, batch[:, first:, None]).mean()
    soft, wanted = (
        (output.logits[:, first - 1 :] / 2.0).log_softmax(-1) for output in (ours, theirs)
    )
    kl = 4.0 * (wanted.exp() * (wanted - soft)).sum(-1).mean()
    errors = [
        ((a - b).square().sum(-1) / b.square().sum(-1))[:, first - 1 :].mean()
        for a, b in zip(ours.hidden_states[1:], theirs.hidden_states[1:], strict=True)
    ]
    return kl + 0.5 * ce + 3.0 * torch.stack(errors).mean()


@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_the_loss_and_its_gradient_are_those_of_the_formula(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, prefix: int, adapter: str
) -> None:
    monkeypatch.setattr(objective_module, "rows_at_once", lambda _: 7)
    config = recovery_config(adapter=adapter, **COMBINED)
    teacher, student, plain = load(pair[0]), load(pair[1]), load(pair[1])
    batch = tokens(config)[:3]
    parameters = prepare_parameters(student, config)
    loss = Objective(student, teacher, config, prefix)(batch)
    plain.requires_grad_(True)
    expected = expected_loss(plain, teacher, batch, max(prefix, 1))
    torch.testing.assert_close(loss / 3, expected, rtol=1e-5, atol=1e-6)
    if adapter == "none":
        (loss / 3).backward()
        expected.backward()
        for name, weight in plain.named_parameters():
            torch.testing.assert_close(
                parameters[name].grad, weight.grad, rtol=1e-4, atol=1e-6, msg=name
            )


def test_hidden_states_of_fewer_layers_are_compared_before_the_next_remaining_layer(
    tmp_path: Path,
) -> None:
    dense, short = tiny_llama(tmp_path / "dense", num_hidden_layers=4), tmp_path / "short"
    settings = compression(method="shortgpt", allocation="auto")
    report = compress_unverified(dense, short, settings)
    assert len(report.plan.remaining) == 2
    config = recovery_config(loss="hidden")
    teacher, student, batch = load(dense), load(short), tokens(config)[:3]
    ours, theirs = (
        model(batch, output_hidden_states=True).hidden_states[1:] for model in (student, teacher)
    )
    first = report.plan.remaining[1] - 1
    errors = [
        ((a - b).square().sum(-1) / b.square().sum(-1)).mean()
        for a, b in zip(ours, (theirs[first], theirs[3]), strict=True)
    ]
    loss = Objective(student, teacher, config, teacher_layers=report.plan.output_layers)(batch)
    torch.testing.assert_close(loss / 3, sum(errors) / 2, rtol=1e-5, atol=1e-6)
    work = work_on((dense, short), tmp_path / "out", loss="hidden", plan=report.plan)
    trained, _ = recover_checkpoint(work)
    assert trained.losses[-1].loss < trained.losses[0].loss
    other = replace(work, plan=ModelPlan(layers=report.plan.layers[1:]))
    with pytest.raises(ConfigurationError, match="the teacher has 4 layers"):
        recover_checkpoint(other)


@pytest.mark.parametrize(
    ("changes", "dtype"),
    [
        ({"loss": "hidden"}, "float32"),
        ({"loss": "hidden"} | ALL_WEIGHTS, "float32"),
        ({"loss": "ce", "adapter": "dora"}, "bfloat16"),
        ({"loss": "distill"} | ALL_WEIGHTS, "bfloat16"),
        (COMBINED, "float32"),
    ],
    ids=["hidden", "hidden, all weights", "DoRA, bfloat16", "all weights, bfloat16", "combined"],
)
def test_training_lowers_the_loss_and_keeps_the_checkpoints_form(
    pair: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any], dtype: str
) -> None:
    work = work_on(pair, tmp_path / "out", dtype=dtype, **changes)
    report, _ = recover_checkpoint(work)
    assert report.losses[-1].loss < 0.9 * report.losses[0].loss
    old, new = (load_file(place / "model.safetensors") for place in (pair[1], tmp_path / "out"))
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in old.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in new.items()
    }
    batch = work.tokens[-HELD_OUT_SEQUENCES:]
    teacher = load(pair[0])
    before, after = (
        float(Objective(load(place), teacher, work.config)(batch).detach())
        for place in (pair[1], tmp_path / "out")
    )
    assert after < 0.9 * before
    trained = {name for name, tensor in old.items() if not torch.equal(tensor, new[name])}
    if work.config.adapter == "none":
        assert trained == set(old)
        assert report.trained_parameters == sum(tensor.numel() for tensor in old.values())
    else:
        assert trained == {name for name in old if name.endswith("proj.weight")}


@pytest.mark.parametrize("sequences", [16, 13])
def test_accumulated_gradients_are_those_of_a_larger_batch(
    pair: tuple[Path, Path], tmp_path: Path, sequences: int
) -> None:
    settings = {"loss": "ce", "max_tokens": sequences * LENGTH}
    whole, accumulated = (
        recover_checkpoint(
            work_on(
                pair,
                tmp_path / f"{batch_size}",
                batch_size=batch_size,
                gradient_accumulation=4 // batch_size,
                **settings,
            )
        )[0]
        for batch_size in (4, 1)
    )
    assert accumulated.steps == whole.steps == 4
    assert [point.loss for point in accumulated.losses] == pytest.approx(
        [point.loss for point in whole.losses], rel=1e-5
    )
    assert accumulated.held_out.after == pytest.approx(whole.held_out.after, rel=1e-4)


class KilledError(Exception):
    """A substitute for SIGKILL: no code catches it."""


def test_training_of_all_weights_resumes_to_the_same_bytes_from_copied_files(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    settings = {"max_tokens": 24 * LENGTH, "schedule": "linear", "weight_decay": 0.1, **ALL_WEIGHTS}
    recover_checkpoint(work_on(pair, tmp_path / "whole", **settings))
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    elsewhere.mkdir()
    state = ResumeState(
        directory=here,
        hidden_states_every_seconds=0.0,
        on_saved=lambda name: (elsewhere / name).write_bytes((here / name).read_bytes()),
    )

    def killed(moment: Moment, _steps: int) -> None:
        if moment.step == 4:
            raise KilledError

    with pytest.raises(KilledError):
        recover_checkpoint(
            work_on(pair, tmp_path / "killed", resume_state=state, before_step=killed, **settings)
        )
    steps: list[int] = []
    recover_checkpoint(
        work_on(
            pair,
            tmp_path / "out",
            resume_state=ResumeState(directory=elsewhere),
            before_step=lambda moment, _: steps.append(moment.step),
            **settings,
        )
    )
    assert steps == [4, 5]
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
