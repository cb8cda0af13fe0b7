"""Sources of the tokens that a writing model does not sample itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Prompter(Protocol):
    """Source of the tokens of one sequence that the model does not sample."""

    def opening(self) -> Sequence[int]:
        """Return the first tokens of the sequence, at least one."""

    def after(self, token: int) -> Sequence[int]:
        """Return the tokens that must follow a sampled one, often none."""


class FreeText:
    """Prompter that gives only the first token."""

    def __init__(self, first: int) -> None:
        self._first = first

    def opening(self) -> Sequence[int]:
        """Return the first token."""
        return (self._first,)

    def after(self, token: int) -> Sequence[int]:
        """Return nothing: after an end of text the model starts the next document itself."""
        del token
        return ()


class AfterPrefix:
    """Prompter whose sequence begins with the tokenizer's prefix and contains it nowhere else.

    A text of several documents or conversations is thereby like the windows of any other text.
    """

    def __init__(self, prompter: Prompter, prefix: Sequence[int]) -> None:
        self._prompter, self._prefix = prompter, prefix

    def opening(self) -> Sequence[int]:
        """Return the prefix and the first tokens."""
        return (*self._prefix, *self._without(self._prompter.opening()))

    def after(self, token: int) -> Sequence[int]:
        """Return the tokens that must follow, without the prefix."""
        return self._without(self._prompter.after(token))

    def _without(self, tokens: Sequence[int]) -> Sequence[int]:
        return [token for token in tokens if token not in self._prefix]
