"""Proof 4: the saved model is the one that loads, in a fresh process, with and without a cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from intraslice_core import decoder_layer
from intraslice_core.checkpoints.dense_model import DenseLayerReader
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.config import CalibrationConfig, CompressionConfig
from intraslice_core.families import canonical
from intraslice_core.modeling import decode_rotary_pairs
from intraslice_core.pipeline import compress_model
from tests.intraslice_core.proofs.conftest import Compressed
from tests.intraslice_core.tiny_models import FAMILY_VARIANTS, tiny_checkpoint

CALIBRATION = CalibrationConfig(source="pydoc", samples=32, sequence_length=32)
CPU = torch.device("cpu")
CACHED = sorted(set(FAMILY_VARIANTS) - {"llama_dynamic"})
"""Variants for which generation with and without cache agree.

With dynamic NTK, frequencies change with the length but cached keys do not, in transformers' own
classes as well.
"""

Make = Callable[[str], Compressed]


# One for each kind of layer and position; every family is loaded below, by the same class.
@pytest.mark.parametrize("variant", ["phi", "gemma2", "phi3_longrope", "opt"])
def test_a_clean_process_without_the_package_gives_the_same_logits(
    variant: str, tmp_path: Path
) -> None:
    dense = tiny_checkpoint(tmp_path / "dense", variant)
    config = CompressionConfig(ratio=0.3, round_to=1, calibration=CALIBRATION)
    (verified,) = compress_model(str(dense), tmp_path / "out", config).verified
    assert verified.loaded_by[0] == "checkpoint"
    assert verified.max_abs_difference <= verified.tolerance


@pytest.mark.parametrize("variant", CACHED)
def test_greedy_generation_with_cache_equals_generation_without(
    variant: str, compressed_family: Make
) -> None:
    out = compressed_family(variant).out
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    prompt = torch.randint(3, 259, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(prompt)
    settings = {"attention_mask": mask, "min_new_tokens": 12, "max_new_tokens": 12}
    cached = model.generate(prompt, use_cache=True, do_sample=False, **settings)
    plain = model.generate(prompt, use_cache=False, do_sample=False, **settings)
    assert torch.equal(cached, plain)


@pytest.mark.parametrize("variant", sorted(FAMILY_VARIANTS))
def test_engine_and_saved_model_have_the_same_hidden_states(
    variant: str, compressed_family: Make
) -> None:
    """The engine's layer functions and the model classes in the checkpoint agree."""
    compressed = compressed_family(variant)
    model = AutoModelForCausalLM.from_pretrained(compressed.out, dtype=torch.float32).eval()
    tensors, prefix = load_file(compressed.out / "model.safetensors"), canonical.layer_prefix(0)
    layer = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    shape = model.config.per_layer_config[0]
    weights = canonical.layer_weights(layer, shape.num_key_value_heads, CPU, torch.float32)
    if shape.rotary_pairs:
        pairs = torch.tensor(decode_rotary_pairs(shape.rotary_pairs))
        weights = replace(weights, rotary_pairs=pairs)
    tokens = torch.randint(3, 259, (1, 12), generator=torch.Generator().manual_seed(0))
    with CheckpointReader(compressed.dense) as reader:
        layers = DenseLayerReader(reader, CPU, torch.float32)
        hidden = decoder_layer.forward(
            layers.embed(tokens), weights, layers.settings(0), layers.rotary(0, 12)
        )
    with torch.no_grad():
        expected = model(tokens, output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-4)
