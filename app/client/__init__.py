"""Deprecated alias of `intraslice_client`; it will be removed after 0.1."""

from __future__ import annotations

import warnings

import intraslice_client
from intraslice_client import *  # noqa: F403  (every public name, by its `__all__`)

UploadRefusedError = intraslice_client.UploadRejectedError
"""The former name of `UploadRejectedError`."""

__all__ = [*intraslice_client.__all__, "UploadRefusedError"]

warnings.warn(
    "app.client is deprecated: import from intraslice_client instead",
    DeprecationWarning,
    stacklevel=2,
)
