"""Serving memory is that of the weights and of every layer's own KV cache."""

from __future__ import annotations

import pytest

from intraslice_core.reports.serving_memory import serving_memory
from tests.intraslice_core.reports.samples import report


@pytest.mark.parametrize(("context", "batch"), [(4096, 1), (100, 8)])
def test_the_cache_has_the_widths_of_every_layer(context: int, batch: int) -> None:
    content = report()  # two bytes for each parameter
    memory = serving_memory(content, context, batch)
    dense = 4 * 2 * (16 + 16)  # layers, KV heads, keys and values
    compressed = 2 * (16 + 16) + 2 * (2 * (12 + 12))  # the last layer has no attention
    assert memory.dense == content.bytes_before + 2 * dense * context * batch
    assert memory.compressed == content.bytes_after + 2 * compressed * context * batch
    assert memory.ratio == memory.compressed / memory.dense
