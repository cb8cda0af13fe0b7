"""Windows of tokens that begin as the tokenizer begins a text (docs/method.md, section 2).

Many tokenizers put special tokens before a text: usually a BOS token, in GLM-4 two tokens. A model
that was trained with them computes something else without them, so every window begins with them:
this prefix fills the first positions of a window, and tokens of the text the others. Inside a
window the prefix does not occur. Tokenizers without a prefix give plain windows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase


def text_prefix(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the special tokens that the tokenizer puts before a text, often BOS or nothing."""
    return tuple(special_tokens(tokenizer)[0])


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the special tokens that the tokenizer adds before and after a text."""
    probe = "a"
    bare: list[int] = tokenizer(probe, add_special_tokens=False)["input_ids"]
    full: list[int] = tokenizer(probe, add_special_tokens=True)["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    return [], []


def prefixed(rows: Tensor, prefix: Sequence[int]) -> Tensor:
    """Return (n, length) tokens with the prefix before each row, (n, prefix + length)."""
    if not prefix:
        return rows
    first = torch.tensor(prefix, dtype=rows.dtype, device=rows.device)
    return torch.cat((first.expand(len(rows), -1), rows), dim=1)


def full_windows(tokens: Tensor, prefix: Sequence[int], length: int) -> Tensor:
    """Cut a text into full windows without overlap; the remaining tokens are left out.

    Args:
        tokens: text without prefix, (n,).
        prefix: first tokens of every window.
        length: positions of a window, more than those of the prefix.

    Returns:
        (n // (length - prefix), length). Without prefix it is a view of `tokens`.
    """
    step = length - len(prefix)
    windows = len(tokens) // step
    return prefixed(tokens[: windows * step].view(windows, step), prefix)
