"""Listing of the directories and files of this machine that jobs may name."""

from __future__ import annotations

from app.adapters.local_paths import DirectoryBrowser, PathRejectedError
from app.domain.errors import FieldProblem, InvalidRequestError
from app.domain.resource import encode_cursor
from app.domain.server_path import PathList, PathUse
from app.settings import Settings


def list_paths(
    settings: Settings, use: PathUse, path: str | None, *, after: str | None, limit: int
) -> PathList:
    """Return the allowed directories, or one page of a directory below them.

    Args:
        settings: the roots, which are read on this machine.
        use: what the paths are for.
        path: a directory; None lists the roots, all on one page.
        after: last name of the previous page.
        limit: names per page, of which those that no job can use are left out.

    Raises:
        InvalidRequestError: if the directory is not below a root.
        NotFoundError: if there is no such directory.
    """
    roots = settings.model_roots if use is PathUse.MODEL else settings.data_roots
    browser = DirectoryBrowser(roots, use)
    if path is None:
        data = tuple(browser.list_roots())
        return PathList(path=None, parent=None, data=data, has_more=False, next_cursor=None)
    try:
        directory = browser.open(path)
        names, has_more = browser.page(directory, after, limit)
    except PathRejectedError as error:
        problem = FieldProblem(pointer="query:path", code=error.code, message=error.message)
        raise InvalidRequestError("The directory cannot be listed", fields=(problem,)) from error
    parent = browser.parent(directory)
    return PathList(
        path=str(directory),
        parent=None if parent is None else str(parent),
        data=tuple(browser.entries(directory, names)),
        has_more=has_more,
        next_cursor=encode_cursor(names[-1]) if has_more else None,
    )
