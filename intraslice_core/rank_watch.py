"""Failures of ranks: recorded by the rank that fails, and seen by all others while they wait.

All ranks share a key-value store, which runs in the launcher. A thread of every rank writes a beat
to it and reads the failure and the beats of the others.
"""

from __future__ import annotations

import base64
import pickle
import threading
import time
from dataclasses import dataclass

from torch.distributed import Store  # type: ignore[attr-defined]

from intraslice_core.errors import IntraSliceError, RankFailedError

FAILURE = "failure"
"""Key of the first failure of the run."""
_BEAT_SECONDS = 0.5
_LOOK_SECONDS = 0.05
SILENCE_SECONDS = 120.0
"""Time without a beat after which a rank is considered lost: stopped, or gone with its machine."""
_EXPLANATION_SECONDS = 5.0
"""Time that a rank waits for the reason of a broken connection."""


def run_prefix(attempt: str, number: int) -> str:
    """Return the beginning of a run's keys in the store of a launcher.

    Args:
        attempt: of the launcher.
        number: of the run within each process, from 0.
    """
    return f"intraslice/{attempt}/{number}"


def name_of(rank: int, count: int) -> str:
    """Return the name of a rank in messages."""
    return f"process {rank + 1} of {count}"


def encoded(error: BaseException, name: str) -> str:
    """Return a failure as text; errors of other kinds than the engine's as a `RankFailedError`.

    Args:
        error: the failure.
        name: of the rank that failed.
    """
    failure = error
    if not isinstance(error, IntraSliceError):
        failure = RankFailedError(f"{name} failed: {type(error).__name__}: {error}")
    return base64.b64encode(pickle.dumps(failure)).decode("ascii")


def post_failure(store: Store, error: BaseException, name: str) -> None:
    """Record the failure of a rank with a name in the store, unless there is one already."""
    store.compare_set(FAILURE, "", encoded(error, name))


@dataclass
class _Beat:
    """Last beat of a rank, and the time at which it was first seen."""

    value: bytes
    seen: float


class RankWatch:
    """Watch of one rank over the run.

    Args:
        store: connection of its own to the store of the run.
        rank: number of this rank.
        count: number of ranks.
    """

    def __init__(self, store: Store, rank: int, count: int) -> None:
        self._store, self._rank, self._count = store, rank, count
        self._failure: IntraSliceError | None = None
        self._ended = threading.Event()
        self._beats: dict[int, _Beat] = {}
        self._beat(0)
        self._thread = threading.Thread(target=self._run, name="rank-watch", daemon=True)
        self._thread.start()

    def wait_for_all(self, seconds: float) -> None:
        """Wait until all ranks have begun their watch.

        Raises:
            RankFailedError: if one of them has not after some seconds.
            IntraSliceError: the error of a rank that failed.
        """
        deadline = time.monotonic() + seconds
        while not self._store.check([_key(rank) for rank in range(self._count)]):
            self.raise_if_failed()
            if time.monotonic() > deadline:
                raise RankFailedError(
                    f"not all {self._count} processes started within {seconds:.0f} s"
                )
            time.sleep(_LOOK_SECONDS)
        failure = self._posted()  # of a rank that began its watch, and failed since
        if failure is not None:
            raise failure

    def raise_if_failed(self) -> None:
        """Raise the failure of the run, if there is one.

        Raises:
            IntraSliceError: the error of the rank that failed first.
        """
        if self._failure is not None:
            raise self._failure

    def post(self, error: BaseException) -> None:
        """Tell the other ranks about a failure of this one."""
        try:
            post_failure(self._store, error, name_of(self._rank, self._count))
        except RuntimeError:
            # The launcher has ended; the other ranks notice that themselves.
            return

    def note(self, error: IntraSliceError) -> None:
        """Let this rank end with an error at its next step."""
        self._failure = self._failure or error

    def explanation(self, cause: BaseException) -> IntraSliceError:
        """Return the reason of a broken connection: the failure of another rank, if it is known."""
        deadline = time.monotonic() + _EXPLANATION_SECONDS
        while self._failure is None and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)
        return self._failure or RankFailedError(
            f"another process has ended or cannot be reached: {_reason(cause)}",
            hint="run it again: a resumed run continues after the last finished layer",
        )

    def close(self) -> None:
        """End the watch."""
        self._ended.set()
        self._thread.join()

    # -- thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        number = 0
        while self._failure is None and not self._ended.wait(_BEAT_SECONDS):
            number += 1
            try:
                self._beat(number)
                self._failure = self._failure or self._posted() or self._silent()
            except RuntimeError as error:
                self.note(
                    RankFailedError(f"the launcher of the processes cannot be reached: {error}")
                )
            except Exception as error:  # without the watch, a lost rank would be waited for
                self.note(
                    RankFailedError(f"the other processes cannot be watched: {_reason(error)}")
                )

    def _beat(self, number: int) -> None:
        self._store.set(_key(self._rank), str(number))

    def _posted(self) -> IntraSliceError | None:
        """Return the failure that a rank or the launcher has recorded."""
        if not self._store.check([FAILURE]):
            return None
        failure: IntraSliceError = pickle.loads(base64.b64decode(self._store.get(FAILURE)))
        return failure

    def _silent(self) -> IntraSliceError | None:
        """Return an error about a rank whose beat has not changed for long."""
        now = time.monotonic()
        for rank in range(self._count):
            if rank == self._rank or not self._store.check([_key(rank)]):
                continue
            value = self._store.get(_key(rank))
            last = self._beats.get(rank)
            if last is None or last.value != value:
                self._beats[rank] = _Beat(value=value, seen=now)
            elif now - last.seen > SILENCE_SECONDS:
                name = name_of(rank, self._count)
                return RankFailedError(f"{name} has been silent for {SILENCE_SECONDS:.0f} s")
        return None


def _reason(cause: BaseException) -> str:
    """Return the first line of an error's text, or its type where there is none."""
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]


def _key(rank: int) -> str:
    return f"beat-{rank}"
