"""Selections of the residual stream that a module reads and writes (docs/methods.md, `disp`)."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ResidualPartSelections:
    """Dimensions of one layer that stay, each ascending, int64."""

    attention_reads: Tensor
    attention_writes: Tensor
    mlp_reads: Tensor
    mlp_writes: Tensor
    neurons: Tensor

    def to(self, device: torch.device) -> ResidualPartSelections:
        """Return the selections on a device."""
        moved = {part.name: getattr(self, part.name).to(device) for part in fields(self)}
        return ResidualPartSelections(**moved)
