"""Token-weighted perplexity over windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from intraslice_core.calibration import generate_tokens, load_text, tokenise_documents
from intraslice_core.config import CalibrationPart
from intraslice_core.errors import CalibrationTooShortError, NumericalError
from intraslice_core.progress import CancellationCheck, never_cancelled, raise_if_cancelled


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


_LOGIT_ROWS = 1024
"""Rows of logits in memory at once: 1024 rows of 128k words of fp32 are half a GB."""


@dataclass(frozen=True, kw_only=True)
class PerplexityResult:
    """`perplexity` is e to the `mean_nll` of the `tokens_scored` predicted tokens."""

    perplexity: float
    mean_nll: float
    tokens_scored: int


def evaluation_tokens(source: str, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> Tensor:
    """The first tokens of the source's held-out part: (n,), int64, `n <= max_tokens`.

    Raises:
        CalibrationSourceError: if the source cannot be read.
        CalibrationTooShortError: if there is no token to predict.
    """
    documents = load_text(source, part="evaluation")
    tokens = tokenise_documents(documents, tokenizer, max_tokens=max_tokens)
    if len(tokens) < 2:
        raise CalibrationTooShortError(
            f"{source} holds {len(tokens)} tokens, a perplexity needs 2",
            field="evaluation.perplexity",
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
    """What the dense model writes under a source's name for evaluation; no calibration sees it.

    Written a window at a time, so that a window never begins in the middle of a text.

    Returns:
        (n,), int64, `n <= max_tokens`.

    Raises:
        CalibrationSourceError: if the model cannot be made to write.
        CompressionCancelledError: if asked to stop.
    """
    length = min(context_length, max_tokens)
    order = CalibrationPart(
        source=source, samples=max_tokens // length, sequence_length=length, seed=0
    )
    return generate_tokens(
        model, tokenizer, order, part="evaluation", should_cancel=should_cancel
    ).flatten()


@torch.inference_mode()
def perplexity(
    model: PreTrainedModel,
    tokens: Tensor,
    *,
    context_length: int,
    batch_size: int,
    on_progress: Callable[[float], None] | None = None,
    should_cancel: CancellationCheck = never_cancelled,
) -> PerplexityResult:
    """Score every token but the first of each non-overlapping window.

    Log-softmax and sum are computed in fp32 and fp64, whatever the model's dtype.

    Args:
        model: a causal language model; its mode is restored.
        tokens: (n,), int64.
        context_length: tokens a window; the last window may be shorter.
        batch_size: windows a forward pass.
        on_progress: told the fraction that is done, in [0, 1].
        should_cancel: asked before each forward pass.

    Raises:
        NumericalError: if the model's logits are not finite.
        CompressionCancelledError: if asked to stop.
    """
    was_training = model.training
    model.train(False)
    total = torch.zeros((), dtype=torch.float64)
    seen = scored = 0
    try:
        for batch in _batches(tokens, context_length, batch_size):
            raise_if_cancelled(should_cancel)
            total += _summed_nll(model, batch.to(model.device))
            scored += batch.shape[0] * (batch.shape[1] - 1)
            seen += batch.numel()
            if on_progress is not None:
                on_progress(min(seen / len(tokens), 1.0))
    finally:
        model.train(was_training)
    return _result(total.item(), scored)


def _result(total: float, scored: int) -> PerplexityResult:
    """Mean and exponential, checked."""
    if scored == 0:
        raise CalibrationTooShortError("no window holds two tokens", field="evaluation.perplexity")
    mean = total / scored
    if not math.isfinite(mean):
        raise NumericalError("the model's logits are not finite", module="output head")
    # exp of a mean above 709 is no float; such a model is broken, not worth an OverflowError.
    value = math.exp(mean) if mean < 700.0 else math.inf
    return PerplexityResult(perplexity=value, mean_nll=mean, tokens_scored=scored)


def _batches(tokens: Tensor, context_length: int, batch_size: int) -> Iterator[Tensor]:
    """Batches (batch, window) of whole windows, then the shorter rest if it predicts anything."""
    whole = len(tokens) // context_length * context_length
    windows = tokens[:whole].view(-1, context_length)
    for start in range(0, len(windows), batch_size):
        yield windows[start : start + batch_size]
    if len(tokens) - whole > 1:
        yield tokens[whole:].unsqueeze(0)


def _summed_nll(model: PreTrainedModel, batch: Tensor) -> Tensor:
    """Summed negative log-likelihood of (batch, window) tokens, fp64, on the CPU."""
    trunk = model.base_model
    head = OutputHead.of(model)
    targets = batch[:, 1:].flatten()
    output: Any = trunk(input_ids=batch, use_cache=False)
    hidden = output.last_hidden_state[:, :-1].flatten(0, 1)
    total = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(targets), _LOGIT_ROWS):
        rows = slice(start, start + _LOGIT_ROWS)
        losses = F.cross_entropy(head.logits(hidden[rows]), targets[rows], reduction="none")
        total += losses.double().sum().cpu()
    return total
