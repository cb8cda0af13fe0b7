"""The artifact store: a directory or a bucket, through obstore."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import HTTPStore, LocalStore, MemoryStore, ObjectStore, from_url

from app.domain.errors import ArtifactNotFoundError, StoreUnavailableError
from app.telemetry.metrics import STORE_ERRORS

if TYPE_CHECKING:
    from obstore import Attributes

_CHUNK_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """An object in the store; `changed_at` is by the store's clock."""

    key: str
    bytes: int
    changed_at: datetime


class ArtifactStore:
    """A store of objects that are written once, under keys that are slash-separated paths."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._directory = Path(unquote(parts.path)) if parts.scheme == "file" else None
        self.place = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        """URL of the store without credentials, for messages."""
        self._store: ObjectStore = (
            LocalStore(prefix=self._directory, mkdir=True, automatic_cleanup=True)
            if self._directory is not None
            else from_url(url)
        )

    def put_file(self, key: str, source: Path, media_type: str | None = None) -> None:
        """Upload in parts, so that memory stays small; a bucket serves it as `media_type`."""
        with _translated(key):
            obstore.put(self._store, key, source, attributes=self._attributes(media_type))

    def get_file(self, key: str, target: Path) -> None:
        """Download in parts; the file appears whole or not at all."""
        partial = target.with_name(f".{target.name}.partial")
        try:
            with _translated(key), partial.open("wb") as file:
                for chunk in obstore.get(self._store, key).stream(min_chunk_size=_CHUNK_BYTES):
                    file.write(chunk)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def put_new(self, key: str, content: bytes, media_type: str | None = None) -> None:
        """Upload; an object that is already there is an error, not overwritten."""
        with _translated(key):
            attributes = self._attributes(media_type)
            obstore.put(self._store, key, content, mode="create", attributes=attributes)

    def replace(self, key: str, content: bytes) -> None:
        """Upload; an object that is already there is overwritten."""
        with _translated(key):
            obstore.put(self._store, key, content)

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        """Write the content as it arrives; there is no object if that fails."""
        with _translated(key):
            await obstore.put_async(self._store, key, chunks)

    def chunks(self, key: str) -> Iterator[bytes]:
        """Yield the content in chunks."""
        with _translated(key):
            for chunk in obstore.get(self._store, key).stream(min_chunk_size=_CHUNK_BYTES):
                yield bytes(chunk)

    def read(self, key: str) -> bytes:
        """Return the content of a small object."""
        return b"".join(self.chunks(key))

    def objects(self, prefix: str) -> list[StoredObject]:
        """Return every object below the prefix."""
        with _translated(prefix):
            pages = obstore.list(self._store, prefix=prefix.rstrip("/"))
            return [
                StoredObject(
                    key=entry["path"], bytes=entry["size"], changed_at=entry["last_modified"]
                )
                for page in pages
                for entry in page
            ]

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the size in bytes of every object by its key."""
        with _translated(prefix):
            pages = obstore.list(self._store, prefix=prefix.rstrip("/"))
            return {entry["path"]: entry["size"] for page in pages for entry in page}

    @property
    def signs_links(self) -> bool:
        """Return True if the store itself serves HTTP by presigned links."""
        return not isinstance(self._store, LocalStore | MemoryStore | HTTPStore)

    @property
    def origin(self) -> str | None:
        """Scheme and host of the store's own links; None where it has none."""
        if not self.signs_links:
            return None
        link = urlsplit(self.presigned_url("origin", 1))
        return f"{link.scheme}://{link.netloc}"

    def _attributes(self, media_type: str | None) -> Attributes | None:
        """Return the attributes of an object; directories have none, the API sends the type."""
        if media_type is None or self._directory is not None:
            return None
        return {"Content-Type": media_type}

    def sha256(self, key: str) -> str:
        """Return the hash of the content, read back from the store."""
        digest = hashlib.sha256()
        with _translated(key):
            for chunk in obstore.get(self._store, key).stream(min_chunk_size=_CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    def keys(self, prefix: str) -> list[str]:
        with _translated(prefix):
            pages = obstore.list(self._store, prefix=prefix.rstrip("/"))
            return [entry["path"] for page in pages for entry in page]

    def directories(self, prefix: str) -> list[str]:
        """Return the prefixes below `prefix`, up to their next slash."""
        with _translated(prefix):
            listed = obstore.list_with_delimiter(self._store, prefix=prefix.rstrip("/"))
            return [f"{place.rstrip('/')}/" for place in listed["common_prefixes"]]

    def delete(self, keys: list[str]) -> None:
        if keys:
            with _translated(keys[0]):
                obstore.delete(self._store, keys)

    def local_path(self, key: str) -> Path | None:
        """Return the object's file on this machine; None if the store is a bucket."""
        if self._directory is None:
            return None
        path = self._directory / key
        if not path.is_file():
            raise ArtifactNotFoundError
        return path

    def presigned_url(
        self, key: str, seconds: int, method: Literal["GET", "HEAD", "PUT"] = "GET"
    ) -> str:
        """Return a URL of the store itself for one method, which the signature covers.

        Raises:
            StoreUnavailableError: if the store is no bucket and cannot sign.
        """
        if not self.signs_links or isinstance(self._store, LocalStore | MemoryStore | HTTPStore):
            raise StoreUnavailableError("This artifact store has no URLs of its own")
        with _translated(key):
            return obstore.sign(self._store, method, key, timedelta(seconds=seconds))

    def check(self) -> None:
        """Send the store a cheap request.

        Raises:
            StoreUnavailableError: if it does not answer.
        """
        with _translated("readiness"):
            if self._directory is not None and not self._directory.is_dir():
                raise FileNotFoundError(self._directory)
            obstore.list_with_delimiter(self._store, prefix="readiness")


@contextmanager
def _translated(key: str) -> Iterator[None]:
    """Translate obstore's errors to those of the service."""
    try:
        yield
    except (NotFoundError, FileNotFoundError) as error:
        if key == "readiness":
            raise StoreUnavailableError from error
        raise ArtifactNotFoundError(f"the store does not hold {key}") from error
    except (BaseError, OSError) as error:
        STORE_ERRORS.inc()
        raise StoreUnavailableError(f"the artifact store failed on {key}") from error
