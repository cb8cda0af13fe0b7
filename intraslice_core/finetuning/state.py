"""The state of a training that an interrupted run saves and the next one resumes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from intraslice_core.resume_state import ResumeState

_ADAPTERS, _FIRST, _SECOND, _LOSSES = "adapters", "first_moments", "second_moments", "losses"


@dataclass(kw_only=True)
class TrainingState:
    """Progress of a training."""

    sequences: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    """Loss of each step, in nats per token."""

    @property
    def step(self) -> int:
        """Return the number of finished steps."""
        return len(self.losses)


class TrainingFile:
    """Adapters, their Adam moments and the training state, in one file that is replaced whole.

    A training is deterministic once the adapters are initialised, so no generator state is saved.
    The file stays on this machine: every save changes it, and the service mirrors only files that
    never change. A job that resumes on another machine finds its layers there and trains from the
    beginning.

    Args:
        resume_state: directory that holds the file; None saves nothing.
        key: digest of everything the training depends on.
        parameters: of the adapters, in a fixed order.
        optimizer: of these parameters.
    """

    def __init__(
        self,
        resume_state: ResumeState | None,
        key: str,
        parameters: Sequence[nn.Parameter],
        optimizer: torch.optim.AdamW,
    ) -> None:
        self._resume_state = resume_state
        self._key = key
        self._parameters = parameters
        self._optimizer = optimizer

    def restore(self) -> TrainingState:
        """Load parameters and optimizer state in place, if an interrupted run saved them."""
        saved = None if self._resume_state is None else self._resume_state.recovery(self._key)
        if saved is None:
            return TrainingState()
        tensors, facts = saved
        losses = tensors[_LOSSES].tolist()
        self._fill(self._parameters, tensors[_ADAPTERS])
        # Allocated as in the first step, for the memory alignment of an uninterrupted run.
        moments = {
            name: [torch.zeros_like(parameter) for parameter in self._parameters]
            for name in (_FIRST, _SECOND)
        }
        for name, values in moments.items():
            self._fill(values, tensors[name])
        for index, parameter in enumerate(self._parameters):
            self._optimizer.state[parameter] = {
                "step": torch.tensor(float(len(losses))),
                "exp_avg": moments[_FIRST][index],
                "exp_avg_sq": moments[_SECOND][index],
            }
        return TrainingState(
            sequences=int(facts["sequences"]), seconds=float(facts["seconds"]), losses=losses
        )

    def save(self, state: TrainingState, *, at_once: bool) -> str | None:
        """Save everything, if the last save is long ago or `at_once` is set.

        Returns:
            The reason if it could not be saved. An interrupted run then repeats more steps.
        """
        if self._resume_state is None:
            return None
        states = [self._optimizer.state[parameter] for parameter in self._parameters]

        def tensors() -> Mapping[str, Tensor]:
            return {
                _ADAPTERS: _flat(self._parameters),
                _FIRST: _flat([state["exp_avg"] for state in states]),
                _SECOND: _flat([state["exp_avg_sq"] for state in states]),
                _LOSSES: torch.tensor(state.losses, dtype=torch.float64),
            }

        facts = {"sequences": str(state.sequences), "seconds": repr(state.seconds)}
        return self._resume_state.save_recovery(self._key, tensors, facts, at_once=at_once)

    @staticmethod
    @torch.no_grad()
    def _fill(targets: Sequence[Tensor], flat: Tensor) -> None:
        parts = torch.split(flat, [target.numel() for target in targets])
        for target, part in zip(targets, parts, strict=True):
            target.copy_(part.view_as(target))


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate all values: a file of thousands of tensors would be mostly header."""
    return torch.cat([tensor.detach().cpu().flatten() for tensor in tensors])
