"""Text of a tournament of methods: calibration sequences of the trials, and held-out sequences.

Every source is read or written once, and all trials take their calibration sequences from it. The
held-out sequences are of up to three kinds: windows of the given text that no trial calibrates on,
and what the model writes freely (`self`) and, where it has a chat template, in answers (`chat`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from intraslice_core.calibration.generated_text import generate_tokens
from intraslice_core.calibration.sources import interleave
from intraslice_core.calibration.tokens import read_windows, require_variety
from intraslice_core.config import CalibrationConfig, CalibrationPart
from intraslice_core.errors import CalibrationSourceError, NumericalError
from intraslice_core.progress import CancellationCheck
from intraslice_core.text_sources import WRITTEN

GIVEN = "text"
"""Name of the kind of the given text; the others are named like their sources."""


@dataclass(frozen=True, kw_only=True)
class TrialText:
    """Calibration and held-out sequences of a tournament."""

    calibration: Mapping[str, Tensor]
    """Calibration sequences by source, (sequences, length) each, int64."""
    held_out: Mapping[str, Tensor]
    """Held-out sequences by kind of text, (sequences, judged length) each, int64."""
    warnings: tuple[str, ...] = ()

    @property
    def judged(self) -> Tensor:
        """Held-out sequences of all kinds, (sequences, judged length), int64."""
        return torch.cat([*self.held_out.values()])

    @property
    def kinds(self) -> Tensor:
        """Number of each held-out sequence's kind, (sequences,), int64."""
        counts = torch.tensor([len(rows) for rows in self.held_out.values()])
        return torch.repeat_interleave(torch.arange(len(counts)), counts)

    def settings(self, config: CalibrationConfig) -> CalibrationConfig:
        """Return the settings without self-written text if the model could not write it."""
        if config.self_share and any(
            part.source not in self.calibration for part in config.parts()
        ):
            return config.model_copy(update={"self_share": 0.0})
        return config

    def tokens(self, config: CalibrationConfig) -> Tensor:
        """Return the calibration sequences of one trial, (samples, length), int64.

        Args:
            config: settings of `settings`, with the trials' number and length of sequences.
        """
        return interleave(
            [self.calibration[part.source][: part.samples] for part in config.parts()]
        )


@dataclass(frozen=True, kw_only=True)
class TrialTextReader:
    """Reader of a tournament's text."""

    configs: Sequence[CalibrationConfig]
    """Settings of all trials; they differ in the share of self-written text alone."""
    judged_samples: int
    """Held-out sequences of each kind."""
    judged_length: int
    tokenizer: PreTrainedTokenizerBase
    model: Callable[[], PreTrainedModel]
    """Returns the dense model, which writes text."""
    should_cancel: CancellationCheck

    def read(self) -> TrialText:
        """Read and write all text.

        Raises:
            CalibrationSourceError: if a source cannot be read or written.
            CalibrationTooShortError: if a source has too few tokens.
            CalibrationUniformError: if the text repeats a few tokens only.
        """
        warnings: list[str] = []
        calibration, held_out = self._given(warnings)
        for part in self._calibration_parts():
            if part.source in WRITTEN and part.source not in calibration:
                rows = self._written(part, warnings)
                if rows is not None:
                    calibration[part.source] = rows
        for source in sorted(WRITTEN, reverse=True):
            rows = self._held_out(source, warnings)
            if rows is not None:
                held_out[source] = rows
        return TrialText(calibration=calibration, held_out=held_out, warnings=tuple(warnings))

    def _calibration_parts(self) -> list[CalibrationPart]:
        """Return the part of every source, with the most sequences that a trial takes from it."""
        parts: dict[str, CalibrationPart] = {}
        for config in self.configs:
            for part in config.parts():
                earlier = parts.get(part.source)
                if earlier is None or earlier.samples < part.samples:
                    parts[part.source] = part
        return [*parts.values()]

    def _given(self, warnings: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return windows of the given sources to calibrate on, and others that are held out."""
        parts = [part for part in self._calibration_parts() if part.source not in WRITTEN]
        calibration: dict[str, Tensor] = {}
        held_out: list[Tensor] = []
        for number, part in enumerate(parts):
            # Each source gives equally many, the first ones those that are left over.
            share = self.judged_samples // len(parts)
            share += number < self.judged_samples % len(parts)
            both = part.model_copy(update={"samples": part.samples + share})
            windows = read_windows(both, self.tokenizer, warnings)
            calibration[part.source] = windows[: part.samples]
            held_out.append(windows[part.samples :, : self.judged_length])
        if not parts:
            return {}, {}
        require_variety(torch.cat([*calibration.values()]), calibration)
        return calibration, {GIVEN: torch.cat(held_out)}

    def _written(self, part: CalibrationPart, warnings: list[str]) -> Tensor | None:
        """Return calibration sequences that the model writes.

        None if it cannot, and the text is not among the sources that were asked for.
        """
        try:
            return generate_tokens(
                self.model(), self.tokenizer, part, should_cancel=self.should_cancel
            )
        except (CalibrationSourceError, NumericalError) as error:
            if any(part.source == source.source for source in self.configs[0].sources):
                raise
            warnings.append(f"the trials have no self-written text: {error}")
            return None

    def _held_out(self, source: str, warnings: list[str]) -> Tensor | None:
        """Return held-out sequences that the model writes; None if it cannot."""
        if source == "chat" and self.tokenizer.chat_template is None:
            return None
        part = CalibrationPart(
            source=source,
            samples=self.judged_samples,
            sequence_length=self.judged_length,
            seed=self.configs[0].seed,
        )
        try:
            return generate_tokens(
                self.model(),
                self.tokenizer,
                part,
                part="evaluation",
                should_cancel=self.should_cancel,
            )
        except (CalibrationSourceError, NumericalError) as error:
            warnings.append(f"the methods are not judged on `{source}` text: {error}")
            return None
