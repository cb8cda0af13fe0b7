"""Processes that train together, started by `accelerate launch` or `torchrun`."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from intraslice_core.launcher import current_launch

if TYPE_CHECKING:
    from accelerate import Accelerator  # type: ignore[import-untyped]

_PATIENCE = timedelta(days=1)
"""Time that processes wait for the first one while it reads text, measures or verifies."""

_Value = TypeVar("_Value")


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The processes that train one model together; by default this one alone.

    The first one, the main process, reads the text, decides, saves and writes. The others hold the
    same models and compute gradients of their share of every step.
    """

    accelerator: Accelerator | None = None

    @classmethod
    def launched(cls, *, on_cpu: bool) -> Processes:
        """Return the processes that a launcher started; this one alone without a launcher.

        Args:
            on_cpu: compute on the CPU even where there are GPUs.
        """
        if current_launch() is None:
            return cls()
        # Imported here because one process does not need it.
        from accelerate import Accelerator, InitProcessGroupKwargs

        handlers = [InitProcessGroupKwargs(timeout=_PATIENCE)]
        # The precision follows the setting `dtype`, not the launcher's.
        return cls(
            accelerator=Accelerator(cpu=on_cpu, mixed_precision="no", kwargs_handlers=handlers)
        )

    @property
    def count(self) -> int:
        """Number of processes."""
        return 1 if self.accelerator is None else int(self.accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        """True in the process that decides and writes."""
        return self.accelerator is None or bool(self.accelerator.is_main_process)

    def device(self, requested: str) -> str:
        """Return the name of this process's device: its own GPU, or the requested one if alone."""
        return requested if self.accelerator is None else str(self.accelerator.device)

    def share(self, value: _Value | None) -> _Value:
        """Return the main process's value in every process; the others give None."""
        values: list[Any] = [value]
        if self.accelerator is not None:
            from accelerate.utils import (  # type: ignore[import-untyped]
                broadcast_object_list,
            )

            broadcast_object_list(values)
        result: _Value = values[0]
        return result

    @torch.no_grad()
    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors by those of the main process, in place."""
        if self.accelerator is not None:
            from accelerate.utils import broadcast

            for tensor in tensors:
                tensor.copy_(broadcast(tensor.detach().clone()))

    def total(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        if self.accelerator is None:
            return value
        reduced: Tensor = self.accelerator.reduce(value, reduction="sum")
        return reduced

    def rows(self, rows: Tensor) -> Tensor:
        """Return this process's share of the sequences of a step, in order and possibly empty."""
        if self.accelerator is None:
            return rows
        size = -(-len(rows) // self.count)
        first = size * int(self.accelerator.process_index)
        return rows[first : first + size]

    def parallel(self, module: nn.Module) -> nn.Module:
        """Return the module with gradients averaged over all processes."""
        if self.accelerator is None:
            return module
        prepared: nn.Module = self.accelerator.prepare_model(module, device_placement=False)
        return prepared

    def accumulate(self, module: nn.Module, *, complete: bool) -> AbstractContextManager[Any]:
        """Return the context of one backward pass; gradients are averaged in the last one only."""
        if self.accelerator is None or complete:
            return nullcontext()
        context: AbstractContextManager[Any] = self.accelerator.no_sync(module)
        return context
