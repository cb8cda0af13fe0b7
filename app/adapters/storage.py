"""The artifact store: a directory or a bucket, through obstore."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError
from obstore.store import (
    HTTPStore,
    LocalStore,
    MemoryStore,
    ObjectStore,
    S3Store,
    from_url,
)

from app.adapters import store_errors
from app.domain.errors import ArtifactNotFoundError, StoreUnavailableError
from app.telemetry.metrics import STORE_ERRORS
from app.telemetry.outages import OUTAGES, STORE

if TYPE_CHECKING:
    from obstore import Attributes

_CHUNK_BYTES = 8 * 1024 * 1024
_WINDOW_BYTES = 2 * 1024 * 1024
"""Bytes of one request while a client downloads an object. One request for the whole object would
be ended by obstore's timeouts while a slow client reads."""
_PART_BYTES = 5 * 1024 * 1024
"""Smallest part of a multipart upload that S3 accepts."""
_PARTS_IN_FLIGHT = 2
_READINESS = "readiness"
OnBytes = Callable[[int], None]
"""Receives the number of bytes of each part of an object that is sent or read."""


def ignore_bytes(count: int) -> None:
    """Ignore a part (default of `OnBytes`)."""


def _chunks(file: BinaryIO, on_bytes: OnBytes) -> Iterator[bytes]:
    """Yield the content of a file in parts and report each when the next is asked for."""
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk
        on_bytes(len(chunk))


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """An object in the store; `changed_at` is by the store's clock."""

    key: str
    bytes: int
    changed_at: datetime


