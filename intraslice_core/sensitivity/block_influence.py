"""Block influence of decoder layers, `s = 1 - E cos(x_in, x_out)` (ShortGPT, arXiv 2403.03853).

One pass over the dense model measures it; it holds the hidden states of the calibration sequences
and one sum per layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from intraslice_core import decoder_layer
from intraslice_core.checkpoints.dense_model import DenseLayers
from intraslice_core.errors import NumericalError
from intraslice_core.files import atomic_file
from intraslice_core.linalg import WORKING_DTYPE
from intraslice_core.ranks import ALONE, Ranks
from intraslice_core.sensitivity.dense_pass import embedded, sequences_at_once
from intraslice_core.transfers import device_batches


class InfluenceAccumulator:
    """Sum of the cosines between a layer's input and output.

    Args:
        prefix_length: positions of the prefix at the beginning of every sequence. They are left
            out: layers hardly turn the long hidden states that many models have there.
        ranks: those whose tokens are averaged over.
    """

    def __init__(self, prefix_length: int = 0, ranks: Ranks = ALONE) -> None:
        self._prefix_length, self._ranks = prefix_length, ranks
        self._sum = torch.zeros((), dtype=WORKING_DTYPE)
        self._tokens = 0

    def add(self, before: Tensor, after: Tensor) -> None:
        """Add one batch of hidden states, (batch, sequence, hidden_size) each."""
        first, second = (
            hidden[:, self._prefix_length :].to(torch.promote_types(hidden.dtype, torch.float32))
            for hidden in (before, after)
        )
        cosines = F.cosine_similarity(first, second, dim=-1)
        self._sum = self._sum + cosines.sum(dtype=WORKING_DTYPE)
        self._tokens += cosines.numel()

    def influence(self) -> float:
        """Return `1 - E cos` over all tokens, 0 where the layer turns nothing, at most 2.

        Raises:
            NumericalError: if no tokens were added or a hidden state was not finite.
        """
        total, tokens = self._ranks.totals([float(self._sum), self._tokens])
        if tokens == 0:
            raise NumericalError("no tokens were seen")
        if math.isnan(total):
            raise NumericalError("a hidden state is NaN or infinite")
        return max(1.0 - total / tokens, 0.0)


def measure_block_influence(
    layers: DenseLayers,
    tokens: Tensor,
    *,
    batch_size: int,
    before_batch: Callable[[float], None],
    prefix_length: int = 0,
) -> tuple[float, ...]:
    """Pass the calibration through the dense model and return the influence of every layer.

    Args:
        layers: the dense model.
        tokens: calibration, (samples, length), int64.
        batch_size: sequences in one batch.
        before_batch: callback with the finished fraction; may raise to stop.
        prefix_length: positions of the prefix at the beginning of every sequence.

    Raises:
        NumericalError: naming the layer.
    """
    tokens = tokens[layers.ranks.share(len(tokens))]
    samples, length = tokens.shape
    hidden = embedded(layers, tokens)
    size = sequences_at_once(batch_size, length, layers.device)
    influences = []
    for layer in range(layers.num_layers):
        weights, settings = layers.weights(layer), layers.settings(layer)
        rotary = layers.rotary(layer, length)
        accumulator = InfluenceAccumulator(prefix_length, layers.ranks)
        for batch in device_batches(hidden, size, layers.device):
            before_batch((layer + batch.rows.start / samples) / layers.num_layers)
            after = decoder_layer.forward(batch.values, weights, settings, rotary)
            accumulator.add(batch.values, after)
            batch.replace(after)
        try:
            influences.append(accumulator.influence())
        except NumericalError as error:
            raise NumericalError(error.message, layer=layer, hint=error.hint) from error
    return tuple(influences)


# -- cache -------------------------------------------------------------------------------------


def save_block_influence(file: Path, influences: tuple[float, ...]) -> None:
    """Write the influences to a safetensors file, atomically."""
    with atomic_file(file) as partial:
        save_file({"influence": torch.tensor(influences, dtype=WORKING_DTYPE)}, partial)


def load_block_influence(file: Path) -> tuple[float, ...] | None:
    """Return the file's influences; None if it does not exist or is damaged."""
    try:
        influences: list[float] = load_file(file)["influence"].tolist()
    except (FileNotFoundError, SafetensorError):
        return None
    return tuple(influences)
