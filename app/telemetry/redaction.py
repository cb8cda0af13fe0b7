"""Redaction of texts that others than the operators of this machine read.

Secrets become `[secret]`. Of an absolute path only the last name is left, and a directory of this
machine that is known becomes `…`: neither its layout nor the name of its user leaves it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

HIDDEN = "[secret]"
_OMITTED = "…"
_SECRETS: tuple[tuple[re.Pattern[str], str], ...] = (
    # Keys of this service, of its webhooks and of the model hub, and of object stores.
    (re.compile(r"\b(?:isk|whsec|hf)_[\w+/=-]{6,}|\bAKIA[0-9A-Z]{12,}"), HIDDEN),
    (
        re.compile(r"(?i)\b(bearer|authorization\W{1,4}basic)\s+[\w.~+/=-]{6,}"),
        rf"\1 {HIDDEN}",
    ),
    (re.compile(r"(?<=://)[^\s/@\"'<>]+@"), f"{HIDDEN}@"),
    (
        re.compile(
            r"(?i)([?&](?:x-amz-[a-z-]+|signature|sig|token|key|api_key|password)=)[^&\s\"'<>]+"
        ),
        rf"\1{HIDDEN}",
    ),
    (
        re.compile(r"(?i)\b(password|passwd|secret|api[_-]?key)(\s*[=:]\s*)[^\s\"',;&]+"),
        rf"\1\2{HIDDEN}",
    ),
)
"""Forms of secrets that this process need not know, each with its replacement."""
_BEFORE = r"(?<![\w./…<])"
"""What stands before the first slash of an absolute path: no name, so that `org/name` is none."""
_FILE_URL = re.compile(r"(?<=:)//(?=/)")
_QUOTED = re.compile(r"([\"'`])(/[^\"'`\n]*)\1")
_PATH = re.compile(_BEFORE + r"(?:~[\w.-]*)?(?:(?<!:)/+|/(?!/))[^\s\"'`<>|*?:;,()\[\]{}…]+")


class Redaction:
    """Removal of secrets and local paths from texts.

    Args:
        secrets: texts that are always removed.
        directories: directories of this machine, whose names may hold any characters.
    """

    def __init__(self, secrets: Iterable[str] = (), directories: Iterable[Path] = ()) -> None:
        # The longest first: one may be the beginning of another.
        self._secrets = sorted({secret for secret in secrets if secret}, key=len, reverse=True)
        names = {str(directory) for directory in directories if len(directory.parts) > 1}
        alternatives = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
        self._directories = re.compile(rf"{_BEFORE}(?:{alternatives})(?![\w.-])") if names else None

    def __call__(self, text: str) -> str:
        """Return the text without secrets and without directories of this machine."""
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        for pattern, replacement in _SECRETS:
            text = pattern.sub(replacement, text)
        return self._without_paths(text)

    def _without_paths(self, text: str) -> str:
        text = _FILE_URL.sub("", text)
        if self._directories is not None:
            text = self._directories.sub(_OMITTED, text)
        text = _QUOTED.sub(lambda match: f"{match[1]}{_last_name(match[2])}{match[1]}", text)
        return _PATH.sub(lambda match: _last_name(match[0]), text)


def _last_name(path: str) -> str:
    """Return the last name of an absolute path, without the directories above it."""
    return f"{_OMITTED}/{path.rstrip('/').rpartition('/')[2]}"
