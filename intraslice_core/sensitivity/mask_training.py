"""Solution path of masks by differential inclusions (SPP, arXiv 2501.03289).

Every unit has a mask alpha, 1 at first, and two more variables, z and gamma, 0 at first. With the
augmented loss, loss(alpha) + Σ c (alpha - gamma)², a step updates

    alpha ← alpha - η · AdamW(∂loss/∂alpha + 2c (alpha - gamma))
    z ← z + η κ (alpha - gamma)
    gamma ← max(z - λ, 0)

with AdamW's step η, the learning rate over the bias correction of the first moment. The coupling c
pulls the masks to gamma = 0, and the loss resists where a unit matters: such masks stay large and
reach λ first. The number of steps until gamma leaves zero orders all units; those that have not
left when the training ends follow in the order of z.

A unit's coupling is its number of parameters times the median of |∂loss/∂alpha| per parameter in
the first step, so that the pull is as strong as the gradients' noise for a typical unit of any
model, and a large unit has to matter more.

λ is half of what z reaches in the given number of steps where a mask stays 1. A unit would reach
the published 0.1 within 100 steps at the published rate, before any mask has moved by more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from intraslice_core.checkpoints.dense_model import DenseLayers
from intraslice_core.config import MaskTrainingConfig
from intraslice_core.plan import ModelGeometry
from intraslice_core.sensitivity.mask_gradients import mask_gradients
from intraslice_core.sensitivity.mask_steps import MaskProgress, train_masks
from intraslice_core.sensitivity.masked_layer import LayerMasks
from intraslice_core.sensitivity.solution_path import UnitRanks

KAPPA = 1.0
EPSILON = 1e-4
BETAS = (0.9, 0.999)

_TENSORS = ("alpha", "first", "second", "z", "left", "coupling")


@dataclass(kw_only=True)
class PathState(MaskProgress):
    """State of the training; tensors are of all units, (units,), float64, on the CPU."""

    threshold: float
    """λ: gamma leaves zero where z exceeds it."""
    alpha: Tensor
    first: Tensor = field(init=False)
    """AdamW's first moment."""
    second: Tensor = field(init=False)
    """AdamW's second moment."""
    z: Tensor = field(init=False)
    left: Tensor = field(init=False)
    """Step in which gamma left zero; 0 before."""
    coupling: Tensor = field(init=False)
    """0 before the first step."""

    def __post_init__(self) -> None:
        for name in _TENSORS[1:]:
            setattr(self, name, torch.zeros_like(self.alpha))

    @classmethod
    def start(cls, units: int, threshold: float) -> PathState:
        """Return the state before the first step."""
        return cls(alpha=torch.ones(units, dtype=torch.float64), threshold=threshold)

    @property
    def gamma(self) -> Tensor:
        """Return gamma, (units,)."""
        return (self.z - self.threshold).clamp_min(0.0)

    def update(self, gradient: Tensor, learning_rate: float) -> None:
        """Take one step.

        Args:
            gradient: of the loss at all masks, (units,), float64.
            learning_rate: of AdamW.
        """
        self.step += 1
        gamma = self.gamma
        gradient = gradient + 2.0 * self.coupling * (self.alpha - gamma)
        corrections = [1.0 - beta**self.step for beta in BETAS]
        self.first.mul_(BETAS[0]).add_(gradient, alpha=1.0 - BETAS[0])
        self.second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1.0 - BETAS[1])
        size = learning_rate / corrections[0]
        scale = self.second.sqrt() / math.sqrt(corrections[1]) + EPSILON
        self.alpha.addcdiv_(self.first, scale, value=-size)
        self.z.add_(self.alpha - gamma, alpha=size * KAPPA)
        leaves = (self.gamma > 0.0) & (self.left == 0.0)
        self.left[leaves] = float(self.step)

    def ranks(self) -> Tensor:
        """Return the rank of every unit, (units,), float64; the first to leave has the highest."""
        left = self.left.numpy()
        steps = np.where(left > 0.0, left, np.inf)
        order = np.lexsort((-self.z.numpy(), steps))
        ranks = np.empty(len(order))
        ranks[order] = np.arange(len(order), 0, -1)
        return torch.from_numpy(ranks)

    def facts(self) -> dict[str, str]:
        """Return the numbers by name, as text."""
        return super().facts() | {"threshold": repr(self.threshold)}

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        return {name: getattr(self, name) for name in _TENSORS}

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> PathState:
        """Return the state of `tensors()` and `facts()`."""
        state = cls(
            alpha=tensors["alpha"],
            threshold=float(facts["threshold"]),
            step=int(facts["step"]),
            tokens=int(facts["tokens"]),
            seconds=float(facts["seconds"]),
        )
        for name in _TENSORS[1:]:
            setattr(state, name, tensors[name])
        return state


