"""Embedding and divergences of the dense model are those that transformers would compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from intraslice_core.checkpoints.dense_model import DenseLayerReader, divergences, mean_loss
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.errors import NumericalError
from tests.intraslice_core.tiny_models import save_checkpoint, tiny_family_model


@pytest.mark.parametrize("variant", ["gemma3", "opt"])
def test_embedding_of_a_bfloat16_checkpoint_is_computed_in_float32(
    tmp_path: Path, variant: str
) -> None:
    dense = save_checkpoint(tiny_family_model(variant).to(torch.bfloat16), tmp_path)
    tokens = torch.arange(3, 27).view(2, 12)
    model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)
    with torch.no_grad():
        expected = model(tokens, output_hidden_states=True).hidden_states[0]
    with CheckpointReader(dense) as reader:
        embedded = DenseLayerReader(reader, torch.device("cpu"), torch.float32).embed(tokens)
    assert torch.equal(embedded, expected)


@pytest.mark.parametrize("prefix_length", [0, 1, 2])
def test_divergences_are_those_of_the_whole_distributions(
    tmp_path: Path, prefix_length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = save_checkpoint(tiny_family_model("gemma2"), tmp_path)
    monkeypatch.setattr(DenseLayerReader, "logit_rows", 5)
    with CheckpointReader(dense) as reader, torch.inference_mode():
        layers = DenseLayerReader(reader, torch.device("cpu"), torch.float32)
        width = layers.embed(torch.zeros(1, dtype=torch.int64)).shape[-1]
        generator = torch.Generator().manual_seed(0)
        first, second = torch.randn(2, 2, 12, width, generator=generator)
        both = torch.stack((first, second))
        same, result = divergences(layers, first, both, prefix_length=prefix_length)
        (listed,) = divergences(layers, first, [second], prefix_length=prefix_length)
        spread = divergences(layers, first, both, prefix_length=prefix_length, stride=4)
        logs = [torch.log_softmax(layers.logits(rows).double(), -1) for rows in (first, second)]
    assert not same.any()
    expected = (logs[0].exp() * (logs[0] - logs[1])).sum(-1)[:, max(prefix_length - 1, 0) :]
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(listed, result)
    torch.testing.assert_close(spread[1], result[:, ::4], rtol=1e-4, atol=1e-6)


def test_predictions_that_overflow_are_numerical_errors(tmp_path: Path) -> None:
    dense = save_checkpoint(tiny_family_model("gemma2"), tmp_path)
    tokens = torch.arange(3, 27).view(2, 12)
    with CheckpointReader(dense) as reader, torch.inference_mode():
        layers = DenseLayerReader(reader, torch.device("cpu"), torch.float32)
        hidden = layers.embed(tokens)
        overflown = hidden.clone()
        overflown[1, 7] = torch.inf
        with pytest.raises(NumericalError, match="divergence of a compressed model contains NaN"):
            divergences(layers, hidden, [overflown])
        with pytest.raises(NumericalError, match="loss of a model is NaN or infinite"):
            mean_loss(layers, overflown, tokens)
