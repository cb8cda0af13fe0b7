"""Pieces of documents: bounded stretches of text that are tokenised one by one.

A document is cut at line ends, so that its pieces have the tokens of the whole document. A line
that is longer than a piece may be is cut before whitespace, and within a word only if the word
itself is longer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

PIECE_CHARACTERS = 32_768
"""Length from which a piece ends at the next line end."""

LONGEST_PIECE = 2 * PIECE_CHARACTERS
"""Length at which a piece ends even without a line end."""

# The line ends of `str.splitlines`.
_LINE_END = re.compile("\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a document's text."""

    text: str
    begins: bool = True
    """Add the tokenizer's special tokens that go before a text."""
    ends: bool = True
    """Add the tokenizer's special tokens that go after a text."""


def cut_document(document: str, *, special_tokens: bool = True) -> Iterator[Piece]:
    """Yield the pieces of a document; without special tokens if its text contains them."""
    chunks = (
        document[start : start + LONGEST_PIECE] for start in range(0, len(document), LONGEST_PIECE)
    )
    return cut_chunks(chunks, special_tokens=special_tokens)


def cut_documents(documents: Iterable[str]) -> Iterator[Piece]:
    """Yield the pieces of all documents."""
    for document in documents:
        yield from cut_document(document)


def cut_chunks(chunks: Iterable[str], *, special_tokens: bool = True) -> Iterator[Piece]:
    """Yield the pieces of a document that is read in chunks; blank leading pieces are dropped."""
    previous: str | None = None
    begins = special_tokens
    for text in _cut(chunks):
        if previous is not None:
            yield Piece(previous, begins=begins, ends=False)
            begins = False
        elif not text.strip():
            continue
        previous = text
    if previous is not None:
        yield Piece(previous, begins=begins, ends=special_tokens)


def _cut(chunks: Iterable[str]) -> Iterator[str]:
    rest = ""
    for chunk in chunks:
        rest += chunk
        # One more character shows whether a carriage return ends a line or a newline follows.
        while len(rest) > LONGEST_PIECE + 1:
            end = _piece_end(rest)
            yield rest[:end]
            rest = rest[end:]
    while rest:
        end = _piece_end(rest) if len(rest) > PIECE_CHARACTERS else len(rest)
        yield rest[:end]
        rest = rest[end:]


def _piece_end(text: str) -> int:
    """Return the position at which the first piece of a text ends."""
    line_end = _LINE_END.search(text, PIECE_CHARACTERS - 1, LONGEST_PIECE + 1)
    if line_end is not None:
        return line_end.end()
    if len(text) <= LONGEST_PIECE:
        return len(text)
    # Whitespace belongs to the word after it in most vocabularies.
    words = text[:LONGEST_PIECE].rsplit(None, 1)
    return len(words[0]) if len(words) == 2 else LONGEST_PIECE
