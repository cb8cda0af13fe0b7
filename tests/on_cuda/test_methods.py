"""Every method, allocation and target works on a device alone, and as on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from intraslice_core.methods import METHODS
from tests.intraslice_core.compressing import compress_unverified
from tests.intraslice_core.tiny_models import tiny_llama
from tests.on_cuda.devices import compress, observed, require_same_model, settings

VARIANTS: dict[str, dict[str, Any]] = {name: {"method": name} for name in METHODS} | {
    "fisher": {"allocation": "fisher"},
    "fisher_pca": {"allocation": "fisher_pca"},
    "intraslice, uniform": {"method": "intraslice", "allocation": "uniform"},
    "stock": {"target": "stock"},
    "adaptive": {"target": "adaptive"},
    "spp, trained": {"method": "spp", "mask_training": {"max_tokens": 64}},
    "disp, trained": {"method": "disp", "mask_training": {"max_tokens": 64}},
}
WAITS: dict[str, int] = {
    "intraslice_plus": 1020,
    "intraslice": 107,
    "magnitude": 24,
    "flap": 56,
    "wanda_sp": 41,
    "2ssp": 50,
    "modegpt": 76,
    "transact": 124,
    "shortgpt": 56,
    "fusegpt": 433,
    "slicegpt": 41,
    "spp": 856,
    "disp": 287,
    "fisher": 868,
    "fisher_pca": 889,
    "intraslice, uniform": 81,
    "stock": 1027,
    "adaptive": 982,
    "spp, trained": 885,
    "disp, trained": 139,
}
"""Waits of each run of two layers."""


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "dense", num_hidden_layers=2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_method_works_on_the_device(dense: Path, tmp_path: Path, variant: str) -> None:
    config = settings(**VARIANTS[variant])
    with observed() as observation:
        report, _ = compress(dense, tmp_path / "device", config)
    observation.require_clean(WAITS[variant])
    host = compress_unverified(
        dense, tmp_path / "host", config.model_copy(update={"device": "cpu"})
    )
    assert report.plan == host.plan
    require_same_model(tmp_path / "host", tmp_path / "device")
