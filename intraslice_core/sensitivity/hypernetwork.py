"""Hypernetwork that learns what modules read and write of the residual stream (DISP-LLM).

A small recurrent network maps a fixed random input for every selection (arXiv 2410.11988, section
3.3) to logits of all its dimensions. In training, masks are drawn by a Gumbel-sigmoid,

    m = sigmoid((logit + g + 3) / 0.4),   g = -log(-log u),   u uniform in (0, 1),

and the loss is the cross-entropy of the masked model plus `16 log(max(r, p) / min(r, p))`, with the
share p of the parameters to keep and the share r that a second draw, rounded to 0 or 1, keeps; its
gradient is that of the values before rounding (straight-through). The weights of the model stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intraslice_core.checkpoints.dense_model import DenseLayers
from intraslice_core.config import MaskTrainingConfig
from intraslice_core.errors import NumericalError
from intraslice_core.plan import ModelGeometry
from intraslice_core.sensitivity.mask_gradients import mask_gradients
from intraslice_core.sensitivity.mask_steps import MaskProgress, train_masks
from intraslice_core.sensitivity.masked_layer import ResidualPartMasks

TEMPERATURE = 0.4
OFFSET = 3.0
"""Added to the logits, so that nearly everything is kept at first."""
PENALTY = 16.0
WEIGHT_DECAY = 0.05
EMBEDDING = 32
"""Width of a selection's input; the recurrent network has twice as many units each way."""
_SELECTIONS = 5
"""Selections of a layer: reads and writes of both modules, and neurons."""
_PARAMETERS, _FIRST, _SECOND = "parameters", "first_moments", "second_moments"
_MOMENTS = {_FIRST: "exp_avg", _SECOND: "exp_avg_sq"}


