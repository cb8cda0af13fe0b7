"""Writes `app/client/synchronous` from `app/client/asynchronous`.

    python tools/make_synchronous_client.py

The two are one program: `async` and `await` go, and names lose their mark. A test makes it again
and compares.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

CLIENT = Path(__file__).resolve().parents[1] / "app" / "client"
_NAMES = {
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "aclose": "close",
    "aconnect_sse": "connect_sse",
    "aiter_bytes": "iter_bytes",
    "aiter_sse": "iter_sse",
    "aread": "read",
    "asynchronous": "synchronous",
    "asyncio": "time",
}
_RULES = (
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\bAwaitable\[(.*)\]\]", r"\1]"),
    (r"Awaitable, ", ""),
    (r"\bAsync([A-Z]\w*)", r"\1"),
    *((rf"\b{name}\b", other) for name, other in _NAMES.items()),
)
_ABOUT = '"""Made of `asynchronous` by tools/make_synchronous_client.py; not edited."""\n'
_FUTURE = "from __future__ import annotations\n"
_FIXES = "I,F401,UP028"


def synchronous(text: str) -> str:
    """A module's text without asynchrony."""
    for pattern, replacement in _RULES:
        text = re.sub(pattern, replacement, text)
    text = re.sub(r"(?m)^import time\n", "", text)
    return text.replace(_FUTURE, f"{_FUTURE}\nimport time\n") if "time." in text else text


def made(place: Path) -> None:
    """All modules, formatted, into a directory."""
    place.mkdir(exist_ok=True)
    for file in sorted((CLIENT / "asynchronous").glob("*.py")):
        text = file.read_text("utf-8")
        text = _ABOUT if file.name == "__init__.py" else synchronous(text)
        (place / file.name).write_text(text, encoding="utf-8")
    ruff = [sys.executable, "-m", "ruff"]
    fix = ["check", "--quiet", "--fix", "--unsafe-fixes", "--select", _FIXES]
    for command in (fix, ["format", "--quiet"]):
        subprocess.run([*ruff, *command, str(place)], check=True)


if __name__ == "__main__":
    made(CLIENT / "synchronous")
