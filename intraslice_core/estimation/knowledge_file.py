"""What was learnt of a model, in one file, so that the walk is paid for once."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from intraslice_core.choices import LayerKnowledge
from intraslice_core.estimation.trials import Trial
from intraslice_core.estimation.walk import Learned

_TRIALS = "trials"


def save_learned(file: Path, learned: Learned) -> None:
    """Write the file; it appears whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {
        f"{number}.{name}": part.contiguous()
        for number, layer in enumerate(learned.layers)
        for name, part in vars(layer).items()
    }
    handle, partial = tempfile.mkstemp(prefix=".partial-", dir=file.parent)
    os.close(handle)
    try:
        save_file(tensors, partial, {_TRIALS: json.dumps([asdict(one) for one in learned.trials])})
        os.replace(partial, file)
    finally:
        Path(partial).unlink(missing_ok=True)


def load_learned(file: Path) -> Learned | None:
    """What the file holds; None if there is none, or it is damaged."""
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            names = list(opened.keys())
            facts = opened.metadata() or {}
            parts = {name: opened.get_tensor(name).clone() for name in names}
    except (FileNotFoundError, SafetensorError):
        return None
    layers: dict[int, dict[str, Tensor]] = {}
    for name, part in parts.items():
        number, _, field = name.partition(".")
        layers.setdefault(int(number), {})[field] = part
    return Learned(
        layers=tuple(LayerKnowledge(**layers[number]) for number in sorted(layers)),
        trials=tuple(Trial(**one) for one in json.loads(facts[_TRIALS])),
    )
