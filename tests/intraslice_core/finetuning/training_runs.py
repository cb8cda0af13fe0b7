"""Tiny compressed models that there is something to win back of."""

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
    """As many as the settings ask for, of which a few follow each other often."""
    held_out = 16
    generator = torch.Generator().manual_seed(seed)
    shape = (config.sequences + held_out, config.sequence_length)
    steps = torch.randint(1, 4, shape, generator=generator)
    return (3 + steps.cumsum(-1)) % VOCAB_SIZE


def make_pair(
    folder: Path, *, model: dict[str, Any] | None = None, **changes: Any
) -> tuple[Path, Path]:
    """A dense checkpoint and a compressed one; changes of the model, and of the compression."""
    tiny_llama(folder / "dense", **(model or {}))
    compress_unverified(folder / "dense", folder / "compressed", compression(**changes))
    return folder / "dense", folder / "compressed"


def work_on(pair: tuple[Path, Path], copy: Path, **changes: Any) -> RecoveryWork:
    """On a copy of the compressed checkpoint; changes of the settings, or of the work."""
    shutil.copytree(pair[1], copy)
    of_work = {
        name: changes.pop(name)
        for name in ("resume_state", "should_cancel", "before_step", "dtype", "tokens")
        if name in changes
    }
    config = recovery_config(**changes)
    common = {"tokens": tokens(config), "dtype": "float32", "device": "cpu"}
    return RecoveryWork(dense=pair[0], compressed=copy, config=config, **(common | of_work))


def files_of(checkpoint: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in checkpoint.iterdir()
    }
