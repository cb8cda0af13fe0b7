"""References to models and texts without the directories of the machine that wrote a report."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from intraslice_core.text_sources import HUB, WEB

if TYPE_CHECKING:
    from intraslice_core.reports.schema import CompressionReport

_PACKAGE = "package:"
_TEXT_NAMES = {
    "pydoc": "Python docs",
    "pycode": "Python code",
    "chat": "Chat (generated)",
    "self": "Free text (generated)",
    WEB: "Web pages (C4)",
}
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40,}")
_ABSOLUTE_PATH = re.compile(r"(?<![\w:/.])(?:~|[A-Za-z]:)?(?:[/\\][\w.+@-]+){2,}", re.ASCII)


def public_reference(reference: str) -> str:
    """Return a reference as it may be published: hub and package names whole, paths by their end.

    The name of a model's directory in the hub's cache is its commit; that of the repository above
    it is used instead.
    """
    if reference.startswith((HUB, _PACKAGE)):
        return reference
    parts = [part for part in re.split(r"[/\\]+", reference) if part not in ("", ".", "..")]
    if len(parts) >= 3 and _COMMIT.fullmatch(parts[-1]) and parts[-2] == "snapshots":
        return parts[-3].removeprefix("models--").replace("--", "/")
    return parts[-1] if parts else reference


def recorded_reference(reference: str) -> str:
    """Return a model's reference as reports record it, without the directories of the machine.

    A snapshot in the hub's cache is recorded as its repository and commit, another path by its end.
    """
    name = public_reference(reference)
    parts = re.split(r"[/\\]+", reference.rstrip("/\\"))
    is_snapshot = "/" in name and not reference.startswith((HUB, _PACKAGE))
    return f"{HUB}{name}@{parts[-1]}" if is_snapshot else name


def text_name(source: str) -> str:
    """Return what readers call a text: a name for those that are everywhere, else its reference."""
    return _TEXT_NAMES.get(source) or public_reference(source).removeprefix(HUB)


def hub_repository(reference: str) -> str | None:
    """Return the hub repository of a `hub:` reference or of a snapshot in the hub's cache."""
    name = reference.removeprefix(HUB).partition("@")[0]
    if not reference.startswith(HUB):
        name = public_reference(reference)
    return name if _REPOSITORY.fullmatch(name) else None


def model_name(reference: str) -> str:
    """Return the name of a model: the last part of its reference, without a revision."""
    name = public_reference(reference).partition("@")[0]
    return PurePath(name.rpartition(":")[2]).name or name


def without_paths(text: str, paths: Iterable[str]) -> str:
    """Return a sentence in which paths are replaced by their last part.

    Args:
        text: sentence, such as a warning.
        paths: references that may be in it, also relative ones; absolute paths are recognised.
    """
    for path in sorted(set(paths), key=len, reverse=True):
        if "/" in path or "\\" in path:
            text = text.replace(path, public_reference(path))
    return _ABSOLUTE_PATH.sub(lambda match: public_reference(match[0]), text)


def local_references(report: CompressionReport) -> tuple[str, ...]:
    """Return the references of a report that may be paths: the model and its texts."""
    texts = () if report.evaluation is None else report.evaluation.texts
    return (report.model, *report.config.seen_sources, *texts)


def without_local_paths(value: Any, references: Iterable[str]) -> Any:
    """Return JSON values in which absolute paths among the references are named by their end.

    Args:
        value: a report; the paths are replaced in keys, fields and sentences.
        references: texts and models, of which those that are no paths stay.
    """
    paths = sorted({path for path in references if PurePath(path).is_absolute()}, key=len)
    return _replaced(value, {path: public_reference(path) for path in reversed(paths)})


def _replaced(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {_replaced(key, names): _replaced(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, names) for item in value]
    if isinstance(value, str):
        for path, name in names.items():
            value = value.replace(path, name)
    return value


def public_settings(value: Any, references: Iterable[str]) -> Any:
    """Return settings as JSON values with public references in place of paths.

    Args:
        value: settings, or a part of them.
        references: texts and models that may be relative paths.
    """
    names = frozenset(references)
    if isinstance(value, dict):
        return {name: public_settings(item, names) for name, item in value.items()}
    if isinstance(value, list):
        return [public_settings(item, names) for item in value]
    if isinstance(value, str) and (value in names or PurePath(value).is_absolute()):
        return public_reference(value)
    return value
