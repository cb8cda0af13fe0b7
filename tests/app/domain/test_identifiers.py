"""Job ids sort by time and are distinguished from other texts."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import InvalidRequestError
from app.domain.identifiers import is_job_id, new_job_id
from app.domain.resource import decode_cursor, encode_cursor


def test_ids_are_unique_and_sort_by_time() -> None:
    early = [new_job_id() for _ in range(100)]
    time.sleep(0.002)
    late = [new_job_id() for _ in range(100)]
    assert len({*early, *late}) == 200
    assert max(early) < min(late)
    assert all(map(is_job_id, early))


@given(st.text())
def test_a_decoded_cursor_is_a_job_id_or_an_error(text: str) -> None:
    try:
        job_id = decode_cursor(text)
    except InvalidRequestError:
        return
    assert job_id is not None
    assert is_job_id(job_id)


def test_a_cursor_decodes_to_its_job() -> None:
    job_id = new_job_id()
    assert decode_cursor(encode_cursor(job_id)) == job_id
    assert decode_cursor(None) is None


@pytest.mark.parametrize("text", ["", "job_", "job_" + "U" * 26, "job_8" + "0" * 25, "x" * 30])
def test_other_texts_are_not_job_ids(text: str) -> None:
    assert not is_job_id(text)
