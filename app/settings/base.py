"""Names of settings in the environment, and behaviour that all groups of settings share."""

from __future__ import annotations

from pydantic import AliasChoices
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "INTRASLICE_"
RENAMED: dict[str, str] = {}
"""Environment names of earlier versions, each with its present name."""


def renamed(name: str, before: str) -> AliasChoices:
    """Accept a setting's earlier environment name as well; the present name wins."""
    RENAMED[PREFIX + before] = PREFIX + name
    return AliasChoices(PREFIX + name, PREFIX + before)


class SettingsGroup(BaseSettings):
    """Settings from `INTRASLICE_*` variables."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="ignore",
        protected_namespaces=(),
        populate_by_name=True,
        hide_input_in_errors=True,  # the input of a failed combination contains every secret
    )
