"""Keys seen a moment ago, so that a busy client costs no database read for each request."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict

from app.domain.api_key import ApiKey

_MOST = 1024


class KnownKeys:
    """By digest, for a few seconds: another process's revocation reaches us that late at most."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._keys: OrderedDict[str, tuple[float, ApiKey]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, digest: str) -> ApiKey | None:
        with self._lock:
            until, key = self._keys.get(digest, (0.0, None))
        return key if time.monotonic() < until else None

    def put(self, digest: str, key: ApiKey) -> None:
        with self._lock:
            self._keys[digest] = (time.monotonic() + self._seconds, key)
            self._keys.move_to_end(digest)
            while len(self._keys) > _MOST:
                self._keys.popitem(last=False)

    def forget(self, key_id: str) -> None:
        """A key revoked here is dead here at once."""
        with self._lock:
            for digest in [d for d, (_, key) in self._keys.items() if key.id == key_id]:
                del self._keys[digest]
