"""Validation of the URL under which clients reach a bucket."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

_S3 = "s3"
_OVERRIDING = "AWS_ENDPOINT_URL_S3"


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
    if separator and scheme not in (_S3, "s3a", "file"):
        raise ValueError(
            f"store_public_endpoint is for s3:// stores, not {artifact_store!r}: unset it"
        )
    if os.environ.get(_OVERRIDING):
        raise ValueError(
            f"{_OVERRIDING} overrides store_public_endpoint: set AWS_ENDPOINT instead of it"
        )
