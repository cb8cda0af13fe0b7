"""Endpoints of a bucket: the service's own, and the one under which clients reach it.

The service's own is not one of our settings: obstore reads it from the environment.
"""

from __future__ import annotations

import os
from typing import Literal
from urllib.parse import urlsplit

_OVERRIDING = "AWS_ENDPOINT_URL_S3"
_S3 = frozenset({"s3", "s3a"})
_AZURE = frozenset({"az", "adl", "azure", "abfs", "abfss"})
_S3_VARIABLES = (_OVERRIDING, "AWS_ENDPOINT", "AWS_ENDPOINT_URL")
_AZURE_VARIABLES = ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
ENDPOINTS = dict.fromkeys(_S3, _S3_VARIABLES) | dict.fromkeys(_AZURE, _AZURE_VARIABLES)
"""Variables that replace the provider's endpoint, by scheme of the store; the first one wins."""


def own_endpoint(store_url: str) -> str:
    """Return the endpoint that the service uses; empty if it is the provider's or a directory."""
    return os.environ.get(endpoint_variable(store_url), "")


def endpoint_variable(store_url: str) -> str:
    """Return the variable that names the service's endpoint; empty if none does."""
    names = ENDPOINTS.get(urlsplit(store_url).scheme, ())
    return next((name for name in names if os.environ.get(name)), "")


def allows_http() -> bool:
    """Return True if the environment accepts connections to S3 without encryption."""
    return os.environ.get("AWS_ALLOW_HTTP", "").lower() in {"true", "1"}


def uses_direct_links(
    store_url: str, public_endpoint: str, downloads: Literal["direct", "proxy"] | None
) -> bool:
    """Return True if clients exchange files with the bucket itself; a provider's is public."""
    if downloads is not None:
        return downloads == "direct"
    return bool(public_endpoint) or not own_endpoint(store_url)


def public_origin(url: str) -> str:
    """Return the scheme, host and port of a URL that has nothing else; empty stays empty.

    A path is rejected because signatures cover it: a proxy that removes the path before the
    bucket sees the request makes every link invalid.

    Raises:
        ValueError: if the URL has another scheme, no host, or further parts.
    """
    if not url:
        return ""
    parts = urlsplit(url)
    _ = parts.port  # raises ValueError if it is not a number below 65536
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not an http or https URL: write https://HOST[:PORT]")
    if parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError(
            f"{url!r} has more than a scheme, host and port: write"
            f" {parts.scheme}://HOST[:PORT], because signatures cover the path"
        )
    return f"{parts.scheme}://{parts.netloc}"


def check_public_endpoint(artifact_store: str) -> None:
    """Check that links to the store can be signed for a public endpoint.

    Raises:
        ValueError: if they cannot.
    """
    scheme, separator, _ = artifact_store.partition("://")
    if separator and scheme not in _S3 | {"file"}:
        raise ValueError(
            f"store_public_endpoint is for s3:// stores, not {artifact_store!r}: unset it"
        )
    if os.environ.get(_OVERRIDING):
        raise ValueError(
            f"{_OVERRIDING} overrides store_public_endpoint: set AWS_ENDPOINT instead of it"
        )
