"""Access check for files of this machine that a job names."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from app.domain.errors import NotFoundError, ServiceError

_MOST_FILES = 10_000


class PathRejectedError(ServiceError):
    """The path is not below a directory of INTRASLICE_MODEL_ROOTS or INTRASLICE_DATA_ROOTS."""

    code = "path_not_allowed"


def resolve_below(path: str, roots: tuple[Path, ...]) -> Path:
    """Return the real path of `path`, links followed; a directory's entries are checked too.

    Raises:
        PathRejectedError: if the place, or what a link in the directory leads to, is elsewhere.
        NotFoundError: if nothing is there.
    """
    real_roots = [root.expanduser().resolve() for root in roots]
    if not Path(path).is_absolute():
        raise PathRejectedError("The path is not absolute")
    try:
        real = _resolved_below(Path(path), real_roots)
        if not real.exists():
            raise NotFoundError(f"{path} does not exist")
        if real.is_dir():
            _check_entries(real, real_roots)
    except (OSError, RuntimeError, ValueError) as error:  # link loops, names too long
        raise PathRejectedError("The path cannot be resolved") from error
    return real


def _check_entries(directory: Path, real_roots: list[Path]) -> None:
    entries = list(islice(directory.rglob("*"), _MOST_FILES + 1))
    if len(entries) > _MOST_FILES:
        raise PathRejectedError(f"The directory holds more than {_MOST_FILES} files")
    for entry in entries:
        if entry.is_symlink():
            _resolved_below(entry, real_roots)


def _resolved_below(path: Path, real_roots: list[Path]) -> Path:
    real = path.resolve()
    if not any(real.is_relative_to(root) for root in real_roots):
        raise PathRejectedError
    return real
