"""pytest plugin: all tests of a session run as on a machine with a GPU.

    python -m pytest -p tests.pretend_cuda.as_on_cuda TESTS

`GPU_LOG=FILE` writes the largest entries of the device's log.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pretend_cuda.session import PretendCuda


@pytest.fixture(scope="session", autouse=True)
def pretended_gpu() -> Iterator[PretendCuda]:
    """One device, in this process and in those that it starts."""
    with PretendCuda(children=True) as gpu:
        yield gpu
    if file := os.environ.get("GPU_LOG"):
        Path(file).write_text(gpu.log.summary(40))
