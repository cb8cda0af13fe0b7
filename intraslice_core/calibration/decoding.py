"""Decoding of many sequences at once by the model, one token of each per forward pass.

All rows of a batch are at the same position and none ends before its length: an end-of-text token
begins the next document in its row, and dictated tokens (prompts) are read beside rows that sample,
or in one pass where they are dictated to all rows. Hence there is no padding, no mask but the
model's own, and no row without work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from intraslice_core import writing
from intraslice_core.calibration.decoding_attention import without_repeated_keys
from intraslice_core.calibration.decoding_cache import cached_bytes, keep_rows, preallocated_cache
from intraslice_core.calibration.prompters import Prompter
from intraslice_core.calibration.rotary_lengths import depends_on_length, frequencies_of_length
from intraslice_core.calibration.sampling import TOP_K, random_numbers, sample
from intraslice_core.calibration.writing_pace import WritingListener, WritingPace
from intraslice_core.device_memory import BatchSize, out_of_memory_reported
from intraslice_core.progress import CancellationCheck, raise_if_cancelled

_LOGIT_COPIES = 4
"""Size of the logits and the work space of their sorting, in copies of the logits."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A sequence to write; its tokens follow from these values and the model."""

    length: int
    seed: int
    index: int
    """Number of the sequence in its text; seed and index decide its random numbers."""
    prompter: Callable[[], Prompter]
    """Returns a new source of the tokens that the model does not sample."""


@dataclass(kw_only=True)
class _Row:
    """A sequence that is being written."""

    draft: Draft
    prompter: Prompter
    forced: deque[int]
    """Tokens that come next, whatever the model samples."""
    uniforms: NDArray[np.float64]
    """Random number of each position, (length,)."""
    tokens: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, draft: Draft) -> _Row:
        prompter = draft.prompter()
        uniforms = random_numbers(draft.seed, draft.index, draft.length)
        forced = deque(prompter.opening())
        return cls(draft=draft, prompter=prompter, forced=forced, uniforms=uniforms)

    def dictate(self) -> int:
        """Return the next token, which is forced."""
        token = self.forced.popleft()
        self.tokens.append(token)
        return token

    def advance(self, sampled: int) -> int:
        """Return the next token: the next forced one, or else the sampled one."""
        if self.forced:
            return self.dictate()
        self.tokens.append(sampled)
        self.forced.extend(self.prompter.after(sampled))
        return sampled


@torch.inference_mode()
def write_sequences(
    model: PreTrainedModel,
    drafts: Sequence[Draft],
    *,
    should_cancel: CancellationCheck,
    on_progress: WritingListener,
    lower: str = "compression.calibration.sequence_length",
    top_k: int = TOP_K,
) -> list[Tensor]:
    """Let the model write sequences, as many at once as the memory allows.

    The tokens of a sequence do not depend on the others, but for the rounding of batches of
    different sizes, which may change a token in low precision.

    Args:
        model: causal language model; its mode is restored.
        drafts: sequences to write.
        should_cancel: called before each step.
        on_progress: receives the number of written tokens.
        lower: setting that decides how much memory a sequence needs.
        top_k: candidates of each token; 1 is greedy.

    Returns:
        Tokens of every sequence, (length,) each, int64, on the CPU.

    Raises:
        NumericalError: if a logit is not finite.
        OutOfDeviceMemoryError: if a single sequence does not fit the device.
        CompressionCancelledError: if the run is cancelled.
    """
    writer = _Writer(
        model=model,
        drafts=drafts,
        check=partial(raise_if_cancelled, should_cancel),
        pace=WritingPace([draft.length for draft in drafts], on_progress),
        top_k=top_k,
    )
    was_training = model.training
    model.train(False)
    try:
        with without_repeated_keys(model), out_of_memory_reported(lower):
            return [torch.tensor(tokens) for tokens in writer.write_all(lower)]
    finally:
        model.train(was_training)


