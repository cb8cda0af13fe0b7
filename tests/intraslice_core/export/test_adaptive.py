"""Target `adaptive` writes DeciLM checkpoints with a different MLP width in each layer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from intraslice_core.errors import ConfigurationError
from intraslice_core.pipeline import compress_model
from tests.intraslice_core.export.models import (
    TOKENS,
    VOCAB_SIZE,
    compress_to_gguf,
    config,
    llama_with_merges,
    load,
    logits,
    merging_tokenizer,
)
from tests.intraslice_core.tiny_models import (
    save_checkpoint,
    tiny_checkpoint,
    tiny_llama,
    tiny_model,
)


def test_layers_differ_only_in_mlp_width(tmp_path: Path) -> None:
    dense = llama_with_merges(tmp_path / "dense")
    report = compress_model(str(dense), tmp_path / "out", config("adaptive", ratio=0.3))
    whole = report.geometry.dense_layer()
    for layer in report.plan.layers:
        assert layer == whole.model_copy(update={"intermediate_size": layer.intermediate_size})
    assert report.plan.removed_fraction(report.geometry) == pytest.approx(0.3, abs=0.02)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["model_type"] == "nemotron-nas"
    assert [block["ffn"]["intermediate_size"] for block in written["block_configs"]] == [
        layer.intermediate_size for layer in report.plan.layers
    ]
    (verified,) = report.verified
    assert verified.loaded_by == ("checkpoint", "package")
    assert verified.max_abs_difference <= verified.tolerance


def test_removing_unused_neurons_is_lossless(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        for index, layer in enumerate(model.model.layers):
            layer.mlp.down_proj.weight[:, 40 + 8 * index :] = 0.0
    save_checkpoint(model, tmp_path / "dense")
    kept_fraction = sum(40 + 8 * index for index in range(3)) / (3 * 64)
    mlp, attention = 3 * 64 * 48, 48 * 16 * (4 + 2) * 2
    ratio = (1.0 - kept_fraction) * mlp / (mlp + attention)
    report = compress_model(
        str(tmp_path / "dense"), tmp_path / "out", config("adaptive", ratio=ratio), verify=False
    )
    assert [layer.intermediate_size for layer in report.plan.layers] == [40, 48, 56]
    torch.testing.assert_close(logits(load(tmp_path / "out")), logits(model), atol=1e-3, rtol=0.0)


def test_mistral_is_written_as_decilm(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": VOCAB_SIZE}
    more = {"sliding_window": None, "max_position_embeddings": 1024}
    dense = tiny_checkpoint(tmp_path / "dense", "mistral", **sizes, **more)
    merging_tokenizer().save_pretrained(dense)
    settings = config("adaptive", ratio=0.3, exports=("safetensors", "gguf-f16"))
    compress_to_gguf(dense, tmp_path / "out", settings)
    assert (
        json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "nemotron-nas"
    )


def test_attention_of_little_effect_is_removed_except_in_the_first_layer(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        for index, layer in enumerate(model.model.layers):
            # The first has the least effect, but caches need it.
            layer.self_attn.o_proj.weight.mul_(1e-3 if index else 1e-6)
    save_checkpoint(model, tmp_path / "dense")
    settings = config("adaptive", ratio=1 / 3, module_cap=1.0)
    report = compress_model(str(tmp_path / "dense"), tmp_path / "out", settings, verify=False)
    heads = [layer.num_attention_heads for layer in report.plan.layers]
    assert heads[0] == 4
    assert heads[1:] == [0, 0]
    loaded = load(tmp_path / "out")
    assert loaded.model.layers[1].self_attn is None
    options = {"max_new_tokens": 12, "do_sample": False}
    cached, plain = (loaded.generate(TOKENS, use_cache=cache, **options) for cache in (True, False))
    assert torch.equal(cached, plain)


def test_mlp_of_no_effect_keeps_a_few_neurons(tmp_path: Path) -> None:
    dense = llama_with_merges(tmp_path / "dense")
    model = load(dense)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(1e-6)
    model.save_pretrained(dense)
    settings = config("adaptive", ratio=0.3, module_cap=1.0)
    report = compress_model(str(dense), tmp_path / "out", settings, verify=False)
    widths = [layer.intermediate_size for layer in report.plan.layers]
    assert 0 < widths[1] < min(widths[0], widths[2])


def test_uniform_allocation_gives_equal_widths(tmp_path: Path) -> None:
    dense = llama_with_merges(tmp_path / "dense")
    settings = config("adaptive", ratio=0.3, allocation="uniform")
    report = compress_model(str(dense), tmp_path / "out", settings, verify=False)
    assert {layer.qk_pairs for layer in report.plan.layers} == {8}
    widths = [layer.intermediate_size for layer in report.plan.layers]
    assert max(widths) - min(widths) <= 4


def test_models_and_settings_that_the_format_cannot_express_are_rejected(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "qwen2", "qwen2")
    with pytest.raises(ConfigurationError, match=r"does not support qwen2 models.*llama, mistral"):
        compress_model(str(tmp_path / "qwen2"), tmp_path / "out", config("adaptive", ratio=0.3))
    tiny_checkpoint(tmp_path / "window", "mistral")
    with pytest.raises(ConfigurationError, match="target adaptive does not support sliding-window"):
        compress_model(str(tmp_path / "window"), tmp_path / "out", config("adaptive", ratio=0.3))
    tiny_llama(tmp_path / "llama")
    settings = config("adaptive", ratio=0.3, allocation="fisher")
    with pytest.raises(ConfigurationError, match="does not support allocation fisher") as rejected:
        compress_model(str(tmp_path / "llama"), tmp_path / "out", settings)
    assert rejected.value.field == "compression.allocation"
    assert not (tmp_path / "out").exists()
