"""A checkpoint loads where our package does not exist."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from intraslice_core.checkpoints import CheckpointWriter
from tests.intraslice_core.modeling.test_intraslice_llama import irregular, tokens
from tests.intraslice_core.tiny_models import tiny_llama

# -S keeps the editable install's .pth file from running; the packages themselves are put back.
LOADER = """
import sys
sys.path.append(sys.argv[1])
import importlib.util
assert importlib.util.find_spec("intraslice_core") is None
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[2], trust_remote_code=True)
tokens = torch.load(sys.argv[3], weights_only=True)
mask = torch.ones_like(tokens)
with torch.no_grad():
    logits = model(tokens).logits
cached = model.generate(tokens, attention_mask=mask, max_new_tokens=8, do_sample=False)
model.config.use_cache = model.generation_config.use_cache = False
bare = model.generate(tokens, attention_mask=mask, max_new_tokens=8, do_sample=False)
assert torch.equal(cached, bare)
assert AutoTokenizer.from_pretrained(sys.argv[2])("ab")["input_ids"]
trunk = AutoModel.from_pretrained(sys.argv[2], trust_remote_code=True)
assert type(trunk).__name__ == "IntraSliceLlamaModel"
assert "intraslice_core" not in sys.modules
torch.save((logits, cached), sys.argv[4])
"""


@pytest.mark.parametrize("written_by", ["writer", "save_pretrained"])
def test_checkpoint_loads_without_our_package(tmp_path: Path, written_by: str) -> None:
    model = irregular()
    dense, out = tiny_llama(tmp_path / "dense"), tmp_path / "out"
    if written_by == "writer":
        with CheckpointWriter(out, max_shard_bytes=60_000) as writer:
            writer.add({n: t for n, t in model.state_dict().items() if n != "lm_head.weight"})
            writer.finish(model.config, dense)
    else:
        model.save_pretrained(out)
        (out / "tokenizer.json").write_bytes((dense / "tokenizer.json").read_bytes())
        settings = (dense / "tokenizer_config.json").read_bytes()
        (out / "tokenizer_config.json").write_bytes(settings)
    auto_map = json.loads((out / "config.json").read_text())["auto_map"]
    assert set(auto_map) == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}
    torch.save(tokens(), tmp_path / "tokens.pt")
    command = [sys.executable, "-I", "-S", "-c", LOADER, sysconfig.get_path("purelib")]
    command += [str(out), str(tmp_path / "tokens.pt"), str(tmp_path / "logits.pt")]
    environment = {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    logits, generated = torch.load(tmp_path / "logits.pt", weights_only=True)
    with torch.no_grad():
        torch.testing.assert_close(logits, model(tokens()).logits, atol=1e-5, rtol=1e-5)
    assert generated.shape[0] == 2
