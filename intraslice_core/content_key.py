"""Keys of cached content: digests of everything that the content depends on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
import transformers

import intraslice_core
from intraslice_core.config import CalibrationConfig
from intraslice_core.files import combined_sha256, file_sha256
from intraslice_core.text_sources import WEB, WEB_CALIBRATION_FILE

_MODEL_FILES = (
    *("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"),
    *("token*", "*.model", "vocab*", "merges.txt", "tekken.json", "*.tiktoken"),
    *("special_tokens_map.json", "added_tokens.json"),
    *("chat_template*", "additional_chat_templates/*"),
)


def content_key(**facts: object) -> str:
    """Return the SHA-256 of everything some content depends on, program versions included."""
    versions = (intraslice_core.__version__, torch.__version__, transformers.__version__)
    text = json.dumps({"versions": versions, **facts}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def calibration_facts(calibration: CalibrationConfig) -> dict[str, object]:
    """Return everything the calibration tokens depend on besides the model."""
    texts = [_text_digest(source.source) for source in calibration.mixture]
    return {"calibration": calibration.model_dump(mode="json"), "texts": texts}


def _text_digest(source: str) -> str | None:
    """Return the SHA-256 of a file or of the web text; None for other sources."""
    if source == WEB:
        return WEB_CALIBRATION_FILE.sha256
    file = Path(source).expanduser()
    return file_sha256(file) if file.is_file() else None


def fingerprint(directory: Path) -> str:
    """Return the SHA-256 of all files that decide what a model computes."""
    return combined_sha256({file for pattern in _MODEL_FILES for file in directory.glob(pattern)})
