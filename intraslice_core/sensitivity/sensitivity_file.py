"""File of a model's measured sensitivity."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from intraslice_core.files import atomic_file
from intraslice_core.sensitivity.layer_sensitivity import LayerSensitivity
from intraslice_core.sensitivity.measurement import ModelSensitivity
from intraslice_core.sensitivity.trial_cuts import TrialCut

_TRIALS = "trials"
"""Metadata key of the trial cuts."""


def save_sensitivity(file: Path, measured: ModelSensitivity) -> None:
    """Write the sensitivity to a safetensors file, atomically."""
    tensors: dict[str, Tensor] = {
        f"{number}.{name}": part.contiguous()
        for number, layer in enumerate(measured.layers)
        for name, part in layer.tensors().items()
    }
    trials = json.dumps([asdict(trial) for trial in measured.trials])
    with atomic_file(file) as partial:
        save_file(tensors, partial, {_TRIALS: trials})


def load_sensitivity(file: Path) -> ModelSensitivity | None:
    """Return the file's content; None if it does not exist or is damaged."""
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            names = list(opened.keys())
            metadata = opened.metadata() or {}
            parts = {name: opened.get_tensor(name).clone() for name in names}
    except (FileNotFoundError, SafetensorError):
        return None
    layers: dict[int, dict[str, Tensor]] = {}
    for name, part in parts.items():
        number, _, field = name.partition(".")
        layers.setdefault(int(number), {})[field] = part
    return ModelSensitivity(
        layers=tuple(LayerSensitivity(**layers[number]) for number in sorted(layers)),
        trials=tuple(TrialCut(**trial) for trial in json.loads(metadata[_TRIALS])),
    )
