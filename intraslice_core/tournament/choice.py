"""Choice of the method: plan, trials, and the settings with the winner in place of `auto`."""

from __future__ import annotations

from pathlib import Path

import torch

from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.config import CompressionConfig, EvaluationConfig
from intraslice_core.cost_model import (
    TournamentPlan,
    machine_rates,
    plan_tournament,
    stage_seconds,
)
from intraslice_core.device import device_class, gpu_class_of, resolve_device, resolve_dtype
from intraslice_core.evaluation.texts import check_texts
from intraslice_core.plan import ModelGeometry
from intraslice_core.progress import Stage
from intraslice_core.reports.tournament import TournamentReport
from intraslice_core.run import OpenedModel, Run
from intraslice_core.tokenizer import load_tokenizer
from intraslice_core.tournament.decision import report_without_trials
from intraslice_core.tournament.trials import CompressTrial, Tournament


def choose_method(
    dense: OpenedModel,
    config: CompressionConfig,
    evaluation: EvaluationConfig | None,
    run: Run,
    place: Path,
    compress: CompressTrial,
) -> tuple[CompressionConfig, TournamentReport]:
    """Return the settings with the winner in place of `auto`, and the report of the choice.

    Args:
        dense: the dense model.
        config: settings with method `auto`.
        evaluation: settings of the evaluation; None without one.
        run: state of the run; its progress has a stage for the tournament.
        place: directory for the trials' checkpoints, which are removed.
        compress: compresses for a trial.

    Raises:
        IntraSliceError: one of the tree in `errors.py`.
    """
    run.report(Stage.TOURNAMENT, "choosing the method")
    with CheckpointReader(dense.directory) as reader:
        geometry = reader.family.geometry(reader.config)
        vocabulary = reader.family.canonical_settings(reader.config)["vocab_size"]
        stored_dtype = reader.dtype
        model_type = dense.target_type(config.target, reader.family.model_type)
    plan = plan_tournament(config, geometry, stored_dtype.itemsize, model_type, verify=run.verify)
    tokenizer = load_tokenizer(dense.directory)
    if evaluation is not None:  # what cannot be measured is rejected before the trials
        check_texts(evaluation, tokenizer, vocabulary)
    if len(plan.candidates) == 1:
        (only,) = plan.candidates
        return only.config, report_without_trials(plan)
    _expect(run, plan, geometry, evaluation, stored_dtype)
    tournament = Tournament(
        dense=dense,
        config=config,
        plan=plan,
        run=run,
        place=place,
        compress=compress,
        tokenizer=tokenizer,
    )
    report = tournament.decide()
    winner = next(candidate for candidate in plan.candidates if candidate.method == report.winner)
    run.report(Stage.TOURNAMENT, f"{winner.method} won", 1.0)
    return winner.config, report


def _expect(
    run: Run,
    plan: TournamentPlan,
    geometry: ModelGeometry,
    evaluation: EvaluationConfig | None,
    stored_dtype: torch.dtype,
) -> None:
    """Set the shares of the stages as if the costliest candidate won: no other takes longer."""
    config = plan.costliest.config
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device, stored_dtype)
    machine = f"{device_class(device)} {dtype} {config.method}"
    rates = machine_rates(gpu_class_of(device), dtype.itemsize)
    # The plan is made before a machine is known, and so for the reference.
    item_bytes = stored_dtype.itemsize
    reference = sum(stage_seconds(geometry, config, None, item_bytes).values())
    own = sum(stage_seconds(geometry, config, None, item_bytes, rates).values())
    run.tournament_seconds = plan.seconds * own / reference
    run.expect(geometry, config, evaluation, item_bytes, machine, rates)
