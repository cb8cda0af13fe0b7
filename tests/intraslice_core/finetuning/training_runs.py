"""Tiny compressed models whose loss recovery fine-tuning can reduce."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from intraslice_core.config import CalibrationConfig, CompressionConfig, RecoveryConfig
from intraslice_core.finetuning.procedure import RecoveryWork
from tests.intraslice_core.compressing import compress_unverified
from tests.intraslice_core.tiny_models import VOCAB_SIZE, tiny_llama

LENGTH = 32
SETTINGS: dict[str, Any] = {
    "max_tokens": 40 * 4 * LENGTH,
    "sequence_length": LENGTH,
    "batch_size": 4,
    "rank": 8,
    "alpha": 16.0,
    "learning_rate": 5e-3,
}
CALIBRATION = CalibrationConfig(source="pydoc", samples=16, sequence_length=LENGTH)


def recovery_config(**changes: Any) -> RecoveryConfig:
    return RecoveryConfig.model_validate(SETTINGS | changes)


def compression(ratio: float = 0.5, **changes: Any) -> CompressionConfig:
    settings = {
        "ratio": ratio,
        "round_to": 2,
        "allocation": "uniform",
        "dtype": "float32",
        "calibration": CALIBRATION,
    }
    return CompressionConfig.model_validate(settings | changes)


def tokens(config: RecoveryConfig, seed: int = 0) -> Tensor:
    """Return the sequences that the settings require; some successions of tokens are frequent."""
    held_out = 16
    generator = torch.Generator().manual_seed(seed)
    shape = (config.sequences + held_out, config.sequence_length)
    steps = torch.randint(1, 4, shape, generator=generator)
    return (3 + steps.cumsum(-1)) % VOCAB_SIZE


def make_pair(
    folder: Path, *, model: dict[str, Any] | None = None, **changes: Any
) -> tuple[Path, Path]:
    """Write a dense and a compressed checkpoint, with changes of model and compression settings."""
    tiny_llama(folder / "dense", **(model or {}))
    compress_unverified(folder / "dense", folder / "compressed", compression(**changes))
    return folder / "dense", folder / "compressed"


def work_on(pair: tuple[Path, Path], copy: Path, **changes: Any) -> RecoveryWork:
    """Return the work on a copy of the compressed checkpoint, with changes of settings or work."""
    shutil.copytree(pair[1], copy)
    work_changes = {
        name: changes.pop(name)
        for name in (
            "resume_state",
            "should_cancel",
            "before_step",
            "dtype",
            "tokens",
            "prefix",
            "plan",
        )
        if name in changes
    }
    config = recovery_config(**changes)
    common = {"tokens": tokens(config), "dtype": "float32", "device": "cpu"}
    return RecoveryWork(dense=pair[0], compressed=copy, config=config, **(common | work_changes))


def files_of(checkpoint: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in checkpoint.iterdir()
    }
