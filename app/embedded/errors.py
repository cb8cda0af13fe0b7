"""What can go wrong with servers that we start ourselves.

EmbeddedError
├── DirectoryInUseError     another live server or `intraslice up` holds the directory
├── ServerStartError        a server ended, or did not answer, while it was being started
└── GroupFailedError        a member of the supervised group kept crashing
"""

from __future__ import annotations


class EmbeddedError(Exception):
    """An embedded server cannot do what it was asked to."""


class DirectoryInUseError(EmbeddedError):
    """Another live process holds the directory."""


class ServerStartError(EmbeddedError):
    """A server ended, or did not answer, while it was being started."""


class GroupFailedError(EmbeddedError):
    """A member of the supervised group kept crashing."""