@dataclass(frozen=True, kw_only=True)
class MaskLayout:
    """Order of all masks of a model in one vector."""

    geometry: ModelGeometry

    @property
    def _sizes(self) -> tuple[int, int, int]:
        """Return the numbers of a layer's pairs, value dimensions and neurons."""
        groups = self.geometry.num_key_value_heads
        pairs, values = groups * self.geometry.rotary_pairs, groups * self.geometry.head_dim
        return pairs, values, self.geometry.intermediate_size

    @property
    def units(self) -> int:
        """Return the number of masks of all layers."""
        return self.geometry.num_hidden_layers * sum(self._sizes)

    def parts(self, vector: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return the pairs, values and neurons of every layer.

        Args:
            vector: of all units, (units,).

        Returns:
            For each layer (num_key_value_heads, rotary_pairs), (num_key_value_heads, head_dim) and
            (intermediate_size,).
        """
        groups = self.geometry.num_key_value_heads
        parts = []
        for own in vector.chunk(self.geometry.num_hidden_layers):
            pairs, values, neurons = torch.split(own, list(self._sizes))
            parts.append((pairs.view(groups, -1), values.view(groups, -1), neurons))
        return parts

    def masks(self, vector: Tensor, device: torch.device) -> list[LayerMasks]:
        """Return the masks of every layer in float32 on a device; `vector` as in `parts`."""
        on_device = vector.to(device, torch.float32)
        return [
            LayerMasks(pairs=pairs, values=values, neurons=neurons)
            for pairs, values, neurons in self.parts(on_device)
        ]

    def unit_parameters(self) -> Tensor:
        """Return the compressible parameters of every unit, (units,), float64, on the CPU."""
        geometry, dense = self.geometry, self.geometry.dense_layer()
        groups = geometry.num_key_value_heads

        def parameters(dimension: str) -> float:
            smaller = {dimension: getattr(dense, dimension) - 1}
            return float(
                dense.parameters(geometry) - dense.model_copy(update=smaller).parameters(geometry)
            )

        each = (
            parameters("qk_pairs") / groups,
            parameters("v_head_dim") / groups,
            parameters("intermediate_size"),
        )
        own = [
            torch.full((size,), value, dtype=torch.float64)
            for size, value in zip(self._sizes, each, strict=True)
        ]
        return torch.cat(own).repeat(geometry.num_hidden_layers)

    def vector(self, gradients: Sequence[Sequence[Tensor]]) -> Tensor:
        """Return the gradients of all masks in one vector, (units,), float64, on the CPU."""
        flat = [gradient.flatten() for own in gradients for gradient in own]
        return torch.cat(flat).to("cpu", torch.float64)

    def ranks(self, vector: Tensor) -> tuple[UnitRanks, ...]:
        """Return the ranks of every layer; `vector` as in `parts`."""
        return tuple(
            UnitRanks(pairs=pairs, values=values, neurons=neurons)
            for pairs, values, neurons in self.parts(vector)
        )


def path_threshold(config: MaskTrainingConfig, length: int) -> float:
    """Return λ for a training on sequences of so many tokens, by its bound on tokens."""
    steps = max(config.max_tokens // length, 1)
    return 0.5 * config.learning_rate * KAPPA * steps


def path_coupling(gradient: Tensor, parameters: Tensor) -> Tensor:
    """Return the coupling of every unit, (units,), float64.

    Args:
        gradient: of the loss at all masks in the first step, (units,), float64.
        parameters: of every unit, (units,), float64.
    """
    return (gradient.abs() / parameters).median() * parameters


def train_path(
    layers: DenseLayers,
    tokens: Tensor,
    layout: MaskLayout,
    config: MaskTrainingConfig,
    state: PathState,
    *,
    prefix_length: int,
    before_step: Callable[[], None],
) -> None:
    """Train until a bound is reached, in place; the first step is always taken.

    Args:
        layers: the dense model.
        tokens: calibration, (samples, length), int64; a step takes one sequence.
        layout: of the masks.
        config: bounds and learning rate.
        state: of an interrupted training, or that before the first step.
        prefix_length: positions of the prefix at the beginning of every sequence.
        before_step: callback, which may save the state or raise to stop.

    Raises:
        NumericalError: if an activation or a gradient is not finite, naming the layer.
    """

    def take(batch: Tensor) -> None:
        masks = layout.masks(state.alpha, layers.device)
        measured = mask_gradients(layers, batch, masks, prefix_length=prefix_length)
        gradient = layout.vector(measured.layers)
        if state.step == 0:
            state.coupling = path_coupling(gradient, layout.unit_parameters())
        state.update(gradient, config.learning_rate)

    train_masks(tokens, config, state, take=take, before_step=before_step)
