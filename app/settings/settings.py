"""All settings of the service: checks of combinations, and values derived from several."""

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

from pydantic import field_validator, model_validator

from app.settings.access import AccessSettings
from app.settings.base import PREFIX, RENAMED
from app.settings.integrations import IntegrationSettings
from app.settings.limits import LimitSettings
from app.settings.playground import PlaygroundSettings
from app.settings.store_endpoints import check_public_endpoint, public_origin
from app.settings.work import WorkSettings
from intraslice_core.config import ModelLimits

_TRACES = "/v1/traces"


class Settings(
    AccessSettings, LimitSettings, WorkSettings, PlaygroundSettings, IntegrationSettings
):
    """Settings from `INTRASLICE_*` variables; lists are plain text or JSON."""

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
        for before, name in RENAMED.items():
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
            variable = f"{PREFIX}{name.upper()}"
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
                f"{PREFIX}AUTH=off requires a loopback host, not {self.host!r}:"
                f" set {PREFIX}HOST=127.0.0.1 or {PREFIX}AUTH=on"
            )
        if self.heartbeat_seconds * 3 > self.lease_seconds:
            raise ValueError(
                f"{PREFIX}LEASE_SECONDS ({self.lease_seconds:g}) must be at least three times"
                f" {PREFIX}HEARTBEAT_SECONDS ({self.heartbeat_seconds:g})"
            )
        if self.store_public_endpoint:
            check_public_endpoint(self.artifact_store)
        if self.handoff_hub_endpoint and not self.handoff_hub_namespace:
            raise ValueError(
                f"{PREFIX}HANDOFF_HUB_ENDPOINT needs {PREFIX}HANDOFF_HUB_NAMESPACE: set both"
            )
        if self.handoff_hub_namespace and self.handoff_hub_token is None:
            raise ValueError(
                f"{PREFIX}HANDOFF_HUB_NAMESPACE needs {PREFIX}HANDOFF_HUB_TOKEN: set both"
            )
        if self.handoff_mlflow_uri and not _is_installed("mlflow-skinny", "mlflow"):
            raise ValueError(
                f"{PREFIX}HANDOFF_MLFLOW_URI needs the mlflow extra:"
                " pip install 'intraslice[mlflow]'"
            )
        if self.otel_endpoint and not _is_installed("opentelemetry-exporter-otlp-proto-http"):
            raise ValueError(
                f"{PREFIX}OTEL_ENDPOINT needs the otel extra: pip install 'intraslice[otel]'"
            )
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
    def worker_gpu_numbers(self) -> tuple[int, ...]:
        """Numbers of the GPUs that a worker uses; empty for all of them, and for none."""
        listed = _listed(self.worker_devices)
        return tuple(int(name) for name in listed if name.isdecimal())

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
