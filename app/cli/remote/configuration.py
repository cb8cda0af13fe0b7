"""Service URL and API key: options override the environment, which overrides the config file.

The config file is `config.toml` in the user's settings directory (`~/.config/intraslice`), or the
file named by `INTRASLICE_CONFIG`:

    url = "http://127.0.0.1:8000"

    [profiles.prod]
    url = "https://intraslice.example.com"
    api_key = "…"
"""

from __future__ import annotations

import os
import stat
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from intraslice_core.errors import ConfigurationError

DEFAULT_URL = "http://127.0.0.1:8000"
_FILE_KEYS = {"url", "api_key"}
_GROUP_AND_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, kw_only=True)
class Environment:
    """`INTRASLICE_*` variables of a client; those of the service are in `app.settings`.

    Read without `app.settings`, which takes longer to import than a request to the service.
    """

    url: str | None
    api_key: str | None = field(repr=False)
    profile: str | None
    config: Path | None

    @classmethod
    def read(cls) -> Environment:
        """Read the variables; names are case-insensitive, as those of the service are."""
        variables = {name.upper(): value for name, value in os.environ.items()}
        config = variables.get("INTRASLICE_CONFIG")
        return cls(
            url=variables.get("INTRASLICE_URL"),
            api_key=variables.get("INTRASLICE_API_KEY"),
            profile=variables.get("INTRASLICE_PROFILE"),
            config=None if config is None else Path(config),
        )


@dataclass(frozen=True, kw_only=True)
class Connection:
    """URL and API key of a service, and the origin of each."""

    url: str
    api_key: str | None
    url_from: str
    api_key_from: str

    @property
    def is_chosen(self) -> bool:
        """True if the URL was configured, False if it is the default."""
        return self.url_from != "default"


def resolve(url: str | None, api_key_file: Path | None, profile: str | None) -> Connection:
    """Return the connection that options, environment and config file define.

    Args:
        url: value of `--url`.
        api_key_file: value of `--api-key-file`; the first line of the file is the key.
        profile: value of `--profile`: the section of the config file to use.

    Raises:
        ConfigurationError: if a file or the key is missing or invalid.
    """
    environment = Environment.read()
    file = environment.config or Path(typer.get_app_dir("intraslice")) / "config.toml"
    profile = profile or environment.profile
    must_exist = environment.config is not None or bool(profile)
    values = _read_profile(file, profile, must_exist=must_exist)
    source = f"{file}, profile {profile}" if profile else str(file)
    key = _read_key(api_key_file) if api_key_file else None
    chosen_url, url_from = _first(
        (url, "--url"), (environment.url, "INTRASLICE_URL"), (values.get("url"), source)
    )
    chosen_key, key_from = _first(
        (key, f"--api-key-file {api_key_file}"),
        (environment.api_key or None, "INTRASLICE_API_KEY"),
        (values.get("api_key"), source),
    )
    if chosen_key is not None and not (chosen_key.isascii() and chosen_key.isprintable()):
        # Not quoted, because it may be a key with one wrong character.
        raise ConfigurationError(
            "an API key consists of printable ASCII characters",
            field=key_from,
            hint="copy the key again",
        )
    return Connection(
        url=(chosen_url or DEFAULT_URL).rstrip("/"),
        api_key=chosen_key,
        url_from=url_from or "default",
        api_key_from=key_from or "none",
    )


def _first(*candidates: tuple[str | None, str]) -> tuple[str | None, str]:
    return next((candidate for candidate in candidates if candidate[0] is not None), (None, ""))


def _read_key(file: Path) -> str:
    try:
        return file.read_text("utf-8").splitlines()[0].strip()
    except (OSError, UnicodeDecodeError, IndexError) as error:
        raise ConfigurationError(
            f"{file} contains no API key",
            field="--api-key-file",
            hint="write the key into the first line of the file",
        ) from error


def _read_profile(file: Path, name: str | None, *, must_exist: bool) -> dict[str, str]:
    """Return the values of a profile, or the top-level values if `name` is None."""
    try:
        content = tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError as error:
        if must_exist:
            raise ConfigurationError(
                f"config file {file} does not exist", field="INTRASLICE_CONFIG"
            ) from error
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"config file {file} cannot be read: {error}") from error
    profiles = content.pop("profiles", {})
    if name is not None and name not in profiles:
        names = ", ".join(profiles) or "none"
        raise ConfigurationError(
            f"config file {file} has no profile {name}",
            field="--profile",
            hint=f"profiles in the file: {names}",
        )
    values: dict[str, str] = content if name is None else profiles[name]
    _validate(file, values)
    return values


def _validate(file: Path, values: dict[str, Any]) -> None:
    unknown = values.keys() - _FILE_KEYS
    if unknown or not all(isinstance(value, str) for value in values.values()):
        raise ConfigurationError(
            f"config file {file}: unknown setting {', '.join(sorted(unknown))}"
            if unknown
            else f"config file {file}: url and api_key must be strings",
            hint="allowed are url and api_key, at the top level and in [profiles.NAME]",
        )
    if "api_key" in values and file.stat().st_mode & _GROUP_AND_OTHERS:
        raise ConfigurationError(
            f"config file {file} contains an API key and is readable by other users",
            hint=f"chmod 600 {file}",
        )
