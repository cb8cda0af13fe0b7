"""Checks of everything that an evaluation reads, before the work that it evaluates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from intraslice_core.calibration.conversations import opening_tokens
from intraslice_core.config import EvaluationConfig
from intraslice_core.evaluation.perplexity import evaluation_tokens
from intraslice_core.text_sources import WRITTEN
from intraslice_core.tokenizer import require_known_tokens


def check_texts(
    config: EvaluationConfig, tokenizer: PreTrainedTokenizerBase, rows: int
) -> list[str]:
    """Read every text and prompt of an evaluation, and return warnings about them.

    Args:
        config: the evaluation.
        tokenizer: tokenizer of the model.
        rows: rows of the model's embedding.

    Raises:
        CalibrationSourceError: if a text cannot be read.
        CalibrationTooShortError: if a text has fewer than two tokens.
        TokenizerError: if a text contains a token that the model has no embedding for.
    """
    sources = [source for source in config.perplexity if source not in WRITTEN]
    texts, warnings = held_out_texts(sources, config, tokenizer)
    if "chat" in config.perplexity:
        openings = opening_tokens(tokenizer, "evaluation")
        texts["chat"] = torch.tensor([token for opening in openings for token in opening])
    require_known_texts(tokenizer, rows, texts, config.prompts)
    return warnings


def held_out_texts(
    sources: Iterable[str], config: EvaluationConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the held-out tokens of every text by its source, and warnings about records.

    Raises:
        CalibrationSourceError: if a text cannot be read.
        CalibrationTooShortError: if a text has fewer than two tokens.
    """
    warnings: list[str] = []
    texts = {
        source: evaluation_tokens(
            source,
            tokenizer,
            config.max_tokens,
            text_field=config.text_field,
            warnings=warnings,
        )
        for source in dict.fromkeys(sources)
    }
    return texts, warnings


def require_known_texts(
    tokenizer: PreTrainedTokenizerBase,
    rows: int,
    texts: Mapping[str, Tensor],
    prompts: Sequence[str],
) -> None:
    """Raise if a text or a prompt contains a token that the model has no embedding for.

    Args:
        tokenizer: tokenizer of the model.
        rows: rows of the model's embedding.
        texts: token ids by the name of the text.
        prompts: prompts of continuations.

    Raises:
        TokenizerError: naming the text, the token and its id.
    """
    for source, tokens in texts.items():
        require_known_tokens(tokens, rows, tokenizer, source)
    for prompt in prompts:
        tokens = torch.tensor(tokenizer(prompt)["input_ids"], dtype=torch.int64)
        require_known_tokens(tokens, rows, tokenizer, f"prompt {prompt[:60]!r}")
