"""Loading of a checkpoint for inference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)

from intraslice_core import modeling
from intraslice_core.checkpoints.reader import StoredTensors, model_dtype
from intraslice_core.device import resolve_device, resolve_dtype
from intraslice_core.families.wrappers import WRAPPERS


def load_model(directory: Path, *, dtype: str, device: str) -> PreTrainedModel:
    """Load a dense or compressed checkpoint in evaluation mode, with our registered classes."""
    modeling.register()
    compute_device = resolve_device(device)
    settings = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    with StoredTensors(directory) as stored:
        own_dtype = model_dtype(settings, stored)
    wraps = settings.model_type in WRAPPERS
    auto: Any = AutoModelForImageTextToText if wraps else AutoModelForCausalLM
    model: PreTrainedModel = auto.from_pretrained(
        directory,
        dtype=resolve_dtype(dtype, compute_device, own_dtype),
        local_files_only=True,
        trust_remote_code=False,
    )
    model.to(compute_device)  # type: ignore[arg-type]
    model.train(False)
    return model
