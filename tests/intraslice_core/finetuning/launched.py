"""Fine-tuning in each process of a launcher: `torchrun launched.py COMPRESSED DENSE FOLDER`.

Trains once, then again from the state after the second step, which another directory got meanwhile.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch

from intraslice_core.calibration import stream_windows, text_prefix
from intraslice_core.config import CalibrationConfig, RecoveryConfig
from intraslice_core.finetuning.procedure import (
    BeforeStep,
    RecoveryWork,
    ignore_step,
    recover_checkpoint,
    train_with_main_process,
)
from intraslice_core.finetuning.processes import Processes
from intraslice_core.finetuning.recover import recover_model
from intraslice_core.reports.schema import RecoveryReport
from intraslice_core.resume_state import TRAINING_PREFIX, ResumeState
from intraslice_core.tokenizer import load_tokenizer

STEPS = 5
RESUMED_STEP = 2
BATCH_SIZE = 2
PROCESSES = 2
SEQUENCES = PROCESSES * BATCH_SIZE * STEPS - 3
"""Sequences of a training whose last step has a single one."""
LENGTH = 32


def settings(batch_size: int) -> RecoveryConfig:
    """Return the settings of the training, with a number of sequences per process and step."""
    return RecoveryConfig(
        max_tokens=SEQUENCES * LENGTH,
        sequence_length=LENGTH,
        adapter="dora",
        rank=4,
        alpha=8.0,
        learning_rate=0.01,
        batch_size=batch_size,
        source="pydoc",
    )


def train(
    compressed: Path,
    dense: Path,
    out: Path,
    config: RecoveryConfig,
    processes: Processes | None = None,
    resume_state: ResumeState | None = None,
    before_step: BeforeStep = ignore_step,
) -> RecoveryReport | None:
    """Train a copy of a checkpoint; return the report in the main process."""
    processes = processes or Processes()
    tokenizer = load_tokenizer(dense)
    tokens = torch.empty(0, LENGTH, dtype=torch.int32)
    if processes.is_main:
        shutil.copytree(compressed, out)
        text = config.text(CalibrationConfig())
        tokens = stream_windows(text, tokenizer, out.with_suffix(".tokens"))
    work = RecoveryWork(
        dense=dense,
        compressed=out if processes.is_main else compressed,
        config=config,
        tokens=tokens,
        processes=processes,
        prefix=text_prefix(tokenizer),
        dtype="float32",
        device="cpu",
        resume_state=resume_state,
        before_step=before_step,
    )
    if not processes.is_main:
        train_with_main_process(work)
        return None
    return recover_checkpoint(work)[0]


def main() -> None:
    """Train twice; the second training takes the last steps only."""
    compressed, dense, folder = map(Path, sys.argv[1:])
    here, elsewhere = folder / "state", folder / "elsewhere"
    elsewhere.mkdir(exist_ok=True)

    def mirror(name: str) -> None:
        if name.startswith(f"{TRAINING_PREFIX}{RESUMED_STEP:08d}-"):
            shutil.copyfile(here / name, elsewhere / name)

    report = recover_model(
        compressed,
        str(dense),
        folder / "together",
        settings(BATCH_SIZE),
        dtype="float32",
        device="cpu",
        resume_state=ResumeState(directory=here, hidden_states_every_seconds=0.0, on_saved=mirror),
    )
    assert report.recovery is not None  # in every process
    steps: list[int] = []
    resumed = train(
        compressed,
        dense,
        folder / "resumed",
        settings(BATCH_SIZE),
        processes=Processes.launched(on_cpu=True),
        resume_state=ResumeState(directory=elsewhere),
        before_step=lambda moment, _: steps.append(moment.step),
    )
    if resumed is not None:
        assert steps == list(range(RESUMED_STEP, STEPS))
        (folder / "resumed.json").write_text(resumed.model_dump_json())


if __name__ == "__main__":
    main()
