"""Calibration data: text sources, generated text and windows of tokens.

The names are imported at their first use (PEP 562), so that the readers of records can be used
where torch is not installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intraslice_core.calibration.generated_text import (
        WrittenText,
        generate_texts,
        generate_tokens,
    )
    from intraslice_core.calibration.python_text import Part
    from intraslice_core.calibration.sources import VALID_SOURCES, Reading, interleave, load_text
    from intraslice_core.calibration.tokens import (
        ReadTokens,
        TextToWrite,
        calibration_hash,
        calibration_tokens,
        sequence_groups,
        sequence_sources,
        source_tokens,
        tokenise_documents,
        write_with_main,
    )
    from intraslice_core.calibration.window_stream import stream_windows
    from intraslice_core.calibration.windows import text_prefix
    from intraslice_core.calibration.writing_pace import WritingListener, WritingProgress

__all__ = [
    "VALID_SOURCES",
    "Part",
    "ReadTokens",
    "Reading",
    "TextToWrite",
    "WritingListener",
    "WritingProgress",
    "WrittenText",
    "calibration_hash",
    "calibration_tokens",
    "generate_texts",
    "generate_tokens",
    "interleave",
    "load_text",
    "sequence_groups",
    "sequence_sources",
    "source_tokens",
    "stream_windows",
    "text_prefix",
    "tokenise_documents",
    "write_with_main",
]

_MODULES = {
    "generated_text": ("WrittenText", "generate_texts", "generate_tokens"),
    "python_text": ("Part",),
    "sources": ("VALID_SOURCES", "Reading", "interleave", "load_text"),
    "tokens": (
        *("ReadTokens", "TextToWrite", "calibration_hash", "calibration_tokens"),
        *("sequence_groups", "sequence_sources", "source_tokens", "tokenise_documents"),
        "write_with_main",
    ),
    "window_stream": ("stream_windows",),
    "windows": ("text_prefix",),
    "writing_pace": ("WritingListener", "WritingProgress"),
}
_ORIGINS = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _ORIGINS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_ORIGINS[name]}"), name)
    globals()[name] = value
    return value
