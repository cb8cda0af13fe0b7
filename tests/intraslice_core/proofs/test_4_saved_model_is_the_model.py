"""Proof 4: what was saved is what loads, in a fresh process, with and without a cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from intraslice_core.config import CalibrationConfig, CompressionConfig
from intraslice_core.evaluation.verification import verify_checkpoint
from intraslice_core.pipeline import compress_model
from tests.intraslice_core.tiny_models import VARIANTS, tiny_llama

CALIBRATION = CalibrationConfig(source="pydoc", samples=32, sequence_length=32)


@pytest.fixture(scope="module", params=["plain", "biased", "llama3_rope"])
def compressed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    dense = tiny_llama(folder / "dense", **VARIANTS[request.param])
    config = CompressionConfig(ratio=0.3, round_to=2, calibration=CALIBRATION)
    compress_model(str(dense), folder / "out", config)
    return folder / "out"


def test_a_clean_process_without_our_package_gives_the_same_logits(compressed: Path) -> None:
    verify_checkpoint(compressed)


def test_greedy_generation_with_cache_equals_generation_without(compressed: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(compressed, dtype=torch.float32).eval()
    prompt = torch.randint(3, 259, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(prompt)
    settings = {"attention_mask": mask, "max_new_tokens": 16, "do_sample": False}
    cached = model.generate(prompt, use_cache=True, **settings)
    assert torch.equal(cached, model.generate(prompt, use_cache=False, **settings))


def test_engine_stream_is_the_saved_models_stream(compressed: Path) -> None:
    """The block functions the engine computes with and the classes that travel agree."""
    from dataclasses import replace

    from intraslice_core.families.blocks import block_settings, block_weights, rotary_tables
    from safetensors.torch import load_file

    from intraslice_core import block
    from intraslice_core.families import LlamaFamily
    from intraslice_core.modeling import decode_rotary_pairs

    model = AutoModelForCausalLM.from_pretrained(compressed, dtype=torch.float32).eval()
    tensors, family = load_file(compressed / "model.safetensors"), LlamaFamily()
    layer_config = model.config.per_layer_config[0]
    prefix = family.layer_prefix(0)
    layer = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    dense_view = _dense_view(compressed)
    weights = replace(
        block_weights(family, layer, torch.device("cpu"), torch.float32),
        rotary_pairs=torch.tensor(decode_rotary_pairs(layer_config.rotary_pairs)),
    )
    tokens = torch.randint(3, 259, (1, 12), generator=torch.Generator().manual_seed(0))
    hidden = tensors["model.embed_tokens.weight"][tokens]
    settings = block_settings(dense_view)
    rotary = rotary_tables(dense_view, 12, torch.device("cpu"))
    hidden = hidden + block.attention(hidden, weights, settings, rotary)
    hidden = hidden + block.mlp(hidden, weights, settings)
    with torch.no_grad():
        expected = model(tokens, output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-4)


def _dense_view(compressed: Path):  # type: ignore[no-untyped-def]
    from transformers import LlamaConfig

    return LlamaConfig.from_pretrained(compressed.parent / "dense")
