"""Token-weighted perplexity over non-overlapping windows (docs/method.md, section 2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from intraslice_core.calibration import generate_tokens, source_tokens, text_prefix
from intraslice_core.calibration.windows import full_windows, prefixed
from intraslice_core.config import CalibrationPart
from intraslice_core.device_memory import BatchSize
from intraslice_core.errors import CalibrationTooShortError, NumericalError
from intraslice_core.progress import CancellationCheck, never_cancelled, raise_if_cancelled

EVALUATION_LOGITS = 2**24
"""Logits computed at once, in numbers: 64 MiB in float32."""


@dataclass(frozen=True, kw_only=True)
class OutputHead:
    """Output head of a causal language model, with the scale and soft cap of its logits."""

    head: nn.Linear
    cap: float | None
    """Bound of the logits' soft cap, as in Gemma 2; None without one."""
    scale: float = 1.0
    """Factor on the logits, as in Granite."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> OutputHead:
        """Return the output head of a causal language model.

        Raises:
            TypeError: if the model is not a causal language model.
        """
        head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        if head is None:
            raise TypeError(
                f"{type(model).__name__} has no output head: give a causal language model"
            )
        config = model.config.get_text_config()
        scale = float(getattr(config, "logit_scale", None) or 1.0)  # ours, and Cohere's
        divisor = float(getattr(config, "logits_scaling", None) or 1.0)  # Granite's
        cap = getattr(config, "final_logit_softcapping", None)
        return cls(head=head, cap=cap, scale=scale / divisor)

    def logits(self, rows: Tensor) -> Tensor:
        """Map (rows, hidden_size) to float32 logits (rows, vocabulary)."""
        logits: Tensor = self.head(rows).float()
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def log_probabilities(self, rows: Tensor) -> Tensor:
        """Map (rows, hidden_size) to float32 log-probabilities (rows, vocabulary)."""
        return torch.log_softmax(self.logits(rows), -1)

    @property
    def vocabulary(self) -> int:
        """Number of logits per position."""
        return int(self.head.weight.shape[0])

    @property
    def logit_rows(self) -> int:
        """Number of positions whose logits are computed at once in the evaluation."""
        return max(1, EVALUATION_LOGITS // self.vocabulary)

    def moved(self, move: Callable[[Tensor], Tensor]) -> OutputHead:
        """Return the same head with its weight and bias as `move` returns them."""
        out_features, in_features = self.head.weight.shape
        with torch.device("meta"):
            head = nn.Linear(in_features, out_features, bias=self.head.bias is not None)
        tensors = {name: move(tensor) for name, tensor in self.head.state_dict().items()}
        head.load_state_dict(tensors, assign=True)
        return replace(self, head=head.requires_grad_(False))


BlockObserver = Callable[[Tensor, Tensor], None]
"""Callback for each block of scored positions, in their order: final hidden states,
(rows, hidden_size) in the model's dtype, and log-probabilities, (rows, vocabulary) in float32."""


@dataclass(frozen=True, kw_only=True)
class PerplexityResult:
    """Perplexity of one text."""

    perplexity: float
    """Exponential of `mean_nll`."""
    mean_nll: float
    """Mean negative log-likelihood in nats per predicted token."""
    tokens_scored: int
    """Number of predicted tokens."""


def evaluation_tokens(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    *,
    text_field: str | None = None,
    warnings: list[str] | None = None,
) -> Tensor:
    """Return the first tokens of a source's held-out part: (n,), int64, `n <= max_tokens`.

    The tokenizer's prefix is not among them: `perplexity` puts it before every window.

    `warnings` is extended by warnings about records that were skipped.

    Raises:
        CalibrationSourceError: if the source cannot be read.
        CalibrationTooShortError: if the text has fewer than two tokens.
    """
    tokens = source_tokens(
        source,
        tokenizer,
        part="evaluation",
        max_tokens=max_tokens,
        text_field=text_field,
        warnings=warnings,
    )
    if len(tokens) < 2:
        raise CalibrationTooShortError(
            f"the held-out part of {source} has {len(tokens)} tokens, perplexity needs at least 2",
            field="evaluation.perplexity",
            hint="name a longer text",
        )
    return tokens


def written_tokens(
    source: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int,
    context_length: int,
    should_cancel: CancellationCheck = never_cancelled,
) -> Tensor:
    """Let the dense model write the evaluation text of `self` or `chat`.

    Calibration never uses this text. It is written window by window, so that no window begins in
    the middle of a text. The tokenizer's prefix is left out: `perplexity` puts it back.

    Returns:
        (n,), int64, `n <= max_tokens`.

    Raises:
        CalibrationSourceError: if the model cannot write the source.
        CompressionCancelledError: if the run is cancelled.
    """
    length = min(context_length, max_tokens)
    order = CalibrationPart(
        source=source, samples=max_tokens // length, sequence_length=length, seed=0
    )
    sequences = generate_tokens(
        model, tokenizer, order, part="evaluation", should_cancel=should_cancel
    )
    return sequences[:, len(text_prefix(tokenizer)) :].flatten()


