"""Pass over the dense model that measures means and mean squares of inner activations.

It holds the hidden states of the calibration sequences and a few vectors per module.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from intraslice_core import decoder_layer
from intraslice_core.checkpoints.dense_model import DenseLayers
from intraslice_core.decoder_layer import LayerSettings, LayerWeights, Rotary
from intraslice_core.diagonal_moments import (
    DiagonalAccumulator,
    DiagonalMoments,
    LayerActivations,
)
from intraslice_core.errors import NumericalError
from intraslice_core.files import atomic_file
from intraslice_core.plan import Module
from intraslice_core.ranks import ALONE, Ranks
from intraslice_core.sensitivity.dense_pass import embedded, sequences_at_once
from intraslice_core.transfers import device_batches

MODULES: tuple[Module, ...] = ("attention", "mlp")


class ActivationPass:
    """Pass of hidden states through one layer, with the moments of its inner activations."""

    def __init__(
        self,
        weights: LayerWeights,
        settings: LayerSettings,
        rotary: Rotary,
        prefix_length: int,
        ranks: Ranks = ALONE,
    ) -> None:
        self._weights, self._settings, self._rotary = weights, settings, rotary
        self._attention = DiagonalAccumulator(prefix_length, ranks)
        self._mlp = DiagonalAccumulator(prefix_length, ranks)

    def advance(self, hidden: Tensor) -> Tensor:
        """Add one batch and return the hidden states after the layer.

        Args:
            hidden: before the layer, (batch, sequence, hidden_size), on the layer's device.
        """
        weights, settings = self._weights, self._settings
        normed = decoder_layer.attention_inputs(hidden, weights, settings)
        inner = decoder_layer.attention_inner(normed, weights, settings, self._rotary)
        self._attention.add(inner)
        between = hidden + decoder_layer.added(
            inner, weights.attention_output, weights.attention_output_norm, settings
        )
        read = hidden if settings.parallel_block else between
        neurons = decoder_layer.mlp_inner(read, weights, settings)
        self._mlp.add(neurons)
        return between + decoder_layer.added(
            neurons, weights.mlp_output, weights.mlp_output_norm, settings
        )

    def moments(self) -> LayerActivations:
        """Return the moments of all batches, those of all ranks.

        Raises:
            NumericalError: naming the module.
        """
        return LayerActivations(
            attention=_located(self._attention, "attention"), mlp=_located(self._mlp, "mlp")
        )


def _located(accumulator: DiagonalAccumulator, module: Module) -> DiagonalMoments:
    try:
        return accumulator.moments()
    except NumericalError as error:
        raise NumericalError(error.message, module=module, hint=error.hint) from error


def measure_activations(
    layers: DenseLayers,
    tokens: Tensor,
    *,
    batch_size: int,
    before_batch: Callable[[float], None],
    prefix_length: int = 0,
    cut: Callable[[int, LayerWeights], LayerWeights] | None = None,
) -> tuple[LayerActivations, ...]:
    """Pass the calibration through the dense model and return the moments of all layers.

    Args:
        layers: the dense model.
        tokens: calibration, (samples, length), int64.
        batch_size: sequences in one batch.
        before_batch: callback with the finished fraction; may raise to stop.
        prefix_length: positions of the prefix at the beginning of every sequence; they are passed
            but not counted.
        cut: returns a layer that takes the place of a dense one; None passes the dense model.

    Raises:
        NumericalError: naming layer and module.
    """
    tokens = tokens[layers.ranks.share(len(tokens))]
    samples, length = tokens.shape
    hidden = embedded(layers, tokens)
    size = sequences_at_once(batch_size, length, layers.device)
    measured = []
    for layer in range(layers.num_layers):
        weights = layers.weights(layer)
        passed = ActivationPass(
            weights if cut is None else cut(layer, weights),
            layers.settings(layer),
            layers.rotary(layer, length),
            prefix_length,
            layers.ranks,
        )
        for batch in device_batches(hidden, size, layers.device):
            before_batch((layer + batch.rows.start / samples) / layers.num_layers)
            batch.replace(passed.advance(batch.values))
        try:
            measured.append(passed.moments())
        except NumericalError as error:
            raise NumericalError(
                error.message, layer=layer, module=error.module, hint=error.hint
            ) from error
    return tuple(measured)


# -- cache -------------------------------------------------------------------------------------


def save_activations(file: Path, measured: tuple[LayerActivations, ...]) -> None:
    """Write the moments to a safetensors file, atomically."""
    tensors = {
        f"{layer}.{module}.{name}": tensor.cpu().contiguous()
        for layer, activations in enumerate(measured)
        for module in MODULES
        for name, tensor in getattr(activations, module).tensors().items()
    }
    with atomic_file(file) as partial:
        save_file(tensors, partial)


def load_activations(file: Path) -> tuple[LayerActivations, ...] | None:
    """Return the file's moments, on the CPU; None if it does not exist or is damaged."""
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
    except (FileNotFoundError, SafetensorError):
        return None
    parts: dict[int, dict[str, dict[str, Tensor]]] = {}
    for name, tensor in tensors.items():
        layer, module, moment = name.split(".")
        parts.setdefault(int(layer), {}).setdefault(module, {})[moment] = tensor
    return tuple(
        LayerActivations(
            **{module: DiagonalMoments(**moments) for module, moments in parts[layer].items()}
        )
        for layer in sorted(parts)
    )
