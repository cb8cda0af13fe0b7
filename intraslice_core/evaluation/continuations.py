"""Greedy continuations of prompts, for readers who compare outputs by eye."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from intraslice_core.progress import CancellationCheck, never_cancelled, raise_if_cancelled
from intraslice_core.substeps import report_substep

NEW_TOKENS = 48


def continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    should_cancel: CancellationCheck = never_cancelled,
) -> tuple[str, ...]:
    """Return the greedy continuation of each prompt, at most `NEW_TOKENS` tokens long.

    Raises:
        CompressionCancelledError: if the run is cancelled; checked before each prompt.
    """
    texts: list[str] = []
    for prompt in prompts:
        raise_if_cancelled(should_cancel)
        report_substep(f"continuing prompt {len(texts) + 1}/{len(prompts)}")
        inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
        generate: Any = model.generate
        with torch.inference_mode():
            output = generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        new_tokens = output[0, inputs["input_ids"].shape[1] :]
        texts.append(str(tokenizer.decode(new_tokens, skip_special_tokens=True)))
    return tuple(texts)
