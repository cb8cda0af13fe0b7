"""Compression under a memory limit of the process that the weights, or copies of moments, exceed.

The limit is RLIMIT_DATA. Since Linux 4.7 it counts private writable memory: the heap and anonymous
mappings. It does not count read-only or shared file mappings, which belong to the page cache and
are dropped when memory is short. RLIMIT_AS would count the address space of every library and
mapped file, and so reject a large file however little of it is in memory.

Weights are read through such mappings, and with `offload_dir` hidden states are written through
them. The result is not loaded at the end (`verify=False`), because transformers would load all of
it in float32.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from intraslice_core.checkpoints.weight_files import INDEX_FILE
from tests.intraslice_core.tiny_models import tiny_config, tiny_llama, tiny_tokenizer

pytestmark = [pytest.mark.slow]

LAYERS, WIDTH, INNER, VOCABULARY = 48, 768, 512, 49152
SPARE = 160 * 2**20
"""Memory that the process may use in addition to that of its imports."""
NEURONS = 2560
"""Neurons whose Gram matrix takes 50 MiB."""
SPARE_OF_WIDE = 215 * 2**20
"""Memory for three Gram matrices beside the rest of the run; with copies it holds nearly five."""

LIMITED = """
import resource, sys
from pathlib import Path
import torch
from intraslice_core.device import bound_allocator
bound_allocator()
from intraslice_core.pipeline import compress_model
from intraslice_core.config import CalibrationConfig, CompressionConfig

model, out, states, spare, what = sys.argv[1:]
torch.set_num_threads(1)
torch.ones(64, 64) @ torch.ones(64, 64)
status = open("/proc/self/status").read()
taken = int(status.split("VmData:")[1].split()[0]) * 1024
limit = taken + int(spare)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
print(limit, flush=True)
if what == "copies":
    from intraslice_core import residency
    residency.host_memory_bytes = lambda: 2**60
if what == "load":
    from transformers import AutoModelForCausalLM
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
else:
    config = CompressionConfig(
        ratio=0.3,
        dtype="float32",
        batch_size=2,
        allocation="uniform",  # skips the comparison of two plans, which takes seconds
        # Text of the model itself needs a model that fits into memory.
        calibration=CalibrationConfig(
            source="pydoc", samples=8, sequence_length=64, self_share=0.0
        ),
    )
    messages = []
    compress_model(model, Path(out), config, verify=False, offload_dir=Path(states),
                   on_progress=lambda event: messages.append(event.message))
    print(any("in place" in message for message in messages))
"""


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of many small float32 layers and a common vocabulary, written one at a time."""
    folder = tmp_path_factory.mktemp("large") / "dense"
    folder.mkdir()
    sizes = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS}
    config = tiny_config(**sizes, head_dim=64, num_attention_heads=4, num_key_value_heads=2)
    config.vocab_size, config.tie_word_embeddings = VOCABULARY, False
    config.architectures = ["LlamaForCausalLM"]
    config.dtype = torch.float32
    config.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    torch.manual_seed(0)
    shapes = {
        "self_attn.q_proj": (256, WIDTH),
        "self_attn.k_proj": (128, WIDTH),
        "self_attn.v_proj": (128, WIDTH),
        "self_attn.o_proj": (WIDTH, 256),
        "mlp.gate_proj": (INNER, WIDTH),
        "mlp.up_proj": (INNER, WIDTH),
        "mlp.down_proj": (WIDTH, INNER),
    }
    index = {}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        tensors = {
            f"{prefix}{name}.weight": torch.randn(shape) * 0.02 for name, shape in shapes.items()
        }
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = torch.ones(WIDTH)
        if layer == 0:
            tensors["model.embed_tokens.weight"] = torch.randn(VOCABULARY, WIDTH)
            tensors["lm_head.weight"] = torch.randn(VOCABULARY, WIDTH) * 0.02
            tensors["model.norm.weight"] = torch.ones(WIDTH)
        name = f"model-{layer:05d}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, name)
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def limited(
    dense: Path, place: Path, what: str, spare: int = SPARE
) -> subprocess.CompletedProcess[str]:
    arguments = (str(dense), str(place / "out"), str(place / "states"), str(spare), what)
    return subprocess.run(
        [sys.executable, "-c", LIMITED, *arguments],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "OMP_NUM_THREADS": "1",
            "MALLOC_ARENA_MAX": "1",  # every further arena reserves 64 MiB
        },
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_model_larger_than_the_memory_limit_is_compressed(dense: Path, tmp_path: Path) -> None:
    weights = sum(file.stat().st_size for file in dense.glob("*.safetensors"))
    whole = limited(dense, tmp_path, "load")
    assert weights > int(whole.stdout.split()[0])
    assert whole.returncode != 0
    assert "memory" in whole.stderr.lower(), whole.stderr[-2000:]
    done = limited(dense, tmp_path, "compress")
    assert done.returncode == 0, done.stderr[-2000:]
    assert weights > int(done.stdout.split()[0])
    files = (tmp_path / "out").glob("*.safetensors")
    written = sum(file.stat().st_size for file in files)
    embeddings = 2 * VOCABULARY * WIDTH * 4
    layers = weights - embeddings
    assert layers > 2 * SPARE
    assert 0.6 * layers < written - embeddings < 0.75 * layers


def test_a_layer_is_factorised_in_place_where_the_limit_excludes_copies(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": NEURONS, "num_hidden_layers": 1}
    wide = tiny_llama(tmp_path / "wide", **sizes)
    done = limited(wide, tmp_path, "compress", SPARE_OF_WIDE)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[1] == "True"
    copies = limited(wide, tmp_path / "copies", "copies", SPARE_OF_WIDE)
    assert copies.returncode != 0
    assert "memory" in copies.stderr.lower(), copies.stderr[-2000:]
