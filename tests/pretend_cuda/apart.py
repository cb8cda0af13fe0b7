"""Sessions of pytest that run tests with pretended devices and no others."""

from __future__ import annotations

from pathlib import Path

import pytest

DIRECTORIES = tuple(Path(__file__).parents[1] / name for name in ("on_cuda", "pretend_cuda"))
"""Directories of these tests."""


def runs_apart(config: pytest.Config) -> bool:
    """Return whether a session runs these tests alone.

    In another session, backward passes of other tests have fixed the devices that autograd has.
    """
    start = config.invocation_params.dir
    paths = [Path(start, argument.partition("::")[0]).resolve() for argument in config.args]
    return all(any(path.is_relative_to(place) for place in DIRECTORIES) for path in paths)
