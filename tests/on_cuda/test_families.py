"""Every family is compressed on a device alone, and as on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.intraslice_core.compressing import compress_unverified
from tests.intraslice_core.tiny_models import FAMILY_VARIANTS, tiny_checkpoint
from tests.on_cuda.devices import compress, observed, require_same_model, settings

WAITS = {"intraslice": 81, "intraslice_plus": 797}
"""Waits of the run of the family that has the fewest; others add some for norms and biases."""
MEASURED = frozenset({"gemma2", "gemma3_biased", "opt", "phi", "qwen3", "smollm3"})
"""Families compressed by IntraSlice+, which also measures gradients, pairs and trial cuts.

Together they have every feature of a layer that these passes treat apart: norms of outputs and of
queries and keys, biases, parallel modules, partial and no rotary embeddings, learned positions,
windows and caps. The others are compressed by IntraSlice, which passes a layer's forward alone.
"""


@pytest.mark.parametrize("variant", FAMILY_VARIANTS)
def test_a_family_is_compressed_on_the_device(tmp_path: Path, variant: str) -> None:
    changes = {"no_rope_layers": [0, 1]} if variant == "smollm3" else {}
    dense = tiny_checkpoint(tmp_path / "dense", variant, num_hidden_layers=2, **changes)
    method = "intraslice_plus" if variant in MEASURED else "intraslice"
    config = settings(method=method, allocation="uniform")
    with observed() as observation:
        report, _ = compress(dense, tmp_path / "device", config)
    observation.require_clean(WAITS[method])
    host = compress_unverified(
        dense, tmp_path / "host", config.model_copy(update={"device": "cpu"})
    )
    assert report.plan == host.plan
    require_same_model(tmp_path / "host", tmp_path / "device")
