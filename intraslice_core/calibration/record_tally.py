"""Count of a source's records, and the tolerance for those that cannot be used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from intraslice_core.errors import CalibrationSourceError, WebTextError
from intraslice_core.text_sources import WEB

RECORDS_PER_BAD_ONE = 1000
"""Records that are read for each one that may be skipped because it cannot be used."""

MOST_EARLY = 10
"""Bad records above which reading ends at once if the tolerance is exceeded."""
_QUOTED = 3
"""Bad records that messages quote."""

FIELD_HINT = (
    "records need `text`, `content`, `messages`, `conversations`, `prompt` and `completion`, "
    "`instruction` and `output`, or `question` and `answer`; name any other field with "
    "`text_field` (--text-field)"
)


@dataclass(kw_only=True)
class RecordTally:
    """Records of one source: how many were used, and the first that could not be."""

    source: str
    used: int = 0
    bad: int = 0
    plain_chats: int = 0
    """Chats that the model's chat template rejects."""
    _bad_quotes: list[str] = field(default_factory=list)
    _template_error: str = ""

    @property
    def tolerable(self) -> bool:
        """True if at most one record in `RECORDS_PER_BAD_ONE` is bad."""
        return self.bad * RECORDS_PER_BAD_ONE <= self.used + self.bad

    def skip(self, place: str, reason: str) -> None:
        """Count a record that cannot be used.

        Raises:
            CalibrationSourceError: if there are too many of them.
        """
        self.bad += 1
        if len(self._bad_quotes) < _QUOTED:
            self._bad_quotes.append(f"{place}: {reason}")
        if self.bad > MOST_EARLY and not self.tolerable:
            raise self._error()

    def fall_back(self, place: str, reason: str) -> None:
        """Count a chat that is read as plain text, because the template rejects it."""
        self.plain_chats += 1
        self._template_error = self._template_error or f"{place}: {reason}"

    def settle(self, rest: Iterable[object]) -> None:
        """Read on until bad records are within the tolerance, or raise at the end of the text.

        Raises:
            CalibrationSourceError: with the first bad records, if there are too many of them.
        """
        if self.tolerable:
            return
        for _ in rest:
            if self.tolerable:
                return
        if not self.tolerable:
            raise self._error()

    def warnings(self) -> list[str]:
        """Return the warnings for the report."""
        warnings = []
        if self.bad:
            warnings.append(
                f"{self.source}: {self.bad} of {self.used + self.bad} records were skipped "
                f"({'; '.join(self._bad_quotes)})"
            )
        if self.plain_chats:
            warnings.append(
                f"{self.source}: {self.plain_chats} of {self.used} records were read as plain "
                f"text, because the model's chat template rejects them ({self._template_error})"
            )
        return warnings

    def _error(self) -> CalibrationSourceError:
        # Web text that changed is as good as none.
        error = WebTextError if self.source == WEB else CalibrationSourceError
        return error(
            f"{self.bad} of the first {self.used + self.bad} records of {self.source} cannot be "
            f"used, which is more than one in {RECORDS_PER_BAD_ONE}: {'; '.join(self._bad_quotes)}",
            hint=FIELD_HINT,
        )
