"""Cutting of documents into pieces."""

from __future__ import annotations

import pytest

from intraslice_core.calibration.pieces import (
    LONGEST_PIECE,
    PIECE_CHARACTERS,
    Piece,
    cut_chunks,
    cut_document,
)


def texts(document: str) -> list[str]:
    return [piece.text for piece in cut_document(document)]


@pytest.mark.parametrize(
    "document",
    [
        "".join(f"line {number}\n" for number in range(20_000)),
        "".join(f"line {number}\r\n" for number in range(20_000)),
        "".join(f"line {number}\u2028" for number in range(20_000)),
        "no line end " * 3_000,
    ],
)
def test_pieces_end_at_the_first_line_end_of_their_length(document):
    expected, piece = [], ""
    for line in document.splitlines(keepends=True):
        piece += line
        if len(piece) >= PIECE_CHARACTERS:
            expected.append(piece)
            piece = ""
    assert texts(document) == [*expected, *([piece] if piece else [])]


def test_long_line_is_cut_before_whitespace():
    document = "".join(f"word{number}  " for number in range(60_000))
    pieces = texts(document)
    assert "".join(pieces) == document
    assert len(pieces) > 8
    assert all(len(piece) <= LONGEST_PIECE for piece in pieces)
    assert all(piece.startswith("  word") for piece in pieces[1:])
    assert not any(piece[-1].isspace() for piece in pieces[:-1])


def test_long_word_is_cut_between_characters():
    document = "\U0001f600é" * LONGEST_PIECE
    pieces = texts(document)
    assert "".join(pieces) == document
    assert [len(piece) for piece in pieces] == [LONGEST_PIECE, LONGEST_PIECE]


def test_pieces_do_not_depend_on_the_chunks():
    document = "".join(f"line {number}\r\n" * (number % 7) for number in range(20_000))
    for size in (1000, 4097, 10**6):
        chunks = [document[start : start + size] for start in range(0, len(document), size)]
        assert [piece.text for piece in cut_chunks(chunks)] == texts(document)


def test_special_tokens_surround_a_document_of_several_pieces():
    pieces = list(cut_document("x\n" * PIECE_CHARACTERS))
    assert [(piece.begins, piece.ends) for piece in pieces] == [(True, False), (False, True)]
    assert list(cut_document("a")) == [Piece("a")]
    assert list(cut_document("a", special_tokens=False)) == [Piece("a", begins=False, ends=False)]


@pytest.mark.parametrize("special_tokens", [True, False])
def test_blank_documents_have_no_pieces(special_tokens):
    for blank in ("", " \n ", "\n" * (3 * PIECE_CHARACTERS)):
        assert list(cut_document(blank, special_tokens=special_tokens)) == []
