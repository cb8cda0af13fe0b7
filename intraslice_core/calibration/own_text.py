"""The model writes its own calibration text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from intraslice_core.config import CalibrationConfig
from intraslice_core.errors import CalibrationSourceError
from intraslice_core.progress import CancellationCheck, raise_if_cancelled

TEMPERATURE = 1.0
TOP_K = 50
_BATCH = 32


@torch.inference_mode()
def write_own_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: CalibrationConfig,
    *,
    should_cancel: CancellationCheck,
) -> Tensor:
    """Sample sequences from the model, each from its first token on.

    Bitwise repeatable on a CPU. An end-of-text token does not stop a sequence: what a model
    writes after it is the next document.

    Returns:
        (samples, sequence_length), int64, on the CPU.

    Raises:
        CalibrationSourceError: if neither tokenizer nor model names a first token.
    """
    first = _first_token(model, tokenizer)
    was_training = model.training
    model.train(False)
    generator = torch.Generator(device=model.device).manual_seed(config.seed)
    batches = []
    try:
        for start in range(0, config.samples, _BATCH):
            size = min(_BATCH, config.samples - start)
            begin = torch.full((size, 1), first, dtype=torch.int64, device=model.device)
            batches.append(
                _continue(model, begin, config.sequence_length, generator, should_cancel)
            )
    finally:
        model.train(was_training)
    return torch.cat(batches).cpu()


def _continue(
    model: PreTrainedModel,
    begin: Tensor,
    length: int,
    generator: torch.Generator,
    should_cancel: CancellationCheck,
) -> Tensor:
    """Grow (batch, 1) to (batch, length), one sampled token at a time."""
    tokens = [begin]
    cache: Any = None
    while len(tokens) < length:
        raise_if_cancelled(should_cancel)
        output: Any = model(
            input_ids=tokens[-1], past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        cache = output.past_key_values
        tokens.append(_sample(output.logits[:, -1], generator))
    return torch.cat(tokens, dim=1)


def _sample(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One token a row of (batch, vocabulary), among the `TOP_K` likeliest; (batch, 1)."""
    values, indices = logits.float().topk(min(TOP_K, logits.shape[-1]), dim=-1)
    chances = torch.softmax(values / TEMPERATURE, dim=-1)
    return indices.gather(-1, torch.multinomial(chances, 1, generator=generator))


def _first_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Where a text begins: the tokenizer's BOS, the model's, or a document's end."""
    for candidate in (tokenizer.bos_token_id, model.config.bos_token_id, tokenizer.eos_token_id):
        if isinstance(candidate, int):
            return candidate
    raise CalibrationSourceError(
        "`self` needs a first token, but neither tokenizer nor model names one",
        field="calibration.source",
        hint="use another source",
    )
