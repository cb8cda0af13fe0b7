"""GGUF files for llama.cpp and all that is built on it, from a checkpoint with Llama's names."""

from intraslice_core.exports.gguf_file.layout import GgufLayout, deci_layout, llama_layout
from intraslice_core.exports.gguf_file.vocabulary import GgufVocabulary, read_vocabulary
from intraslice_core.exports.gguf_file.writer import write_gguf

__all__ = [
    "GgufLayout",
    "GgufVocabulary",
    "deci_layout",
    "llama_layout",
    "read_vocabulary",
    "write_gguf",
]
