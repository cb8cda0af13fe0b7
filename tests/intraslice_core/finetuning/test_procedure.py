"""Recovery fine-tuning reduces the loss of a compressed model and keeps the checkpoint's form."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from intraslice_core import modeling
from intraslice_core.config import HELD_OUT_SEQUENCES
from intraslice_core.errors import CompressionCancelledError, NumericalError
from intraslice_core.finetuning.adapters import add_adapters, merged_weights
from intraslice_core.finetuning.procedure import loss_curve, recover_checkpoint
from intraslice_core.finetuning.training import Moment
from intraslice_core.resume_state import ResumeState
from tests.intraslice_core.finetuning.training_runs import (
    LENGTH,
    files_of,
    make_pair,
    recovery_config,
    tokens,
    work_on,
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def stock_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_pair(tmp_path_factory.mktemp("stock"), target="stock")


def load(directory: Path) -> PreTrainedModel:
    modeling.register()
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model.eval()


def log_probs(directory: Path, sequences: Tensor) -> Tensor:
    with torch.inference_mode():
        return load(directory)(input_ids=sequences).logits.float().log_softmax(-1)


def divergence_from(dense: Path, directory: Path, sequences: Tensor) -> float:
    """Return the mean KL(dense ‖ other) per token, by its definition."""
    p, q = log_probs(dense, sequences), log_probs(directory, sequences)
    return float((p.exp() * (p - q)).sum(-1).mean())


def next_token_loss(directory: Path, sequences: Tensor) -> float:
    """Return the mean negative log-probability of the next token."""
    predicted = log_probs(directory, sequences)[:, :-1].gather(-1, sequences[:, 1:, None])
    return -float(predicted.mean())


@pytest.mark.parametrize("kind", ["pair", "stock_pair"])
def test_distillation_reduces_the_divergence_on_held_out_text(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    dense, compressed = request.getfixturevalue(kind)
    work = work_on((dense, compressed), tmp_path / "out", loss="distill")
    held_out = work.tokens[-HELD_OUT_SEQUENCES:]
    before = divergence_from(dense, compressed, held_out)
    report, warnings = recover_checkpoint(work)
    after = divergence_from(dense, tmp_path / "out", held_out)
    assert after < 0.85 * before
    assert warnings == []
    assert report.stopped_by == "tokens"
    assert report.losses[0].loss == pytest.approx(before, rel=0.2)
    assert report.losses[-1].loss < report.losses[0].loss


@pytest.mark.parametrize("kind", ["pair", "stock_pair"])
def test_cross_entropy_falls_on_held_out_text(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    dense, compressed = request.getfixturevalue(kind)
    work = work_on((dense, compressed), tmp_path / "out", loss="ce")
    held_out = work.tokens[-HELD_OUT_SEQUENCES:]
    report, _ = recover_checkpoint(work)
    perplexity = report.held_out
    for value, checkpoint in (
        (perplexity.dense, dense),
        (perplexity.before, compressed),
        (perplexity.after, tmp_path / "out"),
    ):
        expected = torch.tensor(next_token_loss(checkpoint, held_out)).exp()
        assert value == pytest.approx(float(expected), rel=1e-3)
    assert perplexity.after < 0.5 * perplexity.before
    assert perplexity.tokens == HELD_OUT_SEQUENCES * (LENGTH - 1)


@pytest.mark.parametrize("kind", ["pair", "stock_pair"])
def test_only_the_weights_of_linear_layers_change(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    dense, compressed = request.getfixturevalue(kind)
    recover_checkpoint(work_on((dense, compressed), tmp_path / "out", loss="ce"))
    before, after = files_of(compressed), files_of(tmp_path / "out")
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} == {"model.safetensors"}
    old, new = (
        load_file(checkpoint / "model.safetensors") for checkpoint in (compressed, tmp_path / "out")
    )
    assert old.keys() == new.keys()
    for name, tensor in old.items():
        trained = name.endswith("proj.weight")
        assert torch.equal(tensor, new[name]) != trained, name
        assert tensor.dtype == new[name].dtype
        assert tensor.shape == new[name].shape


@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_new_adapters_change_nothing_and_merging_trained_ones_is_exact(
    pair: tuple[Path, Path], tmp_path: Path, adapter: str
) -> None:
    work = work_on(pair, tmp_path / "out", adapter=adapter)
    sequences = work.tokens[:2]
    plain, adapted = load(pair[1]), load(pair[1])
    parameters = add_adapters(adapted, work.config)
    with torch.no_grad():
        torch.testing.assert_close(adapted(sequences).logits, plain(sequences).logits)
        for parameter in parameters.values():
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(5))
        expected = adapted(sequences).logits
        assert not torch.allclose(expected, plain(sequences).logits, atol=1e-2)
        state = plain.state_dict()
        for name, merge in merged_weights(adapted).items():
            state[name].copy_(merge(state[name].clone()))
        torch.testing.assert_close(plain(sequences).logits, expected, atol=1e-4, rtol=1e-4)


def test_the_seed_determines_the_adapters_and_leaves_the_global_generator_unchanged(
    pair: tuple[Path, Path],
) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, same, other = (
        add_adapters(load(pair[1]), recovery_config(rank=4, alpha=8.0, seed=seed))
        for seed in (3, 3, 4)
    )
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert all("lora_" in name for name in first)


@pytest.mark.parametrize("steps", [1, 7])
def test_training_ends_when_the_tokens_are_used_up(
    pair: tuple[Path, Path], tmp_path: Path, steps: int
) -> None:
    # The last batch is a single sequence.
    sequences = 4 * (steps - 1) + 1
    seen: list[Moment] = []
    report, _ = recover_checkpoint(
        work_on(
            pair,
            tmp_path / "out",
            max_tokens=sequences * LENGTH + LENGTH - 1,
            before_step=lambda moment, _: seen.append(moment),
        )
    )
    assert (report.tokens, report.steps) == (sequences * LENGTH, steps)
    assert report.stopped_by == "tokens"
    assert [moment.step for moment in seen] == list(range(steps))
    assert [moment.done for moment in seen] == [4 * step / sequences for step in range(steps)]
    assert (seen[0].seconds_left, seen[0].loss) == (None, None)
    assert all((moment.seconds_left or 0.0) > 0.0 for moment in seen[1:])


def test_training_ends_when_the_time_is_used_up(pair: tuple[Path, Path], tmp_path: Path) -> None:
    report, _ = recover_checkpoint(
        work_on(pair, tmp_path / "out", max_seconds=1e-6, max_tokens=10**5)
    )
    assert report.stopped_by == "time"
    assert (report.steps, report.tokens) == (1, 4 * LENGTH)
    assert report.seconds >= 1e-6


@pytest.mark.parametrize("loss", ["ce", "distill"])
def test_a_non_finite_loss_ends_training_and_leaves_the_checkpoint_unchanged(
    tmp_path: Path, loss: str
) -> None:
    pair = make_pair(tmp_path, model={"tie_word_embeddings": False})
    non_finite, finite = 200, 5  # tokens by their embeddings
    sequences = tokens(recovery_config())
    sequences[sequences == non_finite] = finite
    sequences[9, 3] = non_finite  # in the third batch of four
    weights = load_file(pair[1] / "model.safetensors")
    weights["model.embed_tokens.weight"][non_finite] = torch.nan
    save_file(weights, pair[1] / "model.safetensors", metadata={"format": "pt"})
    work = work_on(pair, tmp_path / "out", loss=loss, tokens=sequences)
    with pytest.raises(NumericalError, match="training step 3") as raised:
        recover_checkpoint(work)
    assert "learning_rate" in (raised.value.hint or "")
    assert files_of(tmp_path / "out") == files_of(pair[1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compressed", "dense", "out"]


def test_a_teacher_with_non_finite_weights_is_an_error(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    work = work_on(pair, tmp_path / "out")
    broken = tmp_path / "dense"
    broken.mkdir()
    for file in pair[0].iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericalError):
        recover_checkpoint(type(work)(**(vars(work) | {"dense": broken})))


def test_training_in_bfloat16_keeps_the_stored_dtype(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    report, _ = recover_checkpoint(work_on(pair, tmp_path / "out", loss="ce", dtype="bfloat16"))
    assert report.held_out.after < 0.5 * report.held_out.before
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}


# -- resuming ------------------------------------------------------------------------------------


class KilledError(Exception):
    """A substitute for SIGKILL: no code catches it."""


def killed_before(step: int) -> Any:
    def before_step(moment: Moment, _steps: int) -> None:
        if moment.step == step:
            raise KilledError

    return before_step


@pytest.mark.parametrize(
    "changes",
    [{"loss": "ce"}, {"loss": "distill"}, {"loss": "distill", "dtype": "bfloat16"}],
    ids=["ce", "distill", "bfloat16"],
)
def test_an_interrupted_training_resumes_to_the_same_bytes(
    pair: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any]
) -> None:
    settings = {"max_tokens": 30 * LENGTH} | changes
    whole, _ = recover_checkpoint(work_on(pair, tmp_path / "whole", **settings))
    for step in (3, 5):
        state = ResumeState(directory=tmp_path / "state", hidden_states_every_seconds=0.0)
        work = work_on(
            pair,
            tmp_path / f"killed-{step}",
            resume_state=state,
            before_step=killed_before(step),
            **settings,
        )
        with pytest.raises(KilledError):
            recover_checkpoint(work)
        assert files_of(tmp_path / f"killed-{step}") == files_of(pair[1])
    made: list[int] = []
    state = ResumeState(directory=tmp_path / "state", hidden_states_every_seconds=0.0)
    report, _ = recover_checkpoint(
        work_on(
            pair,
            tmp_path / "out",
            resume_state=state,
            before_step=lambda moment, _: made.append(moment.step),
            **settings,
        )
    )
    assert made == [5, 6, 7]
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    timeless = {"seconds"}
    assert report.model_dump(exclude=timeless) == whole.model_dump(exclude=timeless)


def test_a_finished_training_is_not_repeated(pair: tuple[Path, Path], tmp_path: Path) -> None:
    state = ResumeState(directory=tmp_path / "state")
    state.hidden_states_every_seconds = 3600.0  # only the state after the last step is saved
    settings = {"max_tokens": 12 * LENGTH, "resume_state": state}
    recover_checkpoint(work_on(pair, tmp_path / "first", **settings))
    again = work_on(pair, tmp_path / "again", before_step=killed_before(0), **settings)
    recover_checkpoint(again)
    assert files_of(tmp_path / "first") == files_of(tmp_path / "again")


@pytest.mark.parametrize("change", [{"learning_rate": 1e-3}, {"loss": "ce"}, {"seed": 9}])
def test_the_state_of_a_different_training_is_not_resumed(
    pair: tuple[Path, Path], tmp_path: Path, change: dict[str, Any]
) -> None:
    state = ResumeState(directory=tmp_path / "state", hidden_states_every_seconds=0.0)
    settings = {"max_tokens": 12 * LENGTH, "resume_state": state}
    recover_checkpoint(work_on(pair, tmp_path / "first", **settings))
    work = work_on(pair, tmp_path / "again", before_step=killed_before(0), **settings, **change)
    with pytest.raises(KilledError):
        recover_checkpoint(work)


def test_a_damaged_file_is_not_resumed(pair: tuple[Path, Path], tmp_path: Path) -> None:
    state = ResumeState(directory=tmp_path / "state", hidden_states_every_seconds=0.0)
    settings = {"max_tokens": 12 * LENGTH, "resume_state": state}
    recover_checkpoint(work_on(pair, tmp_path / "first", **settings))
    for file in (tmp_path / "state").iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    recover_checkpoint(work_on(pair, tmp_path / "again", **settings))
    assert files_of(tmp_path / "first") == files_of(tmp_path / "again")


def test_training_is_cancelled_between_two_steps(pair: tuple[Path, Path], tmp_path: Path) -> None:
    reached: list[int] = []
    work = work_on(
        pair,
        tmp_path / "out",
        before_step=lambda moment, _: reached.append(moment.step),
        should_cancel=lambda: len(reached) > 2,
    )
    with pytest.raises(CompressionCancelledError):
        recover_checkpoint(work)
    assert reached == [0, 1, 2]
    assert files_of(tmp_path / "out") == files_of(pair[1])


def test_a_training_that_is_stopped_resumes_with_the_step_that_it_had_reached(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    settings = {"max_tokens": 30 * LENGTH}
    recover_checkpoint(work_on(pair, tmp_path / "whole", **settings))
    steps: dict[str, list[int]] = {"stopped": [], "resumed": []}

    def attempt(name: str, before: int) -> None:
        reached = steps[name]
        # No state is due for an hour: that of the pause is saved at once.
        state = ResumeState(directory=tmp_path / "state", hidden_states_every_seconds=3600.0)
        work = work_on(
            pair,
            tmp_path / name,
            resume_state=state,
            before_step=lambda moment, _: reached.append(moment.step),
            should_cancel=lambda: len(reached) > before,
            **settings,
        )
        recover_checkpoint(work)

    with pytest.raises(CompressionCancelledError):
        attempt("stopped", 3)
    attempt("resumed", 100)
    assert steps["resumed"][0] == steps["stopped"][-1] + 1
    assert files_of(tmp_path / "resumed") == files_of(tmp_path / "whole")


# -- reporting -----------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 49, 50, 51, 100, 1003])
def test_the_loss_curve_has_few_points_and_ends_with_the_last_token(steps: int) -> None:
    losses = [1.0 / step for step in range(1, steps + 1)]
    ends = [10 * step for step in range(1, steps + 1)]
    curve = loss_curve(losses, ends)
    assert 0 < len(curve) <= 50
    assert curve[-1].tokens == ends[-1]
    places = [0, *(point.tokens for point in curve)]
    weights = [after - before for before, after in pairwise(places)]
    total = sum(point.loss * weight for point, weight in zip(curve, weights, strict=True))
    assert total / ends[-1] == pytest.approx(sum(losses) / steps)


def test_the_configuration_survives_serialisation(pair: tuple[Path, Path], tmp_path: Path) -> None:
    report, _ = recover_checkpoint(work_on(pair, tmp_path / "out", max_tokens=8 * LENGTH))
    assert json.loads(report.model_dump_json())["config"]["max_tokens"] == 8 * LENGTH
    assert type(report).model_validate_json(report.model_dump_json()) == report