@dataclass(frozen=True, kw_only=True)
class _Writer:
    """A model that writes sequences in batches."""

    model: PreTrainedModel
    drafts: Sequence[Draft]
    check: Callable[[], None]
    """Raises if the run is cancelled."""
    pace: WritingPace
    top_k: int

    def write_all(self, lower: str) -> list[list[int]]:
        """Return the tokens of every sequence."""
        batches = _plan(self.model, [draft.length for draft in self.drafts])
        size = BatchSize(
            requested=max(map(len, batches), default=1),
            setting="the number of sequences written at once",
            lower=lower,
        )
        tokens: dict[int, list[int]] = {}
        for number, batch in enumerate(batches):
            written = size.repeat(partial(self._write_parts, batch, batches[number + 1 :]))
            tokens.update(zip(batch, written, strict=True))
        return [tokens[number] for number in range(len(self.drafts))]

    def _write_parts(
        self, batch: list[int], later: list[list[int]], at_once: int
    ) -> list[list[int]]:
        """Write the sequences of a batch, at most `at_once` together; return their tokens."""
        parts = [batch[begin : begin + at_once] for begin in range(0, len(batch), at_once)]
        tokens = []
        for number, part in enumerate(parts):
            left = [*parts[number:], *later]
            self.pace.plan([[self.drafts[place].length for place in each] for each in left])
            tokens += self._write_together([_Row.of(self.drafts[place]) for place in part])
        return tokens

    def _write_together(self, rows: list[_Row]) -> list[list[int]]:
        """Write sequences, the longest first, in one batch; return their tokens."""
        length = rows[0].draft.length
        kv_cache, cached = preallocated_cache(self.model, length), len(rows)
        columns: list[list[int]] = []  # tokens that the model has not read yet
        with frequencies_of_length(self.model, length):
            for position in range(length):
                active = [row for row in rows if row.draft.length > position]
                if all(row.forced for row in active):
                    columns.append([row.dictate() for row in active])
                    continue
                self.check()
                inputs = torch.tensor([column[: len(active)] for column in columns]).T
                if len(active) < cached:
                    cached = len(active)
                    keep_rows(kv_cache, cached)
                output = self.model(
                    input_ids=inputs.to(self.model.device),
                    past_key_values=kv_cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
                uniforms = np.array([row.uniforms[position] for row in active])
                sampled = sample(output.logits[:, -1], uniforms, self.top_k)
                self.pace.step(position, len(active), len(columns))
                pairs = zip(active, sampled, strict=True)
                columns = [[row.advance(token) for row, token in pairs]]
        return [row.tokens for row in rows]


def _plan(model: PreTrainedModel, lengths: list[int]) -> list[list[int]]:
    """Return the numbers of the sequences of each batch, the longest of a batch first.

    With rotary frequencies by length, all sequences of a batch have the same length.
    """
    most = writing.CPU_SEQUENCES if model.device.type == "cpu" else writing.ACCELERATOR_SEQUENCES
    limit = _cache_limit(model.device)

    @cache
    def at_once(length: int) -> int:
        return writing.sequences_at_once(_sequence_bytes(model, length), limit, most)

    if not depends_on_length(model):
        return writing.divide(lengths, at_once)
    batches = []
    for length in sorted(set(lengths)):
        equal = [number for number in range(len(lengths)) if lengths[number] == length]
        divided = writing.divide([length] * len(equal), at_once)
        batches += [[equal[place] for place in batch] for batch in divided]
    return batches


def _cache_limit(device: torch.device) -> int:
    """Return the size limit of the KV cache: by the free memory on CUDA, fixed elsewhere."""
    if device.type != "cuda":
        return writing.CPU_CACHE_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    # Freed memory that torch has not returned to the device.
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return writing.cache_bytes_on(free)


def _sequence_bytes(model: PreTrainedModel, length: int) -> int:
    """Return the bytes of a sequence, measured by a pass of one token: its keys and values.

    On an accelerator also those of its logits and of what their sorting takes, which are freed.
    """
    kv_cache = preallocated_cache(model, length)
    token = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    output = model(input_ids=token, past_key_values=kv_cache, use_cache=True, logits_to_keep=1)
    logits = 0 if model.device.type == "cpu" else _LOGIT_COPIES * int(output.logits.nbytes)
    return cached_bytes(kv_cache) + logits
