"""The playground: prompts that keys may send to both models of a job."""

from __future__ import annotations

from pydantic import Field

from app.settings.base import SettingsGroup


class PlaygroundSettings(SettingsGroup):
    """The playground and its bounds; it is off unless it is switched on."""

    playground: bool = Field(
        default=False,
        description="Let keys send prompts to the models of jobs (true or false; default false)",
    )
    playground_max_prompt_bytes: int = Field(
        default=8192,
        ge=1,
        le=65_536,
        description="Longest prompt of the playground (bytes, 1 to 65536; default 8192)",
    )
    playground_max_new_tokens: int = Field(
        default=256,
        ge=1,
        le=4096,
        description="Longest answer of the playground (tokens, 1 to 4096; default 256)",
    )
    playground_max_seconds: int = Field(
        default=300,
        ge=1,
        le=3600,
        description="Run time of a prompt, loading included (seconds, 1 to 3600; default 300)",
    )
    playground_max_queued: int = Field(
        default=4,
        ge=1,
        description="Prompts of one key that have not ended (at least 1; default 4)",
    )
