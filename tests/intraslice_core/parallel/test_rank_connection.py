"""A rank that fails while it connects or disconnects ends the others, too."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from itertools import count
from typing import cast

import pytest
import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore

from intraslice_core import rank_connection
from intraslice_core.errors import NumericalError, RankFailedError
from intraslice_core.launcher import Launch
from intraslice_core.rank_connection import connected_ranks
from intraslice_core.rank_watch import RankWatch, run_prefix
from intraslice_core.ranks import ConnectedRanks

CPU = torch.device("cpu")


@pytest.fixture
def store() -> TCPStore:
    """Store of a launcher."""
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.fixture(autouse=True)
def first_run(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(rank_connection, "_runs", count())
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def start(store: TCPStore, ranks: int, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Let this process be the first of some ranks; return the store of their run."""
    launch = Launch(rank=0, count=ranks, local_rank=0, address="127.0.0.1", port=store.port)
    monkeypatch.setattr(rank_connection, "current_launch", lambda: launch)
    return PrefixStore(run_prefix(launch.attempt, 0), store)


def watches() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "rank-watch"]


def test_a_rank_that_cannot_connect_ends_those_that_start_later(
    store: TCPStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(store, 2, monkeypatch)
    monkeypatch.setattr(rank_connection, "_CONNECTING", timedelta(seconds=0.2))
    with pytest.raises(RankFailedError, match="not all 2 processes started"), connected_ranks(CPU):
        raise AssertionError("connected to nobody")
    assert not watches()
    with (
        closing(RankWatch(run, 1, 2)) as late,
        pytest.raises(RankFailedError, match="not all 2 processes started"),
    ):
        late.wait_for_all(10.0)


def test_a_rank_that_fails_while_it_disconnects_posts_its_error(
    store: TCPStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(store, 1, monkeypatch)
    with pytest.raises(NumericalError, match="too late"), connected_ranks(CPU) as ranks:
        cast("ConnectedRanks", ranks).watch.note(NumericalError("too late"))
    assert not watches()
    with closing(RankWatch(run, 0, 1)) as other, pytest.raises(NumericalError, match="too late"):
        other.wait_for_all(10.0)
