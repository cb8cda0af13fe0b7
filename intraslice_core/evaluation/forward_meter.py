"""Progress of forward passes, layer by layer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from intraslice_core.substeps import report_substep

_PAUSE_SECONDS = 0.5
"""Shortest pause between two reports."""


@contextmanager
def metered(
    model: PreTrainedModel, tokens: float, on_done: Callable[[float], None]
) -> Iterator[None]:
    """Report the finished fraction of the block's forward passes, after decoder layers.

    One batch may take a minute, so its end is not enough.

    Args:
        model: model that the block runs.
        tokens: number of tokens that will pass the model, each position counted once.
        on_done: called with the fraction in [0, 1], at most twice a second; may raise to stop.
    """
    layers = _decoder_layers(model)
    meter = _Meter(total=max(tokens, 1.0) * len(layers), on_done=on_done)
    hooks = [layer.register_forward_hook(meter.count) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def report_layers(model: PreTrainedModel) -> None:
    """Report every decoder layer that the model passes, forwards or backwards, as a sub-step."""
    layers = _decoder_layers(model)
    for number, layer in enumerate(layers, 1):
        text = f"layer {number}/{len(layers)}"

        def passed(_module: nn.Module, _arguments: Any, output: Any, text: str = text) -> None:
            report_substep(text)
            hidden: Tensor = output[0] if isinstance(output, tuple) else output
            if hidden.requires_grad:
                hidden.register_hook(  # type: ignore[no-untyped-call]
                    lambda _: report_substep(f"gradient of {text}")
                )

        layer.register_forward_hook(passed)


class _Meter:
    """Count of the tokens that have passed a layer."""

    def __init__(self, total: float, on_done: Callable[[float], None]) -> None:
        self._total = total
        self._on_done = on_done
        self._passed = 0
        self._reported = time.monotonic()

    def count(self, _module: nn.Module, _arguments: Any, output: Any) -> None:
        """Count the positions of a layer's output, (batch, sequence, hidden_size)."""
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        self._passed += hidden.numel() // hidden.shape[-1]
        now = time.monotonic()
        if now - self._reported >= _PAUSE_SECONDS:
            self._reported = now
            self._on_done(min(self._passed / self._total, 1.0))


def _decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Return the modules of the longest list in the model, which are its decoder layers."""
    lists = [[*module] for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len) if lists else [model.base_model]
