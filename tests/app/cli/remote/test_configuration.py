"""Service of a command: options override the environment, which overrides the config file."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.cli.remote.configuration import DEFAULT_URL, resolve
from intraslice_core.errors import ConfigurationError

CONFIG = """
url = "http://file:1/"
api_key = "of-the-file"

[profiles.prod]
url = "https://prod"
"""


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("URL", "API_KEY", "PROFILE", "CONFIG"):
        monkeypatch.delenv(f"INTRASLICE_{name}", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))


def write(place: Path, text: str = CONFIG, mode: int = 0o600) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    place.chmod(mode)
    return place


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write(tmp_path / "home" / "intraslice" / "config.toml")


def test_the_default_url_is_this_machine() -> None:
    connection = resolve(None, None, None)
    assert (connection.url, connection.api_key, connection.is_chosen) == (DEFAULT_URL, None, False)


def test_options_override_the_environment_which_overrides_the_file(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = resolve(None, None, None)
    assert (connection.url, connection.api_key) == ("http://file:1", "of-the-file")
    assert connection.api_key_from == str(config)
    monkeypatch.setenv("INTRASLICE_URL", "http://env")
    monkeypatch.setenv("INTRASLICE_API_KEY", "of-the-env")
    connection = resolve(None, None, None)
    assert (connection.url, connection.api_key) == ("http://env", "of-the-env")
    key = write(tmp_path / "key", "of-the-option\n")
    connection = resolve("http://option", key, None)
    assert (connection.url, connection.api_key, connection.url_from) == (
        "http://option",
        "of-the-option",
        "--url",
    )


def test_a_profile_replaces_all_top_level_values(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert config.exists()
    connection = resolve(None, None, "prod")
    assert (connection.url, connection.api_key) == ("https://prod", None)
    monkeypatch.setenv("INTRASLICE_PROFILE", "prod")
    assert resolve(None, None, None).url == "https://prod"


@pytest.mark.parametrize(
    ("text", "mode", "reason"),
    [
        (CONFIG, 0o644, "readable by other users"),
        ("url = [", 0o600, "cannot be read"),
        ('uri = "http://x"', 0o600, "unknown setting uri"),
        ("url = 3", 0o600, "must be strings"),
    ],
)
def test_an_invalid_or_readable_file_is_an_error(
    config: Path, text: str, mode: int, reason: str
) -> None:
    write(config, text, mode)
    with pytest.raises(ConfigurationError, match=reason):
        resolve(None, None, None)


def test_a_file_without_a_key_may_be_readable_by_all(config: Path) -> None:
    write(config, 'url = "http://x"', 0o644)
    assert resolve(None, None, None).url == "http://x"


def test_named_files_and_profiles_must_exist(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert config.exists()
    with pytest.raises(ConfigurationError, match="no profile other") as caught:
        resolve(None, None, "other")
    assert "prod" in (caught.value.hint or "")
    with pytest.raises(ConfigurationError, match="contains no API key"):
        resolve(None, tmp_path / "nowhere", None)
    monkeypatch.setenv("INTRASLICE_CONFIG", str(tmp_path / "nowhere.toml"))
    with pytest.raises(ConfigurationError, match=r"nowhere\.toml does not exist"):
        resolve(None, None, None)
