"""JSON as PostgreSQL stores it.

`jsonb` holds every text but NUL. Requests with NUL are rejected; texts of the engine may contain
it, because a model may generate it.
"""

from __future__ import annotations

import json
import re
from typing import Any

_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")
"""An escaped NUL: a backslash before it that is escaped itself does not count."""


def to_storable_json(value: Any) -> str:
    """Return a value as JSON, with the replacement character U+FFFD in place of NUL."""
    return _NUL.sub(r"\1\\ufffd", json.dumps(value))
