"""How far a training is: what a stopped one leaves behind, and another goes on from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from intraslice_core.cache import LayerCheckpoints

_ADAPTERS, _FIRST, _SECOND, _LOSSES = "adapters", "first_moments", "second_moments", "losses"


@dataclass(kw_only=True)
class TrainingState:
    """Steps that were made, and what they cost."""

    sequences: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    """In nats a token, one a step."""

    @property
    def step(self) -> int:
        """Steps made."""
        return len(self.losses)


class TrainingFile:
    """Adapters, their Adam moments and the state, in one file that is replaced as a whole.

    Nothing in a training is random once the adapters are made, so that there is no generator
    whose state would have to be kept. The file stays on this machine: it changes with every
    writing, and what the service mirrors to its store never does. A job that goes on elsewhere
    finds its layers there, and trains from the beginning.

    Args:
        place: where it is kept; None keeps nothing.
        key: names all that the training depends on.
        parameters: of the adapters, in a fixed order.
        optimizer: theirs.
    """

    def __init__(
        self,
        place: LayerCheckpoints | None,
        key: str,
        parameters: Sequence[nn.Parameter],
        optimizer: torch.optim.AdamW,
    ) -> None:
        self._place = place
        self._key = key
        self._parameters = parameters
        self._optimizer = optimizer

    def restore(self) -> TrainingState:
        """Put parameters and optimizer where they were left, if they were, in place."""
        kept = None if self._place is None else self._place.recovery(self._key)
        if kept is None:
            return TrainingState()
        tensors, facts = kept
        losses = tensors[_LOSSES].tolist()
        self._fill(self._parameters, tensors[_ADAPTERS])
        # As its first step would make them, so that they lie in memory as in an undisturbed run.
        moments = {
            name: [torch.zeros_like(one) for one in self._parameters] for name in (_FIRST, _SECOND)
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
        """Keep everything, if the last time is long ago or it is to be at once.

        Returns:
            Why it was not possible, if it was not: a stopped run then loses more, and no more.
        """
        if self._place is None:
            return None
        states = [self._optimizer.state[one] for one in self._parameters]

        def tensors() -> Mapping[str, Tensor]:
            return {
                _ADAPTERS: _flat(self._parameters),
                _FIRST: _flat([one["exp_avg"] for one in states]),
                _SECOND: _flat([one["exp_avg_sq"] for one in states]),
                _LOSSES: torch.tensor(state.losses, dtype=torch.float64),
            }

        facts = {"sequences": str(state.sequences), "seconds": repr(state.seconds)}
        return self._place.save_recovery(self._key, tensors, facts, at_once=at_once)

    @staticmethod
    @torch.no_grad()
    def _fill(targets: Sequence[Tensor], flat: Tensor) -> None:
        parts = torch.split(flat, [one.numel() for one in targets])
        for target, part in zip(targets, parts, strict=True):
            target.copy_(part.view_as(target))


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    """All values in one vector: a file of thousands of tensors would be mostly header."""
    return torch.cat([one.detach().cpu().flatten() for one in tensors])
