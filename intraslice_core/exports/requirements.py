"""What a model's attention must be for runtimes with one rotary table and no window."""

from __future__ import annotations

from intraslice_core.config import CompressionSettings
from intraslice_core.errors import ConfigurationError
from intraslice_core.families.canonical import CanonicalSettings, rope_of

ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Those whose frequencies do not depend on the length of the text."""


def require_plain_attention(canonical: CanonicalSettings, settings: CompressionSettings) -> None:
    """Refuse what the files of targets `adaptive` and `stock` have no words for.

    Raises:
        ConfigurationError: naming the rotary type, or the window.
    """
    for layer_type in sorted(set(canonical["layer_types"])):
        rope = rope_of(canonical, layer_type)
        kind = rope.get("rope_type", "default")
        one_table = kind == "longrope" and rope.get("short_factor") == rope.get("long_factor")
        if kind not in ROPE_TYPES and not one_table:
            raise ConfigurationError(
                f"only target research is built for rope_type {kind}",
                field="compression.target",
                hint=f"the others are for {', '.join(ROPE_TYPES)}",
            )
    if canonical["sliding_window"] is None:
        return
    if settings.target == "adaptive":
        raise ConfigurationError(
            "target adaptive has no sliding window",
            field="compression.target",
            hint="use target stock or research",
        )
    if settings.gguf_formats:
        raise ConfigurationError(
            "the GGUF files have no sliding window",
            field="compression.exports",
            hint="leave the gguf exports out",
        )
