"""How a model goes on with a prompt: for people who would rather read than count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from intraslice_core.progress import CancellationCheck, never_cancelled, raise_if_cancelled

NEW_TOKENS = 48


def continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    should_cancel: CancellationCheck = never_cancelled,
) -> tuple[str, ...]:
    """The greedy continuation of each prompt, at most `NEW_TOKENS` tokens.

    Raises:
        CompressionCancelledError: if asked to stop, between prompts.
    """
    found = []
    for prompt in prompts:
        raise_if_cancelled(should_cancel)
        given = tokenizer(prompt, return_tensors="pt").to(model.device)
        generate: Any = model.generate
        with torch.inference_mode():
            answer = generate(**given, max_new_tokens=NEW_TOKENS, do_sample=False)
        text = tokenizer.decode(answer[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
        found.append(str(text))
    return tuple(found)