@torch.inference_mode()
def perplexity(  # noqa: PLR0913  # one call is the whole measurement
    model: PreTrainedModel,
    tokens: Tensor,
    *,
    context_length: int,
    batch_size: int,
    prefix: Sequence[int] = (),
    observer: BlockObserver | None = None,
    on_progress: Callable[[float], None] | None = None,
    should_cancel: CancellationCheck = never_cancelled,
) -> PerplexityResult:
    """Score a text in non-overlapping windows.

    With a prefix every window begins with it, as in llama.cpp and lm-evaluation-harness, and every
    token of the text is scored once; tokens of the prefix are not. Without one the first token of
    each window is not scored, because nothing predicts it. The log-softmax is computed in fp32 and
    the sum in fp64, whatever the model's dtype.

    Args:
        model: a causal language model; its mode is restored.
        tokens: text without prefix, (n,), int64.
        context_length: tokens per window, those of the prefix included; the last window may be
            shorter.
        batch_size: windows per forward pass, fewer where they do not fit the device.
        prefix: first tokens of every window (`calibration.text_prefix`).
        observer: called with every block of scored positions.
        on_progress: called with the finished fraction, in [0, 1].
        should_cancel: called before each forward pass.

    Raises:
        NumericalError: if the model's logits are not finite.
        OutOfDeviceMemoryError: if a single window does not fit the device.
        CompressionCancelledError: if the run is cancelled.
    """
    size = BatchSize(
        requested=batch_size,
        setting="the number of windows per forward pass",
        lower="evaluation.context_length",
    )
    was_training = model.training
    model.train(False)
    total = torch.zeros((), dtype=torch.float64)
    processed = scored = 0
    first = max(len(prefix), 1)
    try:
        for batch in _batches(tokens, prefix, context_length, batch_size):
            raise_if_cancelled(should_cancel)
            total = total + _summed_nll(model, batch.to(model.device), first, observer, size)
            scored += batch.shape[0] * (batch.shape[1] - first)
            processed += batch.shape[0] * (batch.shape[1] - len(prefix))
            if on_progress is not None:
                on_progress(min(processed / len(tokens), 1.0))
    finally:
        model.train(was_training)
    return _result(total.item(), scored)


def _result(total: float, scored: int) -> PerplexityResult:
    """Compute mean and exponential.

    Raises:
        CalibrationTooShortError: if no token was predicted.
        NumericalError: if the sum is not finite.
    """
    if scored == 0:
        raise CalibrationTooShortError(
            "no window of the text has two tokens, perplexity needs at least 2",
            field="evaluation.perplexity",
            hint="name a longer text",
        )
    mean = total / scored
    if not math.isfinite(mean):
        raise NumericalError("the model's logits are not finite", module="output head")
    # exp(mean) overflows above 709; a model this bad is reported as infinity, not as an error.
    value = math.exp(mean) if mean < 700.0 else math.inf
    return PerplexityResult(perplexity=value, mean_nll=mean, tokens_scored=scored)


def _batches(
    tokens: Tensor, prefix: Sequence[int], context_length: int, batch_size: int
) -> Iterator[Tensor]:
    """Yield batches (batch, window) of full windows, then the shorter rest if it can be scored."""
    windows = full_windows(tokens, prefix, context_length)
    for start in range(0, len(windows), batch_size):
        yield windows[start : start + batch_size]
    rest = tokens[len(windows) * (context_length - len(prefix)) :]
    if len(rest) > (0 if prefix else 1):
        yield prefixed(rest.unsqueeze(0), prefix)


def _final_states(model: PreTrainedModel, batch: Tensor, first: int, windows: int) -> Tensor:
    """Return the final hidden states that predict the tokens from `first`, (rows, hidden_size).

    Args:
        model: a causal language model.
        batch: windows, (batch, window), on the model's device.
        first: position of the first token that is predicted, at least 1.
        windows: windows per forward pass.
    """
    parts: list[Tensor] = []
    for part in torch.split(batch, windows):
        output: Any = model.base_model(input_ids=part, use_cache=False)
        parts.append(output.last_hidden_state[:, first - 1 : -1].flatten(0, 1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _summed_nll(
    model: PreTrainedModel,
    batch: Tensor,
    first: int,
    observer: BlockObserver | None,
    size: BatchSize,
) -> Tensor:
    """Sum the negative log-likelihood of (batch, window) tokens from `first`, in fp64.

    The sum is on the device: the host does not wait for it.

    `first` is at least 1. The observer sees the positions once all windows have passed the model,
    so that a smaller batch repeats none of them.
    """
    head = OutputHead.of(model)
    targets = batch[:, first:].flatten()
    hidden = size.repeat(lambda windows: _final_states(model, batch, first, windows))
    total = torch.zeros((), dtype=torch.float64, device=batch.device)
    for start in range(0, len(targets), head.logit_rows):
        rows = slice(start, start + head.logit_rows)
        # Computed once for the loss and the observer: over 262k tokens a softmax costs as much as
        # the output head.
        predicted = head.log_probabilities(hidden[rows])
        total -= predicted.gather(1, targets[rows].unsqueeze(1)).double().sum()
        if observer is not None:
            observer(hidden[rows], predicted)
    return total
