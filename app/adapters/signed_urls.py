"""Signed links, which grant access until they expire."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import time
from pathlib import Path
from urllib.parse import quote, urlencode

from app.domain.errors import LinkRejectedError

DOWNLOADS = "/v1/downloads"
ARCHIVES = "/v1/archives"
REPORTS = "/v1/reports"
UPLOADS = "/v1/uploads"
_KEY_FILE = "signing.key"


_SIGNED = (f"{DOWNLOADS}/", f"{ARCHIVES}/", f"{REPORTS}/")
_PART = re.compile(rf"{UPLOADS}/[^/]+/parts/[^/]+/[^/]+")


def is_signed_path(path: str) -> bool:
    """Return whether links to the path can be signed."""
    return path.startswith(_SIGNED) or is_part_path(path)


def is_part_path(path: str) -> bool:
    """Return whether the path is that of an upload's part."""
    return _PART.fullmatch(path) is not None


class UrlSigner:
    """Signer of links by HMAC-SHA256 over job, name and expiry.

    Args:
        key: key that signs.
        previous: second key whose links are valid, too, while the signing key is being replaced.
    """

    def __init__(self, key: str, previous: str | None = None) -> None:
        self._key = key.encode()
        self._accepted = (self._key,) if previous is None else (self._key, previous.encode())

    def sign(self, job_id: str, name: str, seconds: int) -> str:
        """Return a path with query that is valid for `seconds`."""
        return f"{DOWNLOADS}/{job_id}/{quote(name)}?{self._query(job_id, name, seconds)}"

    def verify(self, job_id: str, name: str, expires: int, signature: str) -> None:
        """Check a link.

        Raises:
            LinkRejectedError: if it is forged or too old.
        """
        # Every key is compared, so that the time does not tell which one signed.
        matches = [
            hmac.compare_digest(_signature(key, job_id, name, expires).encode(), signature.encode())
            for key in self._accepted
        ]
        if not any(matches):
            raise LinkRejectedError
        if expires < time.time():
            raise LinkRejectedError("The link has expired; ask for a new one")

    def sign_archive(self, job_id: str, seconds: int) -> str:
        """Return a link to the archive of a job's files."""
        return f"{ARCHIVES}/{job_id}.zip?{self._query(*_archive_names(job_id), seconds)}"

    def verify_archive(self, job_id: str, expires: int, signature: str) -> None:
        """Check such a link.

        Raises:
            LinkRejectedError: if it is forged or too old.
        """
        self.verify(*_archive_names(job_id), expires, signature)

    def sign_report(self, job_id: str, seconds: int) -> str:
        """Return a link to the report page of a job."""
        return f"{REPORTS}/{job_id}?{self._query(*_report_names(job_id), seconds)}"

    def verify_report(self, job_id: str, expires: int, signature: str) -> None:
        """Check such a link.

        Raises:
            LinkRejectedError: if it is forged or too old.
        """
        self.verify(*_report_names(job_id), expires, signature)

    def sign_part(self, upload_id: str, file: int, number: int, seconds: int) -> str:
        """Return a link for sending a part of an upload."""
        query = self._query(*_part_names(upload_id, file, number), seconds)
        return f"{UPLOADS}/{upload_id}/parts/{file}/{number}?{query}"

    def verify_part(
        self, upload_id: str, file: int, number: int, expires: int, signature: str
    ) -> None:
        """Check such a link.

        Raises:
            LinkRejectedError: if it is forged or too old.
        """
        self.verify(*_part_names(upload_id, file, number), expires, signature)

    def _query(self, job_id: str, name: str, seconds: int) -> str:
        expires = int(time.time()) + seconds
        signature = _signature(self._key, job_id, name, expires)
        return urlencode({"expires": expires, "signature": signature})


def _signature(key: bytes, job_id: str, name: str, expires: int) -> str:
    # No part can hold a newline unescaped, so no two links sign the same text.
    text = "\n".join((quote(job_id, safe=""), quote(name, safe=""), str(expires)))
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _archive_names(job_id: str) -> tuple[str, str]:
    # The slash keeps them apart from every job's.
    return f"archives/{job_id}", "zip"


def _report_names(job_id: str) -> tuple[str, str]:
    # The slash keeps them apart from every job's.
    return f"reports/{job_id}", "html"


def _part_names(upload_id: str, file: int, number: int) -> tuple[str, str]:
    # The slash keeps them apart from every job's.
    return f"uploads/{upload_id}", f"{file}/{number}"


def kept_signing_key(data_dir: Path) -> str:
    """Return the key of this data directory, created at the first call with mode 0600."""
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = data_dir / _KEY_FILE
    if not path.exists():
        fresh = data_dir / f".{_KEY_FILE}.{secrets.token_hex(8)}"
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(48))
        # A link never overwrites: if processes start together, the first one's key stays.
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(fresh)
        fresh.unlink()
    return path.read_text(encoding="ascii")
