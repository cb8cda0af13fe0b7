"""Divergence of models from the dense one on held-out sequences, position by position.

The dense model's final hidden states and its output head are kept instead of logits, as in
`divergence`; models may therefore be loaded one after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from intraslice_core.device import HostMemory
from intraslice_core.errors import NumericalError
from intraslice_core.evaluation.divergence import HiddenStateRecorder
from intraslice_core.evaluation.perplexity import BlockObserver, OutputHead, perplexity
from intraslice_core.progress import CancellationCheck
from intraslice_core.statistics import kl_divergence


@dataclass(frozen=True, kw_only=True)
class HeldOutReference:
    """The dense model's predictions on held-out sequences."""

    sequences: Tensor
    """(sequences, length), int64; each begins with the prefix."""
    prefix: Sequence[int]
    hidden: Tensor
    """Final hidden states at all scored positions, (sequences * positions, hidden_size)."""
    head: OutputHead
    """Output head of the dense model, on the CPU."""
    batch_size: int

    @classmethod
    def of(
        cls,
        dense: PreTrainedModel,
        sequences: Tensor,
        prefix: Sequence[int],
        *,
        batch_size: int,
        should_cancel: CancellationCheck,
    ) -> HeldOutReference:
        """Score the dense model.

        Args:
            dense: the dense model.
            sequences: held-out sequences, (sequences, length), int64.
            prefix: first tokens of every sequence, which are not scored.
            batch_size: sequences per forward pass.
            should_cancel: called before each forward pass.

        Raises:
            NumericalError: if a logit is not finite.
            CompressionCancelledError: if the run is cancelled.
        """
        memory = HostMemory(None)
        recorder = HiddenStateRecorder(memory, sequences.numel())
        _score(dense, sequences, prefix, batch_size, recorder, should_cancel)
        return cls(
            sequences=sequences,
            prefix=prefix,
            hidden=recorder.states,
            # Cloned, because the model's own weight may be mapped from a file and is freed.
            head=OutputHead.of(dense).moved(lambda tensor: tensor.detach().cpu().clone()),
            batch_size=batch_size,
        )

    def divergences(self, model: PreTrainedModel, should_cancel: CancellationCheck) -> Tensor:
        """Return KL(dense ‖ model) in nats, (sequences, positions), float64.

        Args:
            model: model with the same vocabulary.
            should_cancel: called before each forward pass.

        Raises:
            NumericalError: if a logit of the model is not finite.
            CompressionCancelledError: if the run is cancelled.
        """
        head = self.head.moved(lambda tensor: tensor.to(model.device))
        collected: list[Tensor] = []
        positions = 0

        def observe(hidden: Tensor, predicted: Tensor) -> None:  # noqa: ARG001 (of an observer)
            nonlocal positions
            rows = slice(positions, positions + len(predicted))
            dense = head.log_probabilities(self.hidden[rows].to(predicted.device))
            collected.append(kl_divergence(dense, predicted).cpu())
            positions += len(predicted)

        _score(model, self.sequences, self.prefix, self.batch_size, observe, should_cancel)
        divergences = torch.cat(collected).view(len(self.sequences), -1)
        if not torch.isfinite(divergences).all():
            raise NumericalError("the model's logits are not finite", module="output head")
        return divergences


def _score(
    model: PreTrainedModel,
    sequences: Tensor,
    prefix: Sequence[int],
    batch_size: int,
    observer: BlockObserver,
    should_cancel: CancellationCheck,
) -> None:
    """Score every sequence as one window."""
    perplexity(
        model,
        sequences[:, len(prefix) :].flatten(),
        context_length=sequences.shape[1],
        batch_size=batch_size,
        prefix=prefix,
        observer=observer,
        should_cancel=should_cancel,
    )
