"""Calibration text: its sources, their mixture, and the sequences taken from each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationInfo, WrapValidator, field_validator

from intraslice_core.config.base import FrozenModel
from intraslice_core.text_sources import WEB, WRITTEN

MAX_SEQUENCES = 65_536
"""Largest number of sequences of one calibration or fine-tuning text."""


TextField = Annotated[
    Annotated[str, Field(min_length=1, max_length=200)] | None, Field(examples=[None])
]
"""Name of the field of a record that holds its text or its messages; None for the known ones."""


class WeightedSource(FrozenModel):
    """One text source of a mixture."""

    source: str = Field(description="Text source, named as in `calibration.source`.")
    weight: float = Field(
        default=1.0,
        gt=0.0,
        le=1_000_000.0,
        description="Relative weight: the source's share of the sequences is its weight over the "
        "sum of all weights.",
    )
    text_field: TextField = Field(
        default=None,
        description="Field of the source's records that holds the text; null uses the "
        "`text_field` of the whole mixture.",
    )


_Mixture = Annotated[tuple[WeightedSource, ...], Field(min_length=1, max_length=16)]
_MIXTURE: TypeAdapter[tuple[WeightedSource, ...]] = TypeAdapter(_Mixture)


_SELF = "self"

OFFLINE_MIXTURE = (
    WeightedSource(source="pydoc"),
    WeightedSource(source="pycode"),
    WeightedSource(source="chat"),
    WeightedSource(source=_SELF, weight=3.0),
)
"""Best compromise measured among mixtures that need no file and no network
(`benchmarks/calibration.py`, BENCHMARKS.md). Only self-written text resembles the prose of books
and encyclopedias, which nothing else of it does, so it has the largest weight."""

DEFAULT_MIXTURE = tuple(
    WeightedSource(source=name) for name in ("pydoc", "pycode", "chat", _SELF, WEB)
)
"""Default sources; the engine replaces them by `OFFLINE_MIXTURE` where `web` cannot be read."""


DEFAULT_SELF_SHARES: Mapping[str, float] = MappingProxyType({"intraslice_plus": 0.25})
"""Share of self-written sequences by method, 0 for others (docs/method.md, section 2)."""


def _names(source: str | Sequence[WeightedSource]) -> tuple[str, ...]:
    """Return the names of a source or of all sources of a mixture."""
    return (source,) if isinstance(source, str) else tuple(part.source for part in source)


def _validate_source(value: Any, validate_name: Callable[[Any], Any]) -> Any:
    """Validate a string as a name and a list as a mixture, so that errors fit the given form."""
    if isinstance(value, str):
        return validate_name(value)
    if not isinstance(value, list | tuple):
        raise ValueError(
            'a source must be a name, or a list of {"source": name, "weight": number}, not '
            f"{type(value).__name__}"
        )
    mixture = _MIXTURE.validate_python(value)
    # Errors are shown to clients. They give positions, because names may hold anything.
    names = [weighted.source for weighted in mixture]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ValueError(
                f"sources {names.index(name) + 1} and {index + 1} are the same: name it once, with "
                "the sum of the weights"
            )
    return mixture


SourceOrMixture = Annotated[str | _Mixture, WrapValidator(_validate_source)]
"""Name of a source, or several weighted sources."""


class CalibrationConfig(FrozenModel):
    """Text from which the statistics are taken.

    A source is `pydoc` or `pycode` (CPython's documentation and the code of its standard library,
    available on every machine), `self` or `chat` (written by the dense model: freely, or as answers
    to prompts), `web` (pages of C4, read from the Hugging Face hub at a pinned revision),
    `hub:DATASET[:CONFIG][@SPLIT]`, or the path of a `.txt`, `.md`, `.jsonl`, `.json`, `.csv` or
    `.parquet` file; all but the last may be compressed (`.gz`, `.zst`). Several weighted sources
    form a mixture. The default mixture needs no file, and goes without `web` where the hub cannot
    be reached. `self` and `chat` keep the whole dense model in memory while it writes; the other
    sources never need more than one layer of it.
    """

    source: SourceOrMixture = Field(
        default=DEFAULT_MIXTURE,
        description="Text source, or a list of up to 16 weighted sources. The default mixture "
        "(pydoc, pycode, chat, self and web in equal parts) goes without web where the hub cannot "
        "be reached, where self has half of the weight, and leaves out sources where there are too "
        "few sequences for all of them.",
    )
    samples: int = Field(
        default=128,
        ge=1,
        le=MAX_SEQUENCES,
        validate_default=True,
        description="Number of calibration sequences, over all sources.",
    )
    sequence_length: int = Field(
        default=2048, ge=16, le=131_072, description="Tokens per calibration sequence."
    )
    seed: int = Field(
        default=0, ge=0, lt=2**31, description="Random seed for selecting or writing sequences."
    )
    self_share: float | None = Field(
        default=None,
        ge=0.0,
        le=0.9,
        description="Share of the sequences that the dense model writes itself (source `self`), "
        "beside the text of the sources; it keeps the choice of dimensions from depending on that "
        "text alone. null selects 0.25 for intraslice_plus, and 0 for other methods and for "
        "sources that contain `self`.",
    )
    text_field: TextField = Field(
        default=None,
        description="Field of the records of files and data sets that holds the text or the "
        "messages; null looks for `text`, `content`, `messages`, `conversations`, `prompt` and "
        "`completion`, `instruction` and `output`, `question` and `answer`, in this order.",
    )

    @field_validator("samples")
    @classmethod
    def _require_a_sequence_per_source(cls, samples: int, info: ValidationInfo) -> int:
        source = info.data.get("source", "")
        if isinstance(source, tuple) and source not in (DEFAULT_MIXTURE, OFFLINE_MIXTURE):
            for number, share in enumerate(_divide(samples, source), start=1):
                if share == 0:
                    raise ValueError(
                        f"of {samples} sequences source {number} gets none: increase samples or "
                        "its weight"
                    )
        return samples

    @field_validator("self_share")
    @classmethod
    def _reject_a_second_share_of_self(
        cls, share: float | None, info: ValidationInfo
    ) -> float | None:
        if share and _SELF in _names(info.data.get("source", "")):
            raise ValueError(
                "the sources contain `self` already: give it a weight there, or leave self_share "
                "out"
            )
        return share

    @property
    def sources(self) -> tuple[WeightedSource, ...]:
        """All sources that were given; a single source has the weight 1."""
        if isinstance(self.source, str):
            return (WeightedSource(source=self.source),)
        return self.source

    @property
    def mixture(self) -> tuple[WeightedSource, ...]:
        """All sources, with the text that `self_share` adds."""
        share = self.self_share or 0.0
        if share == 0.0:
            return self.sources
        weight = sum(source.weight for source in self.sources) * share / (1.0 - share)
        return (*self.sources, WeightedSource(source=_SELF, weight=weight))

    @property
    def web_is_optional(self) -> bool:
        """True for the default mixture, which goes without `web` where it cannot be read."""
        return self.source == DEFAULT_MIXTURE

    def with_self_share(self, method: str) -> CalibrationConfig:
        """Return the settings with the share of self-written text that null stands for."""
        if self.self_share is not None:
            return self
        share = 0.0 if _SELF in _names(self.source) else DEFAULT_SELF_SHARES.get(method, 0.0)
        return self.model_copy(update={"self_share": share})

    def parts(self) -> tuple[CalibrationPart, ...]:
        """Return one part for each source that gets at least one sequence.

        Sources come before self-written text where there are too few sequences for all.
        """
        shares = self._shares()
        return tuple(
            CalibrationPart(
                source=weighted.source,
                samples=share,
                sequence_length=self.sequence_length,
                seed=self.seed,
                text_field=weighted.text_field or self.text_field,
            )
            for weighted, share in zip(self.mixture, shares, strict=False)
            if share > 0
        )

    def source_groups(self) -> tuple[int, ...] | None:
        """Return the group of sources, 0 or 1, of each part; None for a single part.

        Text that the model writes is group 1 beside given text. Several sources of one kind are
        divided into groups of about equally many sequences.
        """
        parts = self.parts()
        if len(parts) < 2:
            return None
        written = tuple(int(part.source in WRITTEN) for part in parts)
        if len(set(written)) == 2:
            return written
        groups, sequences = [0] * len(parts), [0, 0]
        for number in sorted(range(len(parts)), key=lambda number: -parts[number].samples):
            groups[number] = int(sequences[1] < sequences[0])
            sequences[groups[number]] += parts[number].samples
        return tuple(groups)

    def _shares(self) -> tuple[int, ...]:
        """Return the sequences of every source, and last those that the model writes."""
        alone = _divide(self.samples, self.sources)
        for written in range(int(self.samples * (self.self_share or 0.0)), 0, -1):
            shares = _divide(self.samples - written, self.sources)
            if all(share > 0 or alone[index] == 0 for index, share in enumerate(shares)):
                return (*shares, written)
        return alone


class CalibrationPart(FrozenModel):
    """Sequences to take from one source."""

    source: str
    samples: int
    sequence_length: int
    seed: int
    text_field: TextField = None

    @property
    def tokens(self) -> int:
        """Number of tokens in all sequences of this part."""
        return self.samples * self.sequence_length


def _divide(samples: int, mixture: Sequence[WeightedSource]) -> tuple[int, ...]:
    """Divide sequences by weight; leftovers go to the largest remainders, earlier sources first."""
    weights = [Fraction(weighted.weight) for weighted in mixture]
    exact = [samples * weight / sum(weights) for weight in weights]
    shares = [int(quota) for quota in exact]
    by_remainder = sorted(range(len(exact)), key=lambda index: shares[index] - exact[index])
    for index in by_remainder[: samples - sum(shares)]:
        shares[index] += 1
    return tuple(shares)
