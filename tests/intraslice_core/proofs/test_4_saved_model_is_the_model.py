"""Proof 4: what was saved is what loads, in a fresh process, with and without a cache."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from intraslice_core import block
from intraslice_core.config import CalibrationConfig, CompressionConfig
from intraslice_core.evaluation import fresh_process
from intraslice_core.evaluation.verification import verify_checkpoint
from intraslice_core.families import family_for
from intraslice_core.families.canonical import (
    EMBEDDING,
    block_settings,
    block_weights,
    embedded,
    layer_prefix,
    rotary_tables,
)
from intraslice_core.modeling import decode_rotary_pairs
from intraslice_core.pipeline import compress_model
from tests.intraslice_core.proofs.conftest import Compressed
from tests.intraslice_core.tiny_models import FAMILY_VARIANTS, tiny_llama

CPU = torch.device("cpu")
Find = Callable[[str], Compressed]

LOAD_AS_A_STRANGER = f"""
import json, runpy, sys
space = runpy.run_path({fresh_process.__file__!r})
space["_forget_ours"]()
asked = json.load(open(sys.argv[1]))
answers = {{place: space["_answer"](place, told) for place, told in asked.items()}}
print(json.dumps(answers))
"""


def test_a_clean_process_without_our_package_verifies_a_model(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense")
    config = CompressionConfig(
        ratio=0.3,
        round_to=2,
        calibration=CalibrationConfig(source="pydoc", samples=32, sequence_length=32),
    )
    compress_model(str(dense), tmp_path / "out", config)
    verify_checkpoint(tmp_path / "out")


def test_a_clean_process_gives_the_same_answers_for_every_family(
    compressed_family: Find, tmp_path: Path
) -> None:
    prompts = [list(range(40, 52)), list(range(3, 60))]
    asked, expected = {}, {}
    for variant in FAMILY_VARIANTS:
        place = str(compressed_family(variant).out)
        model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
        expected[place] = [fresh_process.observe(model, prompt, None) for prompt in prompts]
        entries = [
            {"text": "a", "tokens": prompt, "candidates": answer["candidates"]}
            for prompt, answer in zip(prompts, expected[place], strict=True)
        ]
        asked[place] = {"dtype": "float32", "device": "cpu", "prompts": entries}
    question = tmp_path / "asked.json"
    question.write_text(json.dumps(asked))
    done = subprocess.run(
        [sys.executable, "-I", "-c", LOAD_AS_A_STRANGER, str(question)],
        env={"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for place, answers in json.loads(done.stdout.splitlines()[-1]).items():
        for got, wanted in zip(answers, expected[place], strict=True):
            torch.testing.assert_close(
                torch.tensor(got["log_probs"]),
                torch.tensor(wanted["log_probs"]),
                rtol=0,
                atol=1e-4,
            )
            assert got["greedy"] == wanted["greedy"], place


@pytest.mark.parametrize("variant", FAMILY_VARIANTS)
def test_greedy_generation_with_cache_equals_generation_without(
    compressed_family: Find, variant: str
) -> None:
    place = compressed_family(variant).out
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    prompt = torch.randint(3, 259, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(prompt)
    settings = {"attention_mask": mask, "max_new_tokens": 16, "do_sample": False}
    if variant == "llama_dynamic":
        # Its keys turn by the length they were seen at: transformers' own cache differs likewise.
        settings["max_new_tokens"] = 7
    cached = model.generate(prompt, use_cache=True, **settings)
    assert torch.equal(cached, model.generate(prompt, use_cache=False, **settings))


@pytest.mark.parametrize("variant", FAMILY_VARIANTS)
def test_engine_stream_is_the_saved_models_stream(compressed_family: Find, variant: str) -> None:
    """The block functions the engine computes with and the classes that travel agree."""
    compressed = compressed_family(variant)
    model = AutoModelForCausalLM.from_pretrained(compressed.out, dtype=torch.float32).eval()
    tensors = load_file(compressed.out / "model.safetensors")
    config = AutoConfig.from_pretrained(compressed.dense)
    settings = family_for(config).canonical_settings(config)
    tokens = torch.randint(3, 259, (2, 23), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(tokens, output_hidden_states=True).hidden_states
    hidden = embedded(settings, tensors[EMBEDDING][tokens])
    for index in range(settings["num_hidden_layers"] - 1):
        prefix, shape = layer_prefix(index), model.config.per_layer_config[index]
        layer = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        weights = replace(
            block_weights(layer, shape.num_key_value_heads, CPU, torch.float32),
            rotary_pairs=torch.tensor(decode_rotary_pairs(shape.rotary_pairs)),
        )
        rotary = rotary_tables(settings, index, 23, CPU)
        hidden = block.behind(hidden, weights, block_settings(settings, index), rotary)
        torch.testing.assert_close(hidden, expected[index + 1], rtol=1e-4, atol=1e-4)
