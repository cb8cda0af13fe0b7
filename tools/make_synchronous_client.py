"""Generate `intraslice_client/_sync` from `intraslice_client/_async`.

    python tools/make_synchronous_client.py

`async` and `await` are removed and names lose their `Async` prefix. A test generates the package
again and compares.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

CLIENT = Path(__file__).resolve().parents[1] / "intraslice_client"
_NAMES = {
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "aclose": "close",
    "aconnect_sse": "connect_sse",
    "aiter_bytes": "iter_bytes",
    "aiter_sse": "iter_sse",
    "aread": "read",
    "_async": "_sync",
    "asyncio": "time",
}
_RULES = (
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\bAwaitable\[(.*)\]\]", r"\1]"),
    (r"Awaitable, ", ""),
    (r"\bAsync([A-Z]\w*)", r"\1"),
    *((rf"\b{name}\b", replacement) for name, replacement in _NAMES.items()),
)
_DOCSTRING = '"""Generated from `_async` by tools/make_synchronous_client.py; do not edit."""\n'
_FUTURE = "from __future__ import annotations\n"
_FIXES = "I,F401,UP028"


def synchronous(text: str) -> str:
    """Return the source of a module in its synchronous form."""
    for pattern, replacement in _RULES:
        text = re.sub(pattern, replacement, text)
    text = re.sub(r"(?m)^import time\n", "", text)
    return text.replace(_FUTURE, f"{_FUTURE}\nimport time\n") if "time." in text else text


def generate(directory: Path) -> None:
    """Write all modules, formatted, into a directory."""
    directory.mkdir(exist_ok=True)
    for file in sorted((CLIENT / "_async").glob("*.py")):
        text = file.read_text("utf-8")
        text = _DOCSTRING if file.name == "__init__.py" else synchronous(text)
        (directory / file.name).write_text(text, encoding="utf-8")
    ruff = [sys.executable, "-m", "ruff"]
    check = ["check", "--quiet", "--fix", "--unsafe-fixes", "--select", _FIXES]
    for command in (check, ["format", "--quiet"]):
        subprocess.run([*ruff, *command, str(directory)], check=True)


if __name__ == "__main__":
    generate(CLIENT / "_sync")
