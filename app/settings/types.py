"""Types of settings: lists and URLs as people write them in the environment."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator
from pydantic_settings import NoDecode

_JSON_LIST = re.compile(r'\[\s*["\]]')
"""Start of a JSON list of texts, as opposed to a glob such as `[ab]*/*`."""
_DRIVER = "postgresql+psycopg"
ALL_DEVICES, CPU_ONLY = "all", "cpu"
_BROKERS = ("redis", "rediss", "redis+socket")
_STORES = (
    *("file", "s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss"),
    *("http", "https", "memory"),
)


def _items(value: object, separator: str) -> object:
    """Split a plain list and parse a JSON list; arguments that are no text stay.

    Raises:
        ValueError: if the text starts like a JSON list but is not valid JSON.
    """
    if not isinstance(value, str):
        return value
    text = value.strip()
    if not _JSON_LIST.match(text):
        return [part.strip() for part in text.split(separator) if part.strip()]
    try:
        return json.loads(text)
    except ValueError:
        raise ValueError(
            "starts like a JSON list but is not valid JSON; separate the items by"
            f" {separator!r} instead"
        ) from None


def _split_paths(value: object) -> object:
    return _items(value, ":")


def _split_names(value: object) -> object:
    return _items(value, ",")


def _absolute(paths: tuple[Path, ...]) -> tuple[Path, ...]:
    """Expand `~`; a relative path would mean another directory in each process.

    Raises:
        ValueError: naming the relative path.
    """
    expanded = tuple(path.expanduser() for path in paths)
    for path in expanded:
        if not path.is_absolute():
            raise ValueError(f"{str(path)!r} is a relative path; write the absolute path")
    return expanded


def _database_url(url: str) -> str:
    """Name the driver that the service uses; `postgresql://` alone means another one.

    Raises:
        ValueError: if the URL is not one of PostgreSQL; never quotes it, for its password.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in {"postgres", "postgresql", _DRIVER}:
        raise ValueError("is not a PostgreSQL URL; write postgresql://USER:PASSWORD@HOST:PORT/NAME")
    _check_port(f"{_DRIVER}://{rest}")
    return f"{_DRIVER}://{rest}"


def _broker_url(url: str) -> str:
    """Check the scheme and the port.

    Raises:
        ValueError: if the URL is not one of Valkey or Redis; never quotes it, for its password.
    """
    if url.partition("://")[0] not in _BROKERS:
        raise ValueError(
            "is not a Valkey or Redis URL; write redis://:PASSWORD@HOST:PORT/0, rediss://… for TLS"
            " or redis+socket:///PATH"
        )
    _check_port(url)
    return url


def _check_port(url: str) -> None:
    """Raise if the port is not a number, which a special character in the password can cause.

    Raises:
        ValueError: without the URL, for its password.
    """
    try:
        _ = urlsplit(url).port
    except ValueError:
        raise ValueError(
            "has no valid port; percent-encode special characters of the password, as %40 for @"
        ) from None


def _store_url(url: str) -> str:
    """Return the URL of the store; a plain absolute path is a directory.

    Raises:
        ValueError: if the URL names no kind of store, or no bucket.
    """
    if not url:
        return url
    if url.startswith(("/", "~/")):
        return Path(url).expanduser().as_uri()
    parts = urlsplit(url)
    if parts.scheme not in _STORES:
        raise ValueError(
            "is not an artifact store; write s3://BUCKET/PREFIX, gs://…, az://… or /DIRECTORY"
        )
    if not parts.netloc and parts.scheme not in {"file", "memory"}:
        raise ValueError(f"names no bucket; write {parts.scheme}://BUCKET/PREFIX")
    return url


def _http_url(url: str) -> str:
    """Check the scheme and the host.

    Raises:
        ValueError: if it is not a URL of HTTP.
    """
    if url and (urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).hostname):
        raise ValueError("is not an HTTP URL; write http://HOST:PORT")
    return url


def _worker_devices(value: str) -> str:
    """Check the selection and remove spaces.

    Raises:
        ValueError: if it is neither `all` nor `cpu` nor a list of different numbers.
    """
    names = [name.strip() for name in value.split(",")]
    if names in ([ALL_DEVICES], [CPU_ONLY]):
        return names[0]
    if not all(name.isdecimal() for name in names) or len(set(map(int, names))) < len(names):
        raise ValueError(
            "selects no devices; write all, cpu, or different numbers of GPUs such as 0,1"
        )
    return ",".join(names)


PathList = Annotated[
    tuple[Path, ...], NoDecode, BeforeValidator(_split_paths), AfterValidator(_absolute)
]
"""Absolute directories, separated by colons or as a JSON list."""
NameList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_names)]
"""Names or globs, separated by commas or as a JSON list."""
DatabaseUrl = Annotated[str, AfterValidator(_database_url)]
BrokerUrl = Annotated[str, AfterValidator(_broker_url)]
StoreUrl = Annotated[str, AfterValidator(_store_url)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
WorkerDevices = Annotated[str, AfterValidator(_worker_devices)]
"""`all`, `cpu`, or numbers of GPUs separated by commas."""
