"""A rank that waits for others learns why one of them does not come."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from torch.distributed import HashStore, Store

from intraslice_core import rank_watch
from intraslice_core.errors import (
    IntraSliceError,
    NumericalError,
    OutOfDeviceMemoryError,
    RankFailedError,
)
from intraslice_core.rank_watch import RankWatch


@pytest.fixture
def store() -> Store:
    return HashStore()


@pytest.fixture
def watches(store: Store) -> Iterator[list[RankWatch]]:
    watches = [RankWatch(store, rank, 2) for rank in range(2)]
    yield watches
    for watch in watches:
        watch.close()


def failure_of(watch: RankWatch, seconds: float = 10.0) -> IntraSliceError:
    """Return the failure that a watch sees within some seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            watch.raise_if_failed()
        except IntraSliceError as error:
            return error
        time.sleep(0.05)
    raise AssertionError("no failure was seen")


def test_the_error_of_one_rank_is_raised_in_the_other(watches: list[RankWatch]) -> None:
    watches[0].raise_if_failed()
    watches[1].post(NumericalError("no factor", layer=4, module="mlp", hint="more text"))
    error = failure_of(watches[0])
    assert isinstance(error, NumericalError)
    assert (error.message, error.layer, error.module) == ("no factor", 4, "mlp")
    assert error.hint == "more text"


def test_sizes_of_a_device_are_kept_in_the_posted_error(watches: list[RankWatch]) -> None:
    watches[1].post(OutOfDeviceMemoryError("too little", needed_bytes=3, total_bytes=2))
    error = failure_of(watches[0])
    assert isinstance(error, OutOfDeviceMemoryError)
    assert (error.needed_bytes, error.free_bytes, error.total_bytes) == (3, None, 2)


def test_the_first_failure_is_the_one_that_is_raised(watches: list[RankWatch]) -> None:
    watches[1].post(NumericalError("the cause"))
    watches[0].post(NumericalError("its consequence"))
    assert failure_of(watches[0]).message == "the cause"


def test_an_error_of_another_kind_is_a_failed_rank(watches: list[RankWatch]) -> None:
    watches[1].post(ZeroDivisionError("a bug"))
    error = failure_of(watches[0])
    assert isinstance(error, RankFailedError)
    assert error.message == "process 2 of 2 failed: ZeroDivisionError: a bug"


def test_a_silent_rank_is_considered_lost(
    watches: list[RankWatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_watch, "SILENCE_SECONDS", 1.5)
    watches[1].close()  # as if its machine were gone
    error = failure_of(watches[0])
    assert isinstance(error, RankFailedError)
    assert "process 2 of 2 has been silent" in error.message


def test_a_broken_connection_is_explained_by_the_failure_that_caused_it(
    watches: list[RankWatch],
) -> None:
    watches[1].post(NumericalError("the cause"))
    assert watches[0].explanation(RuntimeError("connection closed")).message == "the cause"


@pytest.mark.parametrize(
    ("cause", "reason"),
    [(RuntimeError("reset\nat 0x7f"), "reset"), (RuntimeError(), "RuntimeError")],
)
def test_a_broken_connection_without_a_posted_error_is_explained_by_its_cause(
    cause: RuntimeError,
    reason: str,
    watches: list[RankWatch],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rank_watch, "_EXPLANATION_SECONDS", 0.0)
    assert watches[0].explanation(cause).message.endswith(f"cannot be reached: {reason}")


def test_a_posted_error_that_cannot_be_read_ends_the_watch_with_an_error(
    watches: list[RankWatch], store: Store
) -> None:
    store.set(rank_watch.FAILURE, base64.b64encode(b"of another version"))
    error = failure_of(watches[0], seconds=3.0)
    assert isinstance(error, RankFailedError)
    assert "the other processes cannot be watched" in error.message


def test_a_rank_that_never_starts_is_an_error(store: Store) -> None:
    with (
        closing(RankWatch(store, 0, 2)) as watch,
        pytest.raises(RankFailedError, match="not all 2 processes started"),
    ):
        watch.wait_for_all(0.2)
