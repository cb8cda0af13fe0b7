"""Webhooks, registries, event streams, logs, metrics and traces."""

from __future__ import annotations

from typing import Literal

from pydantic import AliasChoices, Field, SecretStr

from app.settings.base import SettingsGroup
from app.settings.types import HttpUrl


class IntegrationSettings(SettingsGroup):
    """Webhooks, registries, event streams, logs, metrics and traces."""

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
        description="Name of registered models and repositories (template of {model}, {ratio}, "
        "{target} and {project}; default {model}-{ratio}-{target})",
    )
    handoff_automatic: bool = Field(
        default=True,
        description="Hand off every result, not only on request (true or false; default true)",
    )
    handoff_mlflow_uri: str = Field(
        default="",
        description="URI of the MLflow server that registers results (default none)",
    )
    handoff_hub_namespace: str = Field(
        default="",
        description="Hub user or organisation that results are pushed to (default none)",
    )
    handoff_hub_endpoint: HttpUrl = Field(
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
    otel_endpoint: HttpUrl = Field(
        default="",
        description="URL of an OTLP/HTTP trace collector (default none: tracing is off)",
        validation_alias=AliasChoices(
            "INTRASLICE_OTEL_ENDPOINT",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "OTEL_EXPORTER_OTLP_ENDPOINT",
        ),
    )
