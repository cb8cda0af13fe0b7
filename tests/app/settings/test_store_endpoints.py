"""Settings that decide which way files take between clients and a bucket."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from pydantic import ValidationError

from app.settings import Settings
from app.settings.store_endpoints import ENDPOINTS, uses_direct_links


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3.example.com:8333", "is not an http or https URL"),
        ("ftp://s3.example.com", "is not an http or https URL"),
        ("https://", "is not an http or https URL"),
        ("https://s3.example.com:port", "ort"),
        ("https://s3.example.com/files", "signatures cover the path"),
        ("https://s3.example.com?x=1", "has more than a scheme, host and port"),
        ("https://user:password@s3.example.com", "has more than a scheme, host and port"),
    ],
)
def test_a_public_endpoint_is_only_scheme_host_and_port(url: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Settings(artifact_store="s3://bucket", store_public_endpoint=url)


def test_a_public_endpoint_is_for_s3_without_its_own_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = {"artifact_store": "s3://bucket", "store_public_endpoint": "https://s3.example.com/"}
    assert Settings(**values).store_public_endpoint == "https://s3.example.com"
    for store in ("gs://bucket", "az://container", "https://account.blob.core.windows.net/c"):
        with pytest.raises(ValidationError, match=f"is for s3:// stores, not '{store}': unset it"):
            Settings(**values | {"artifact_store": store})
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3:8333")
    with pytest.raises(ValidationError, match="set AWS_ENDPOINT instead"):
        Settings(**values)


def test_empty_values_are_the_defaults() -> None:
    settings = Settings(downloads="", store_public_endpoint="")
    assert (settings.downloads, settings.store_public_endpoint) == (None, "")
    with pytest.raises(ValidationError, match="'direct' or 'proxy'"):
        Settings(downloads="both")


@pytest.mark.parametrize(
    ("url", "environment", "options", "is_direct"),
    [
        ("s3://bucket", {}, {}, True),
        ("s3://bucket", {"AWS_ENDPOINT": "http://s3:8333"}, {}, False),
        ("s3://bucket", {"AWS_ENDPOINT_URL": "http://s3:8333"}, {}, False),
        ("s3://bucket", {"AWS_ENDPOINT_URL_S3": "http://s3:8333"}, {}, False),
        ("s3://bucket", {"AWS_ENDPOINT": ""}, {}, True),
        ("s3://bucket", {"AWS_ENDPOINT": "http://s3:8333"}, {"downloads": "direct"}, True),
        (
            "s3://bucket",
            {"AWS_ENDPOINT": "http://s3:8333"},
            {"store_public_endpoint": "http://a"},
            True,
        ),
        ("s3://bucket", {}, {"store_public_endpoint": "http://a", "downloads": "proxy"}, False),
        ("gs://bucket", {"AWS_ENDPOINT": "http://s3:8333"}, {}, True),
        ("az://bucket", {}, {}, True),
        ("az://bucket", {"AZURE_STORAGE_ENDPOINT": "http://blobs:10000"}, {}, False),
    ],
)
def test_clients_use_the_bucket_itself_if_its_endpoint_is_public(
    url: str,
    environment: dict[str, str],
    options: dict[str, Any],
    is_direct: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in itertools.chain(*ENDPOINTS.values()):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = Settings(artifact_store=url, **options)
    public_endpoint, downloads = settings.store_public_endpoint, settings.downloads
    assert uses_direct_links(settings.store_url, public_endpoint, downloads) is is_direct
