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

from intraslice_core.calibration.generated_text import WrittenText, generate_texts
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
        written = self._write_all(warnings)
        for text, rows in written.items():
            if text.part == "calibration":
                calibration[text.order.source] = rows
            else:
                held_out[text.order.source] = rows
        return TrialText(calibration=calibration, held_out=held_out, warnings=tuple(warnings))

    def _texts(self) -> list[WrittenText]:
        """Return the texts that the model is to write: those of the trials, then the held-out."""
        texts = [
            WrittenText(order=part) for part in self._calibration_parts() if part.source in WRITTEN
        ]
        for source in sorted(WRITTEN, reverse=True):
            if source == "chat" and self.tokenizer.chat_template is None:
                continue
            order = CalibrationPart(
                source=source,
                samples=self.judged_samples,
                sequence_length=self.judged_length,
                seed=self.configs[0].seed,
            )
            texts.append(WrittenText(order=order, part="evaluation"))
        return texts

    def _write_all(self, warnings: list[str]) -> dict[WrittenText, Tensor]:
        """Return the texts that the model can write, in order.

        They are written together, and one by one if any of them cannot be written.
        """
        texts = self._texts()
        if not texts:
            return {}
        try:
            return dict(zip(texts, self._write(texts), strict=True))
        except (CalibrationSourceError, NumericalError):
            rows = {text: self._write_if_possible(text, warnings) for text in texts}
        return {text: tokens for text, tokens in rows.items() if tokens is not None}

    def _write(self, texts: Sequence[WrittenText]) -> list[Tensor]:
        return generate_texts(self.model(), self.tokenizer, texts, should_cancel=self.should_cancel)

    def _write_if_possible(self, text: WrittenText, warnings: list[str]) -> Tensor | None:
        """Return a text; None, with a warning, if the model cannot write it.

        Raises:
            CalibrationSourceError: if it is among the sources that were asked for.
            NumericalError: likewise.
        """
        try:
            return self._write([text])[0]
        except (CalibrationSourceError, NumericalError) as error:
            if text.part == "evaluation":
                warnings.append(
                    f"the methods are not judged on `{text.order.source}` text: {error}"
                )
                return None
            if any(text.order.source == source.source for source in self.configs[0].sources):
                raise
            warnings.append(f"the trials have no self-written text: {error}")
            return None

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
