"""From a trunk's hidden states to logits, a few rows at a time: all at once they may not fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class OutputHead:
    """What a causal language model does behind its trunk."""

    head: nn.Linear
    cap: float | None
    """Logits are squeezed below it; Gemma 2 has one."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> OutputHead:
        """Of a causal language model.

        Raises:
            TypeError: if the model is none.
        """
        head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        if head is None:
            raise TypeError("the model has no output head: not a causal language model")
        return cls(head=head, cap=getattr(model.config, "final_logit_softcapping", None))

    def logits(self, rows: Tensor) -> Tensor:
        """(rows, hidden_size) → (rows, vocabulary), float32."""
        logits: Tensor = self.head(rows).float()
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap
