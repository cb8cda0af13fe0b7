"""Addresses of the servers, and keys and rates of their callers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, SecretStr

from app.settings.base import SettingsGroup
from app.settings.types import BrokerUrl, DatabaseUrl, StoreUrl


class AccessSettings(SettingsGroup):
    """Servers, listening address, keys, links and request rates."""

    data_dir: Path = Field(
        default=Path("~/.local/share/intraslice"),
        validate_default=True,
        description="Directory of this machine's files (default ~/.local/share/intraslice)",
    )
    database_url: DatabaseUrl = Field(
        default="postgresql+psycopg:///intraslice",
        description="SQLAlchemy URL of PostgreSQL (default postgresql+psycopg:///intraslice)",
    )
    broker_url: BrokerUrl = Field(
        default="redis://localhost:6379/0",
        description="URL of Valkey or Redis (default redis://localhost:6379/0)",
    )
    artifact_store: StoreUrl = Field(
        default="",
        description="URL or directory of the artifact store (default: data_dir/artifacts)",
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
