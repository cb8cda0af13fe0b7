"""A rank is cancelled by the process that started it."""

from __future__ import annotations

from multiprocessing.connection import Pipe

from intraslice_core.rank_main import _Parent
from intraslice_core.rank_processes import CANCEL


def test_a_rank_stays_cancelled_once_its_parent_has_requested_it() -> None:
    parent, rank = Pipe()
    with parent, rank:
        connection = _Parent(rank)
        assert not connection.is_cancelled()
        parent.send(CANCEL)
        assert connection.is_cancelled()
        assert connection.is_cancelled(), "the message is read only once"
