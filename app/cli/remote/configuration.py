"""Which service is meant, and with which key: options before environment before file.

The file is `config.toml` in the user's directory of settings (`~/.config/intraslice`), or what
`INTRASLICE_CONFIG` names:

    url = "http://127.0.0.1:8000"

    [profiles.prod]
    url = "https://intraslice.example.com"
    api_key = "…"
"""

from __future__ import annotations

import stat
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from intraslice_core.errors import ConfigurationError

DEFAULT_URL = "http://127.0.0.1:8000"
_KNOWN = {"url", "api_key"}
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class Environment(BaseSettings):
    """`INTRASLICE_*` of a client; the service's own settings are in `app.settings`."""

    model_config = SettingsConfigDict(env_prefix="INTRASLICE_", extra="ignore", frozen=True)

    url: str | None = None
    api_key: SecretStr | None = None
    profile: str | None = None
    config: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Connection:
    """A service and a key, and where each of them was found."""

    url: str
    api_key: str | None
    url_from: str
    api_key_from: str

    @property
    def is_chosen(self) -> bool:
        """Whether somebody has named a service, or it is the default."""
        return self.url_from != "default"


def resolve(url: str | None, api_key_file: Path | None, profile: str | None) -> Connection:
    """What options, environment and file say together.

    Args:
        url: of an option.
        api_key_file: of an option; its first line is the key.
        profile: of an option: the part of the file that counts.

    Raises:
        ConfigurationError: if a file cannot be used.
    """
    environment = Environment()
    place = environment.config or Path(typer.get_app_dir("intraslice")) / "config.toml"
    named = profile or environment.profile
    found = _profile(place, named, must_exist=environment.config is not None or bool(named))
    source = f"{place}, profile {named}" if named else str(place)
    secret = environment.api_key.get_secret_value() if environment.api_key else None
    key = _read_key(api_key_file) if api_key_file else None
    chosen_url, url_from = _first(
        (url, "--url"), (environment.url, "INTRASLICE_URL"), (found.get("url"), source)
    )
    chosen_key, key_from = _first(
        (key, f"--api-key-file {api_key_file}"),
        (secret or None, "INTRASLICE_API_KEY"),
        (found.get("api_key"), source),
    )
    return Connection(
        url=(chosen_url or DEFAULT_URL).rstrip("/"),
        api_key=chosen_key,
        url_from=url_from or "default",
        api_key_from=key_from or "none",
    )


def _first(*candidates: tuple[str | None, str]) -> tuple[str | None, str]:
    return next((one for one in candidates if one[0] is not None), (None, ""))


def _read_key(file: Path) -> str:
    try:
        return file.read_text("utf-8").splitlines()[0].strip()
    except (OSError, UnicodeDecodeError, IndexError) as error:
        raise ConfigurationError(
            f"{file} holds no key", field="--api-key-file", hint="its first line is the key"
        ) from error


def _profile(place: Path, name: str | None, *, must_exist: bool) -> dict[str, str]:
    """The settings of a profile, or those outside of all."""
    try:
        content = tomllib.loads(place.read_text("utf-8"))
    except FileNotFoundError as error:
        if must_exist:
            raise ConfigurationError(f"there is no {place}", field="INTRASLICE_CONFIG") from error
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{place} cannot be read: {error}") from error
    profiles = content.pop("profiles", {})
    if name is not None and name not in profiles:
        known = ", ".join(profiles) or "none"
        raise ConfigurationError(
            f"{place} has no profile {name}", field="--profile", hint=f"there are: {known}"
        )
    found = content if name is None else profiles[name]
    _require_sound(place, found)
    return found


def _require_sound(place: Path, found: dict[str, Any]) -> None:
    unknown = found.keys() - _KNOWN
    if unknown or not all(isinstance(value, str) for value in found.values()):
        raise ConfigurationError(
            f"{place}: {', '.join(sorted(unknown)) or 'a value'} is not understood",
            hint="url and api_key are, as texts, and [profiles.NAME] with the same",
        )
    if "api_key" in found and place.stat().st_mode & _OTHERS:
        raise ConfigurationError(
            f"{place} holds a key and can be read by others", hint=f"chmod 600 {place}"
        )