class ArtifactStore:
    """A store of objects that are written once, under keys that are slash-separated paths.

    Args:
        url: URL of a directory or a bucket.
        endpoint: URL of the bucket's server, for messages; empty if it is the provider's.
        public_endpoint: URL at which clients reach the S3 API; empty if it is the same.
        direct: True if clients exchange files with the bucket itself.

    Raises:
        ConfigurationError: if the URL, its directory or the endpoint cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        endpoint: str = "",
        public_endpoint: str = "",
        direct: bool = False,
    ) -> None:
        parts = urlsplit(url)
        self._directory = Path(unquote(parts.path)) if parts.scheme == "file" else None
        store_errors.check_endpoint(url)
        try:
            self._store: ObjectStore = (
                LocalStore(prefix=self._directory, mkdir=True, automatic_cleanup=True)
                if self._directory is not None
                else from_url(url)
            )
        except (BaseError, OSError, ValueError) as error:
            raise store_errors.unusable(error, url) from error
        self._signing_store = self._store
        if public_endpoint and isinstance(self._store, S3Store):
            # Signatures cover the host: it cannot be replaced afterwards.
            self._signing_store = from_url(url, config={"endpoint": public_endpoint})
        self._is_direct = direct
        public_url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        self.place = f"{public_url} at {endpoint}" if endpoint else public_url
        """Directory, or URL and server without credentials, for messages."""
        if self._directory is not None:
            self.place = f"directory {self._directory}"

    def put_file(
        self,
        key: str,
        source: Path,
        media_type: str | None = None,
        on_bytes: OnBytes = ignore_bytes,
    ) -> None:
        """Upload in parts, so that memory stays small.

        Args:
            key: of the object, which is overwritten.
            source: file to upload.
            media_type: type under which a bucket serves the object.
            on_bytes: called with the number of bytes of every part; if it raises, there is no
                object.
        """
        with self._translated(key), source.open("rb") as file:
            chunks = _chunks(file, on_bytes)
            obstore.put(self._store, key, chunks, attributes=self._attributes(media_type))

    def get_file(self, key: str, target: Path) -> None:
        """Download in parts; the file appears whole or not at all."""
        partial = target.with_name(f".{target.name}.partial")
        try:
            with self._translated(key), partial.open("wb") as file:
                for chunk in obstore.get(self._store, key).stream(min_chunk_size=_CHUNK_BYTES):
                    file.write(chunk)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def put_new(self, key: str, content: bytes, media_type: str | None = None) -> None:
        """Upload; an object with other content is an error, not overwritten.

        The same content may be there already: of a request whose answer was lost.
        """
        with self._translated(key):
            attributes = self._attributes(media_type)
            try:
                obstore.put(self._store, key, content, mode="create", attributes=attributes)
            except AlreadyExistsError:
                if bytes(obstore.get(self._store, key).bytes()) != content:
                    raise

    def replace(self, key: str, content: bytes, media_type: str | None = None) -> None:
        """Upload; an object that is already there is overwritten."""
        with self._translated(key):
            obstore.put(self._store, key, content, attributes=self._attributes(media_type))

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        """Write the content as it arrives; there is no object if that fails."""
        with self._translated(key):
            await obstore.put_async(
                self._store,
                key,
                chunks,
                chunk_size=_PART_BYTES,
                max_concurrency=_PARTS_IN_FLIGHT,
            )

    def chunks(self, key: str) -> Iterator[bytes]:
        """Yield the content in chunks, each by a request of its own: the reader may be slow."""
        size = self.size(key)
        for start in range(0, size, _CHUNK_BYTES):
            end = min(start + _CHUNK_BYTES, size)
            with self._translated(key):
                chunk = bytes(obstore.get_range(self._store, key, start=start, end=end))
            yield chunk

    async def stream(self, key: str, start: int, end: int) -> AsyncIterator[bytes]:
        """Yield the bytes from `start` to before `end`, without blocking the event loop."""
        for position in range(start, end, _WINDOW_BYTES):
            stop = min(position + _WINDOW_BYTES, end)
            with self._translated(key):
                window = await obstore.get_range_async(self._store, key, start=position, end=stop)
            yield bytes(window)

    def size(self, key: str) -> int:
        """Return the size of an object in bytes."""
        with self._translated(key):
            return obstore.head(self._store, key)["size"]

    def read(self, key: str) -> bytes:
        """Return the content of a small object."""
        return b"".join(self.chunks(key))

    def objects(self, prefix: str) -> list[StoredObject]:
        """Return every object below the prefix."""
        with self._translated(prefix):
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
        with self._translated(prefix):
            pages = obstore.list(self._store, prefix=prefix.rstrip("/"))
            return {entry["path"]: entry["size"] for page in pages for entry in page}

    @property
    def is_direct(self) -> bool:
        """True if clients exchange files with the store itself, by presigned links."""
        return self._is_direct and not isinstance(self._store, LocalStore | MemoryStore | HTTPStore)

    @property
    def origin(self) -> str | None:
        """Scheme and host of the store's own links; None if clients use the API's links only."""
        if not self.is_direct:
            return None
        link = urlsplit(self.presigned_url("origin", 1))
        return f"{link.scheme}://{link.netloc}"

    def _attributes(self, media_type: str | None) -> Attributes | None:
        """Return the attributes of an object; directories have none, the API sends the type."""
        if media_type is None or self._directory is not None:
            return None
        return {"Content-Type": media_type}

    def sha256(self, key: str, on_bytes: OnBytes = ignore_bytes) -> str:
        """Return the hash of the content, read back from the store.

        `on_bytes` is called with the number of bytes of every part, and may raise to stop.
        """
        digest = hashlib.sha256()
        with self._translated(key):
            for chunk in obstore.get(self._store, key).stream(min_chunk_size=_CHUNK_BYTES):
                digest.update(chunk)
                on_bytes(len(chunk))
        return digest.hexdigest()

    def keys(self, prefix: str) -> list[str]:
        with self._translated(prefix):
            pages = obstore.list(self._store, prefix=prefix.rstrip("/"))
            return [entry["path"] for page in pages for entry in page]

    def directories(self, prefix: str) -> list[str]:
        """Return the prefixes below `prefix`, up to their next slash."""
        with self._translated(prefix):
            listed = obstore.list_with_delimiter(self._store, prefix=prefix.rstrip("/"))
            return [f"{place.rstrip('/')}/" for place in listed["common_prefixes"]]

    def delete(self, keys: list[str]) -> None:
        if keys:
            with self._translated(keys[0]):
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
        if isinstance(self._signing_store, LocalStore | MemoryStore | HTTPStore):
            raise StoreUnavailableError(f"The artifact store {self.place} has no URLs of its own")
        with self._translated(key):
            return obstore.sign(self._signing_store, method, key, timedelta(seconds=seconds))

    def check(self) -> None:
        """Send the store a cheap request.

        Raises:
            StoreUnavailableError: if it does not answer.
        """
        with self._translated(_READINESS):
            if self._directory is not None and not self._directory.is_dir():
                raise FileNotFoundError(errno.ENOENT, "no such directory", str(self._directory))
            obstore.list_with_delimiter(self._store, prefix=_READINESS)

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        """Translate obstore's errors to those of the service, which name the store's place."""
        try:
            yield
        except (NotFoundError, FileNotFoundError) as error:
            if key == _READINESS or store_errors.lacks_bucket(error):
                raise store_errors.unavailable(error, self.place, key) from error
            raise ArtifactNotFoundError(f"the store does not hold {key}") from error
        except AlreadyExistsError as error:
            message = f"The artifact store {self.place} failed on {key}: it exists already"
            raise StoreUnavailableError(message) from error
        except (BaseError, OSError) as error:
            STORE_ERRORS.inc()
            raise store_errors.unavailable(error, self.place, key) from error
        OUTAGES.note_success(STORE)
