"""Checkpoints load without the IntraSlice package, by the code files that travel with them."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch

from intraslice_core.checkpoints.writer import CheckpointWriter
from intraslice_core.modeling import IntraSliceForCausalLM
from tests.intraslice_core.modeling.cutting import cut_model, cuts_without_modules
from tests.intraslice_core.modeling.dense_families import FAMILIES, tokens
from tests.intraslice_core.tiny_models import tiny_llama

CODE_FILES = {
    "components_intraslice.py",
    "configuration_intraslice.py",
    "heads_intraslice.py",
    "modeling_intraslice.py",
}

# -S keeps the editable install's .pth file from running; the packages themselves are put back.
LOADER = """
import sys
sys.path.append(sys.argv[1])
import importlib.util
assert importlib.util.find_spec("intraslice_core") is None
from pathlib import Path
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
tokens = torch.load(sys.argv[3], weights_only=True)
mask = torch.ones_like(tokens)
options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "use_cache": True}
for checkpoint in sorted(Path(sys.argv[2]).iterdir()):
    model = AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=True)
    with torch.no_grad():
        logits = model(tokens).logits
    cached = model.generate(tokens, **options)
    bare = model.generate(tokens, **(options | {"use_cache": False}))
    assert torch.equal(cached, bare), checkpoint
    torch.save((logits, cached), checkpoint / "result.pt")
trunk = AutoModel.from_pretrained(Path(sys.argv[2]) / "writer", trust_remote_code=True)
assert type(trunk).__name__ == "IntraSliceModel"
assert AutoTokenizer.from_pretrained(Path(sys.argv[2]) / "writer")("ab")["input_ids"]
assert "intraslice_core" not in sys.modules
"""


def sliced_models() -> dict[str, IntraSliceForCausalLM]:
    """Return models with every feature at least once, and one with removed modules."""
    models = {
        name: cut_model(FAMILIES[name]()) for name in ("phi", "phi4_mini", "gemma2", "gemma3")
    }
    models["removed"] = cut_model(FAMILIES["llama"](), cuts_without_modules(12))
    return models


def test_checkpoints_load_without_the_package(tmp_path: Path) -> None:
    models, out = sliced_models(), tmp_path / "out"
    for name, model in models.items():
        model.save_pretrained(out / name)
    models["writer"] = cut_model(FAMILIES["qwen3"]())
    with CheckpointWriter(out / "writer", max_shard_bytes=10_000) as writer:
        writer.add(models["writer"].state_dict())
        writer.finish(models["writer"].config, tiny_llama(tmp_path / "dense"))
    torch.save(tokens(), tmp_path / "tokens.pt")
    command = [sys.executable, "-I", "-S", "-c", LOADER, sysconfig.get_path("purelib")]
    command += [str(out), str(tmp_path / "tokens.pt")]
    environment = {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for name, model in models.items():
        assert {file.name for file in (out / name).glob("*.py")} == CODE_FILES
        auto_map = json.loads((out / name / "config.json").read_text())["auto_map"]
        assert {"AutoConfig", "AutoModel", "AutoModelForCausalLM"} <= set(auto_map)
        logits, generated = torch.load(out / name / "result.pt", weights_only=True)
        with torch.no_grad():
            torch.testing.assert_close(logits, model(tokens()).logits, atol=1e-5, rtol=1e-5)
        assert generated.shape[0] == 2
