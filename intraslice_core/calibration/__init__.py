"""Calibration data: text sources, generated text and windows of tokens."""

from __future__ import annotations

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