class Hypernetwork(nn.Module):
    """Logits of the dimensions of every selection.

    Args:
        sizes: dimensions of every selection.
        seed: of inputs and initial weights.
    """

    inputs: Tensor

    def __init__(self, sizes: Sequence[int], seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.recurrent = nn.GRU(EMBEDDING, 2 * EMBEDDING, bidirectional=True)
            self.norm = nn.LayerNorm(4 * EMBEDDING)
            self.outputs = nn.ModuleList(
                nn.Linear(4 * EMBEDDING, size, bias=False) for size in sizes
            )
            self.register_buffer("inputs", torch.randn(len(sizes), 1, EMBEDDING))

    def forward(self) -> list[Tensor]:
        """Return the logits of every selection, (size,) each."""
        states, _ = self.recurrent(self.inputs)
        hidden = F.gelu(self.norm(states.squeeze(1)))
        return [output(state) for output, state in zip(self.outputs, hidden, strict=True)]


def selection_sizes(geometry: ModelGeometry) -> tuple[int, ...]:
    """Return the dimensions of every selection, those of a layer in the order of its masks."""
    hidden = geometry.hidden_size
    own = (hidden, hidden, hidden, hidden, geometry.intermediate_size)
    return own * geometry.num_hidden_layers


def gumbel_sigmoid(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Return a draw of masks in (0, 1), shape of `logits`."""
    uniform = torch.rand(logits.shape, generator=generator)
    tiny = 1e-20
    noise = -torch.log(-torch.log(uniform + tiny) + tiny)
    return torch.sigmoid((logits + noise + OFFSET) / TEMPERATURE)


def rounded(masks: Tensor) -> Tensor:
    """Return masks of 0 or 1 with the gradient of the values before rounding."""
    return masks + (masks.round() - masks).detach()


def kept_share(masks: Sequence[Tensor], geometry: ModelGeometry) -> Tensor:
    """Return the share of the compressible parameters that masks keep, a scalar.

    Args:
        masks: of every selection.
        geometry: of the dense model.
    """
    counts = torch.stack([mask.sum() for mask in masks]).view(-1, _SELECTIONS)
    dense = geometry.dense_layer()
    queries, groups = geometry.num_attention_heads, geometry.num_key_value_heads
    read = (queries + 2 * groups) * geometry.head_dim
    written = queries * geometry.head_dim
    attention = counts[:, 0] * read + counts[:, 1] * written
    rows = (geometry.mlp_projections - 1) * counts[:, 2] + counts[:, 3]
    total = geometry.num_hidden_layers * dense.parameters(geometry)
    return (attention + rows * counts[:, 4]).sum() / total


def penalty(share: Tensor, keep: float) -> Tensor:
    """Return `16 log(max(r, p) / min(r, p))`, a scalar.

    Args:
        share: r, the share that is kept.
        keep: p, the share to keep.
    """
    return PENALTY * (torch.log(share) - torch.log(torch.tensor(keep))).abs()


@dataclass(frozen=True, kw_only=True)
class TrainedLogits:
    """Logits of one layer's selections; higher ones stay."""

    attention_reads: Tensor
    attention_writes: Tensor
    mlp_reads: Tensor
    mlp_writes: Tensor
    neurons: Tensor


class HypernetworkTraining:
    """A hypernetwork in training.

    Args:
        geometry: of the dense model.
        keep: share of the compressible parameters to keep.
        config: bounds and learning rate.
    """

    def __init__(self, geometry: ModelGeometry, keep: float, config: MaskTrainingConfig) -> None:
        self.progress = MaskProgress()
        self.geometry, self.keep, self._config = geometry, keep, config
        with torch.inference_mode(False):
            self.network = Hypernetwork(selection_sizes(geometry))
            self._parameters = list(self.network.parameters())
            self._optimizer = torch.optim.AdamW(
                self._parameters, lr=config.learning_rate, weight_decay=WEIGHT_DECAY
            )

    def run(
        self,
        layers: DenseLayers,
        tokens: Tensor,
        *,
        prefix_length: int,
        before_step: Callable[[], None],
    ) -> None:
        """Train until a bound is reached.

        Args:
            layers: the dense model.
            tokens: calibration, (samples, length), int64.
            prefix_length: positions of the prefix at the beginning of every sequence.
            before_step: callback, which may save the state or raise to stop.

        Raises:
            NumericalError: if an activation or a gradient is not finite.
        """

        def take(batch: Tensor) -> None:
            self._take(layers, batch, prefix_length)

        train_masks(tokens, self._config, self.progress, take=take, before_step=before_step)

    def _take(self, layers: DenseLayers, batch: Tensor, prefix_length: int) -> None:
        # Draws follow from the number of the step, so that no generator has to be saved.
        generator = torch.Generator().manual_seed(self.progress.step)
        with torch.inference_mode(False), torch.enable_grad():
            logits = self.network()
            soft = [gumbel_sigmoid(own, generator) for own in logits]
            hard = [rounded(gumbel_sigmoid(own, generator)) for own in logits]
            masks = [
                ResidualPartMasks(
                    attention_reads=own[0],
                    attention_writes=own[1],
                    mlp_reads=own[2],
                    mlp_writes=own[3],
                    neurons=own[4],
                )
                for own in _by_layer([mask.detach().to(layers.device) for mask in soft])
            ]
            gradients = mask_gradients(layers, batch, masks, prefix_length=prefix_length)
            flat = [gradient.cpu() for own in gradients.layers for gradient in own]
            loss = penalty(kept_share(hard, self.geometry), self.keep)
            for mask, gradient in zip(soft, flat, strict=True):
                loss = loss + (mask * gradient.to(mask)).sum()
            if not torch.isfinite(loss):
                raise NumericalError("the loss of the hypernetwork is NaN or infinite")
            self._optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            self._optimizer.step()
        self.progress.step += 1

    def logits(self) -> tuple[TrainedLogits, ...]:
        """Return the logits of every layer."""
        with torch.inference_mode(False), torch.no_grad():
            layers = _by_layer(self.network())
        return tuple(
            TrainedLogits(
                attention_reads=own[0],
                attention_writes=own[1],
                mlp_reads=own[2],
                mlp_writes=own[3],
                neurons=own[4],
            )
            for own in layers
        )

    # -- state -----------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Return weights and moments of AdamW by name, flat."""
        moments = {
            name: torch.cat([self._moment(part, moment).flatten() for part in self._parameters])
            for name, moment in _MOMENTS.items()
        }
        weights = torch.cat([part.detach().flatten() for part in self._parameters])
        return {_PARAMETERS: weights.clone(), **moments}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
        """Continue from `tensors()` and the facts of the progress."""
        self.progress = MaskProgress(
            step=int(facts["step"]), tokens=int(facts["tokens"]), seconds=float(facts["seconds"])
        )
        sizes = [part.numel() for part in self._parameters]
        with torch.inference_mode(False), torch.no_grad():
            weights = torch.split(tensors[_PARAMETERS].clone(), sizes)
            for part, flat in zip(self._parameters, weights, strict=True):
                part.copy_(flat.view_as(part))
                self._optimizer.state[part]["step"] = torch.tensor(float(self.progress.step))
            for name, moment in _MOMENTS.items():
                moments = torch.split(tensors[name].clone(), sizes)
                for part, flat in zip(self._parameters, moments, strict=True):
                    self._optimizer.state[part][moment] = flat.view_as(part).clone()

    def _moment(self, part: nn.Parameter, moment: str) -> Tensor:
        """Return a moment of AdamW, zero before the first step."""
        value: Tensor | None = self._optimizer.state[part].get(moment)
        return torch.zeros_like(part.detach()) if value is None else value


def _by_layer(selections: Sequence[Tensor]) -> list[Sequence[Tensor]]:
    """Return the selections of every layer, from those of all layers in order."""
    return [
        selections[first : first + _SELECTIONS] for first in range(0, len(selections), _SELECTIONS)
    ]
