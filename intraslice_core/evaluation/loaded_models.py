"""A checkpoint as a model that is ready to run."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from intraslice_core import modeling
from intraslice_core.device import resolve_device, resolve_dtype


def load_model(directory: Path, *, dtype: str, device: str) -> PreTrainedModel:
    """A dense or a compressed checkpoint, by our own registered classes, ready to run."""
    modeling.register()
    place = resolve_device(device)
    settings = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=resolve_dtype(dtype, place, settings.dtype),
        local_files_only=True,
        trust_remote_code=False,
    )
    model.to(place)  # type: ignore[arg-type]
    model.train(False)
    return model
