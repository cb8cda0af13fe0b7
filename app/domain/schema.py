"""Revisions of the database schema, and which revisions of the code work with them.

Revisions are consecutive numbers of four digits ("0014"). An earlier version of the code can
therefore compare its own revision with one that it does not know. The code's revision is that of
its newest migration.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_REVISION = re.compile(r"\d{4}")


@dataclass(frozen=True, kw_only=True)
class Schema:
    """State of a database's schema, as the database itself reports it."""

    revision: str | None
    """None in a database that was never migrated."""
    oldest_code: str | None = None
    """Oldest revision of the code that works with the schema; None before revision 0014."""

    def is_newer_than(self, code: str) -> bool:
        return self.revision is not None and self.revision > code

    def problem(self, code: str) -> str | None:
        """Return why code of this revision cannot use the schema; None if it can."""
        if self.revision is None:
            return f"The database has no schema, {code} is needed: run intraslice migrate"
        if _REVISION.fullmatch(self.revision) is None:
            return (
                f"The schema is at {self.revision!r}, which is not a revision of IntraSlice:"
                " check INTRASLICE_DATABASE_URL"
            )
        if self.revision < code:
            return f"The schema is at {self.revision}, {code} is needed: run intraslice migrate"
        if self.revision == code or self._includes(code):
            return None
        oldest = self.oldest_code or self.revision
        return (
            f"The schema is at {self.revision} and needs a version of IntraSlice at {oldest} or"
            f" later, this one is at {code}: start a newer version"
        )

    def _includes(self, code: str) -> bool:
        return self.oldest_code is not None and self.oldest_code <= code
