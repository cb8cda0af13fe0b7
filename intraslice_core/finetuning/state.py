"""The state of a training that an interrupted run saves and the next one resumes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from intraslice_core.resume_state import ResumeState

_PARAMETERS, _FIRST, _SECOND = "parameters", "first_moments", "second_moments"
_LOSSES = "losses"
_MOMENTS = {"exp_avg": _FIRST, "exp_avg_sq": _SECOND}
"""Names in the file by those in AdamW's state."""


@dataclass(kw_only=True)
class TrainingState:
    """Progress of a training."""

    sequences: int = 0
    """Number of sequences that were used: the position in the text."""
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    """Loss of each step, per token."""

    @property
    def step(self) -> int:
        """Return the number of finished steps."""
        return len(self.losses)


class TrainingFile:
    """Trained parameters, their Adam moments and the training state, in one file per save.

    The learning rate follows from the position in the text and the time, which are saved. On a CPU
    a training is deterministic once the adapters are initialised and its text is written, so that
    no generator has a state. Each file is new and complete: the service copies it to the store,
    from where another machine resumes.

    Args:
        resume_state: directory that holds the files; None saves nothing.
        key: digest of everything the training depends on.
        parameters: those that are trained, in a fixed order.
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
        self._fill(self._parameters, tensors[_PARAMETERS])
        self.allocate_moments(len(losses))
        for moment, name in _MOMENTS.items():
            self._fill(self._moments(moment), tensors[name])
        return TrainingState(
            sequences=int(facts["sequences"]), seconds=float(facts["seconds"]), losses=losses
        )

    def allocate_moments(self, step: int) -> None:
        """Set the optimizer to have made `step` steps, with moments of zero."""
        # Allocated as in the first step, for the memory alignment of an uninterrupted run.
        zeros = {
            moment: [torch.zeros_like(parameter) for parameter in self._parameters]
            for moment in _MOMENTS
        }
        for index, parameter in enumerate(self._parameters):
            self._optimizer.state[parameter] = {
                "step": torch.tensor(float(step)),
                **{moment: values[index] for moment, values in zeros.items()},
            }

    def moments(self) -> list[Tensor]:
        """Return the optimizer's moments, in a fixed order."""
        return [tensor for moment in _MOMENTS for tensor in self._moments(moment)]

    def save(self, state: TrainingState, *, at_once: bool) -> str | None:
        """Save everything, if the last save is long ago or `at_once` is set.

        Returns:
            The reason if it could not be saved. An interrupted run then repeats more steps.
        """
        if self._resume_state is None:
            return None

        def tensors() -> Mapping[str, Tensor]:
            return {
                _PARAMETERS: _flat(self._parameters),
                **{name: _flat(self._moments(moment)) for moment, name in _MOMENTS.items()},
                _LOSSES: torch.tensor(state.losses, dtype=torch.float64),
            }

        facts = {"sequences": str(state.sequences), "seconds": repr(state.seconds)}
        return self._resume_state.save_recovery(
            self._key, state.step, tensors, facts, at_once=at_once
        )

    def _moments(self, moment: str) -> list[Tensor]:
        return [self._optimizer.state[parameter][moment] for parameter in self._parameters]

    @staticmethod
    @torch.no_grad()
    def _fill(targets: Sequence[Tensor], flat: Tensor) -> None:
        parts = torch.split(flat, [target.numel() for target in targets])
        for target, part in zip(targets, parts, strict=True):
            target.copy_(part.view_as(target))


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate all values: a file of thousands of tensors would be mostly header."""
    return torch.cat([tensor.detach().cpu().flatten() for tensor in tensors])
