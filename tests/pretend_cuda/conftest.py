"""These tests are collected in a session of their own (tests/test_pretended_devices.py)."""

from __future__ import annotations

import pytest

from tests.pretend_cuda.apart import runs_apart


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    return None if runs_apart(config) else True
