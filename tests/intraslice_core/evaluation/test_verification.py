"""Verification in a process without our packages detects every change on disk."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from intraslice_core.errors import CompressionCancelledError, VerificationError
from intraslice_core.evaluation import transformers_process, verification
from intraslice_core.evaluation.verification import (
    REFERENCE_FILE,
    verify_checkpoint,
    write_reference,
)
from tests.intraslice_core.tiny_models import save_checkpoint, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a tiny dense checkpoint with its reference."""
    directory = tmp_path_factory.mktemp("checkpoint")
    model = tiny_model()
    save_checkpoint(model, directory)
    write_reference(directory, model, tiny_tokenizer())
    return directory


@pytest.fixture
def checkpoint(written: Path, tmp_path: Path) -> Path:
    """Copy the checkpoint, to be changed."""
    return Path(shutil.copytree(written, tmp_path / "copy"))


def change_weight(directory: Path, name: str, amount: float) -> None:
    file = directory / "model.safetensors"
    weights = load_file(file)
    weights[name] = weights[name].clone() + amount
    save_file(weights, file, metadata={"format": "pt"})


def accept_changed_files(directory: Path) -> None:
    """Update the hashes, so that only the model's answers can reveal the change."""
    file = directory / REFERENCE_FILE
    reference = json.loads(file.read_text())
    reference["files"] = verification._hashes(directory)
    file.write_text(json.dumps(reference))


def test_an_unchanged_checkpoint_passes_in_a_process_without_our_code(written):
    result = verify_checkpoint(written)
    assert result.max_abs_difference <= 1e-4
    assert result.loaded_by == ("checkpoint",)
    assert result.prompts == 4
    assert result.greedy_tokens == 4 * transformers_process.GREEDY_TOKENS


def test_the_reference_holds_log_probabilities_of_a_plain_forward_pass(written):
    model = LlamaForCausalLM.from_pretrained(written).eval()
    entry = json.loads((written / REFERENCE_FILE).read_text())["prompts"][1]
    with torch.no_grad():
        logits = model(torch.tensor([entry["tokens"]])).logits[0, -1].double()
        text = entry["tokens"]
        for expected in entry["greedy"]:
            best = model(torch.tensor([text])).logits[0, -1].argmax().item()
            assert best == expected
            text = [*text, best]
    expected = torch.softmax(logits, -1).log().topk(transformers_process.TOP)
    torch.testing.assert_close(
        torch.tensor(entry["log_probs"][-1]), expected.values.float(), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("context", [12, 128, 512])
def test_verification_stays_within_the_context(tmp_path: Path, context: int) -> None:
    model = tiny_model(max_position_embeddings=context)
    save_checkpoint(model, tmp_path)
    write_reference(tmp_path, model, tiny_tokenizer())
    entries = json.loads((tmp_path / REFERENCE_FILE).read_text())["prompts"]
    lengths = [len(entry["prompt"]) + len(entry["greedy"]) for entry in entries]
    assert max(lengths) == context
    assert len(entries[3]["tokens"]) > 512


def test_a_changed_file_is_named(checkpoint):
    change_weight(checkpoint, "model.norm.weight", 1e-6)
    with pytest.raises(VerificationError, match=r"files changed .*: model\.safetensors"):
        verify_checkpoint(checkpoint)


def test_added_code_is_named(checkpoint):
    (checkpoint / "modeling_evil.py").write_text("")
    with pytest.raises(VerificationError, match=r"files changed .*: modeling_evil\.py"):
        verify_checkpoint(checkpoint)


def test_a_changed_weight_changes_log_probabilities(checkpoint):
    change_weight(checkpoint, "model.layers.1.mlp.down_proj.weight", 0.05)
    accept_changed_files(checkpoint)
    with pytest.raises(VerificationError, match=r"copy: log-probabilities differ by .* nats"):
        verify_checkpoint(checkpoint)


def test_a_truncated_file_does_not_load(checkpoint):
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    accept_changed_files(checkpoint)
    with pytest.raises(VerificationError, match="fresh process cannot load"):
        verify_checkpoint(checkpoint)


def test_a_missing_weight_is_an_error(checkpoint):
    file = checkpoint / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.0.self_attn.k_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    accept_changed_files(checkpoint)
    with pytest.raises(VerificationError, match=r"k_proj"):
        verify_checkpoint(checkpoint)


def test_a_changed_tokenizer_is_detected(checkpoint):
    file = checkpoint / "tokenizer.json"
    settings = json.loads(file.read_text())
    words = settings["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    file.write_text(json.dumps(settings))
    with pytest.raises(VerificationError, match="tokenizer on disk gives other tokens for"):
        verify_checkpoint(checkpoint)


def test_a_checkpoint_that_imports_our_package_fails(checkpoint):
    settings = json.loads((checkpoint / "config.json").read_text())
    settings["auto_map"] = {"AutoModelForCausalLM": "modeling_ours.Ours"}
    settings["model_type"] = "intraslice"
    (checkpoint / "config.json").write_text(json.dumps(settings))
    (checkpoint / "modeling_ours.py").write_text("import intraslice_core\n\nclass Ours: ...\n")
    accept_changed_files(checkpoint)
    with pytest.raises(VerificationError, match="fresh process cannot load"):
        verify_checkpoint(checkpoint)


def test_our_packages_are_blocked_however_they_are_installed():
    program = (
        f"import runpy\nspace = runpy.run_path({transformers_process.__file__!r})\n"
        "import sys\nbefore = len(sys.meta_path)\nspace['_block_our_packages']()\n"
        "for name in ('intraslice_core', 'app', 'workers', 'intraslice_core.plan'):\n"
        "    try:\n        __import__(name)\n"
        "    except ModuleNotFoundError:\n        continue\n"
        "    raise SystemExit(name)\n"
    )
    # With the repository as working directory and without -I, all of them would be importable.
    root = Path(transformers_process.__file__).parents[2]
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr


def test_verification_can_be_cancelled(written):
    with pytest.raises(CompressionCancelledError):
        verify_checkpoint(written, should_cancel=lambda: True)


def test_a_missing_reference_is_an_error(tmp_path):
    with pytest.raises(VerificationError, match=r"no readable verification\.json"):
        verify_checkpoint(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_reference_of_a_gpu_is_checked_on_the_cpu_of_a_machine_without_one(checkpoint):
    file = checkpoint / REFERENCE_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"device": "cuda:1"}))
    # What the process is told; it verifies on the CPU in every other test here.
    assert verification._read_reference(checkpoint)["device"] == "cpu"
