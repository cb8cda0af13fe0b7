"""What a user may ask of the engine: frozen pydantic models, shared by API, CLI and workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

Method = Literal["intraslice_plus", "intraslice", "magnitude"]
"""`intraslice_plus` (IntraSlice+) is ours, `intraslice` the method of arXiv 2602.01975, `magnitude`
the baseline that looks at weights alone."""

FORMER_METHOD = "paper"
RENAMED_METHOD_ERROR = (
    "method 'paper' is now called 'intraslice'; the method that was called 'intraslice' is now "
    "'intraslice_plus' and the default"
)

Target = Literal["research", "adaptive", "stock"]
"""Which runtimes must load the result: `research` leaves every shape free per layer, `adaptive` is
a DeciLM, whose layers differ in the MLP's width alone, `stock` a model of the dense model's own
class."""

GgufFormat = Literal["gguf-f16", "gguf-q8_0"]
"""A GGUF file beside the checkpoint, by what its matrices are stored as."""

ExportFormat = Literal["safetensors", "gguf-f16", "gguf-q8_0"]

Allocator = Literal["uniform", "fisher", "fisher_pca", "lagrangian"]
"""Who decides how much is removed where (section 4 of docs/method.md)."""

Allocation = Literal["auto", "uniform", "fisher", "fisher_pca", "lagrangian"]
"""`auto` is the method's own allocator; `presets` says which that is."""

BudgetField = Literal["ratio", "target_params", "target_bytes"]
"""The three ways to say how much stays."""

SUPPORTED_MODEL_TYPES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "phi",
    "phi3",
    "gemma2",
    "gemma3_text",
)
"""What `families` has adapters for, for those who must not load torch to know it."""

GGUF_MODEL_TYPES = ("llama",)
"""Of which there may be GGUF files; all others come as safetensors."""

ComputeDtype = Literal["auto", "float32", "bfloat16", "float16"]
Ratio = Annotated[float, Field(ge=0.0, lt=1.0)]
DEFAULT_RATIO = 0.3

RecoveryLoss = Literal["ce", "distill"]
"""What a recovery makes small: cross entropy, or the divergence from the dense model."""

MAX_SEQUENCES = 65_536
HELD_OUT_SEQUENCES = 16
"""Of a recovery's text, not trained on: what was won back is measured by them."""

_BUDGETS: tuple[BudgetField, ...] = ("ratio", "target_params", "target_bytes")


class FrozenModel(BaseModel):
    """A value that crosses a boundary: unknown fields are refused, nothing changes after birth."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class WeightedSource(FrozenModel):
    """One text of a mixture."""

    source: str
    weight: float = Field(
        default=1.0, gt=0.0, le=1_000_000.0, description="its part of the sequences, before scaling"
    )


_Mixture = Annotated[tuple[WeightedSource, ...], Field(min_length=1, max_length=16)]
_MIXTURE: TypeAdapter[tuple[WeightedSource, ...]] = TypeAdapter(_Mixture)


DEFAULT_MIXTURE = tuple(WeightedSource(source=name) for name in ("pydoc", "pycode", "chat", "self"))
"""Of what there is on every machine and what every model can write, the best compromise measured
(`benchmarks/calibration.py`, BENCHMARKS.md)."""


def _by_form(value: Any, as_declared: Callable[[Any], Any]) -> Any:
    """Judge a name as a name and a list as a list, so that an error is about what was meant."""
    if isinstance(value, str):
        return as_declared(value)
    if not isinstance(value, list | tuple):
        raise ValueError('a source is a name, or a list of {"source": name, "weight": number}')
    mixture = _MIXTURE.validate_python(value)
    # Numbers, not names: an error's text goes to clients, and what they sent may be anything.
    names = [one.source for one in mixture]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ValueError(
                f"sources {names.index(name) + 1} and {index + 1} are the same: name it once, with "
                "the sum of the weights"
            )
    return mixture


class CalibrationConfig(FrozenModel):
    """Which text the statistics are taken from.

    A source is `pydoc` or `pycode` (CPython's documentation and the code of its standard library,
    on every machine), `self` or `chat` (the model writes freely, or answers prompts),
    `hub:DATASET[:CONFIG][@SPLIT]`, or the path of a `.txt`, `.jsonl` or gzipped file of either
    kind. Several of them, with weights, are a mixture; the default is one of all that needs no
    file. `self` and `chat` hold the whole dense model in memory while it writes; the others never
    more than a layer of it.
    """

    source: Annotated[str | _Mixture, WrapValidator(_by_form)] = Field(
        default=DEFAULT_MIXTURE,
        description="a source, or several with weights; of a few sequences the default leaves out "
        "its last",
    )
    samples: int = Field(
        default=128,
        ge=1,
        le=MAX_SEQUENCES,
        validate_default=True,
        description="sequences, of all sources",
    )
    sequence_length: int = Field(default=2048, ge=16, le=131_072, description="tokens a sequence")
    seed: int = Field(default=0, ge=0, lt=2**31)

    @field_validator("samples")
    @classmethod
    def _some_of_each(cls, samples: int, info: ValidationInfo) -> int:
        source = info.data.get("source", "")
        if isinstance(source, tuple) and source != DEFAULT_MIXTURE:
            for number, share in enumerate(_divided(samples, source), start=1):
                if share == 0:
                    raise ValueError(
                        f"of {samples} sequences source {number} gets none: give more, or raise "
                        "its weight"
                    )
        return samples

    @property
    def mixture(self) -> tuple[WeightedSource, ...]:
        """All sources; a single one has the weight 1."""
        if isinstance(self.source, str):
            return (WeightedSource(source=self.source),)
        return self.source

    def parts(self) -> tuple[CalibrationPart, ...]:
        """A calibration for each source that has a share of the sequences."""
        shares = _divided(self.samples, self.mixture)
        return tuple(
            CalibrationPart(
                source=one.source,
                samples=share,
                sequence_length=self.sequence_length,
                seed=self.seed,
            )
            for one, share in zip(self.mixture, shares, strict=True)
            if share > 0
        )


class CalibrationPart(FrozenModel):
    """What is to come from one source."""

    source: str
    samples: int
    sequence_length: int
    seed: int

    @property
    def tokens(self) -> int:
        """Of all its sequences."""
        return self.samples * self.sequence_length


def _divided(samples: int, mixture: Sequence[WeightedSource]) -> tuple[int, ...]:
    """Sequences of each source: by weight, the rest to the largest remainders, earlier first."""
    weights = [Fraction(one.weight) for one in mixture]
    exact = [samples * weight / sum(weights) for weight in weights]
    shares = [int(quota) for quota in exact]
    by_remainder = sorted(range(len(exact)), key=lambda index: shares[index] - exact[index])
    for index in by_remainder[: samples - sum(shares)]:
        shares[index] += 1
    return tuple(shares)


class RecoveryConfig(FrozenModel):
    """Training that wins back what the compression lost: low-rank adapters, merged at the end.

    It ends at `max_tokens` or after `max_seconds`, whichever comes first. A run bounded by tokens
    alone repeats bit for bit on one kind of machine; where the clock ends it, that cannot be.
    """

    loss: RecoveryLoss = Field(
        default="distill",
        description="distill: be as the dense model, whose memory it takes, too; ce: predict the "
        "next token of the text",
    )
    max_tokens: int = Field(
        default=262_144, ge=16, le=10_000_000_000, description="tokens trained on at most"
    )
    max_seconds: float | None = Field(
        default=None, gt=0.0, le=31 * 86_400.0, description="of training; null: as long as it takes"
    )
    rank: int = Field(default=32, ge=1, le=1024, description="of each adapter")
    alpha: float = Field(
        default=64.0, gt=0.0, le=65_536.0, description="adapters are scaled by alpha / rank"
    )
    learning_rate: float = Field(
        default=1e-3, gt=0.0, le=1.0, description="at its peak: it warms up, and falls as a cosine"
    )
    batch_size: int = Field(default=8, ge=1, le=4096, description="sequences a step")
    sequence_length: int = Field(
        default=512, ge=16, le=131_072, validate_default=True, description="tokens a sequence"
    )
    temperature: float = Field(
        default=1.0, ge=0.05, le=100.0, description="of both models' distributions in distill"
    )
    seed: int = Field(default=1, ge=0, lt=2**31, description="of the text and of the adapters")
    source: Annotated[str | _Mixture, WrapValidator(_by_form)] | None = Field(
        default=None,
        description="what is trained on, named as calibration sources are; null: the calibration's",
    )

    @field_validator("sequence_length")
    @classmethod
    def _within_the_tokens(cls, length: int, info: ValidationInfo) -> int:
        tokens = info.data.get("max_tokens")
        if tokens is None:
            return length
        sequences = tokens // length
        if not 1 <= sequences <= MAX_SEQUENCES - HELD_OUT_SEQUENCES:
            raise ValueError(
                f"max_tokens makes {sequences} sequences of this length: have between 1 and "
                f"{MAX_SEQUENCES - HELD_OUT_SEQUENCES} by another of the two"
            )
        return length

    @property
    def sequences(self) -> int:
        """Trained on at most."""
        return self.max_tokens // self.sequence_length

    def mixture(self, calibration: CalibrationConfig) -> tuple[WeightedSource, ...]:
        """What is trained on: sources of its own, or the calibration's."""
        if self.source is None:
            return calibration.mixture
        return self.text(calibration).mixture

    def text(self, calibration: CalibrationConfig) -> CalibrationConfig:
        """The sequences that are trained on and, after it, `HELD_OUT_SEQUENCES` to measure by.

        Raises:
            ValidationError: if one of the sources gets no sequence.
        """
        return CalibrationConfig(
            source=calibration.source if self.source is None else self.source,
            samples=self.sequences + HELD_OUT_SEQUENCES,
            sequence_length=self.sequence_length,
            seed=self.seed,
        )


class CompressionSettings(FrozenModel):
    """Everything about a compression but how much is removed."""

    method: Method = "intraslice_plus"
    target: Target = Field(
        default="research",
        description="research: every layer has shapes of its own, loaded by the checkpoint's code; "
        "adaptive: an MLP width of its own for every layer, loaded by vLLM and llama.cpp; "
        "stock: one shape for all layers, loaded by whatever loads the dense model",
    )
    calibration: CalibrationConfig = CalibrationConfig()
    dtype: ComputeDtype = Field(
        default="auto", description="compute dtype; auto: the fastest exact enough on the device"
    )
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, …")
    round_to: int = Field(
        default=8, ge=1, le=512, description="dimensions are multiples of this; kernels want 8"
    )
    batch_size: int = Field(default=8, ge=1, le=4096, description="sequences per forward pass")
    exports: tuple[ExportFormat, ...] = Field(
        default=("safetensors",),
        min_length=1,
        max_length=3,
        description="files of the result: safetensors always; gguf-f16 and gguf-q8_0 for llama.cpp "
        "of targets stock and adaptive",
    )
    allocation: Allocation = Field(
        default="auto", description="how much is removed where; auto: as the method has it"
    )
    module_cap: float = Field(
        default=0.9,
        gt=0.0,
        le=1.0,
        description="at most this fraction of one module is removed, 1: the whole; "
        "uniform does not ask",
    )
    attention_bias: float = Field(
        default=1.0,
        gt=0.0,
        le=1000.0,
        description="what fisher multiplies attention's scores by: the more, the more of it stays",
    )
    recover: RecoveryConfig | None = Field(
        default=None, description="training after the compression; null: none"
    )

    @property
    def seen_sources(self) -> tuple[str, ...]:
        """Texts that the result will have seen parts of: to calibrate, or to train."""
        mixture = self.calibration.mixture
        if self.recover is not None:
            mixture += self.recover.mixture(self.calibration)
        return tuple(dict.fromkeys(one.source for one in mixture))

    @field_validator("method", mode="before")
    @classmethod
    def _reject_the_old_name(cls, method: Any) -> Any:
        if method == FORMER_METHOD:
            raise ValueError(RENAMED_METHOD_ERROR)
        return method

    @field_validator("recover")
    @classmethod
    def _text_for_all_sources(
        cls, recover: RecoveryConfig | None, info: ValidationInfo
    ) -> RecoveryConfig | None:
        calibration = info.data.get("calibration")
        if recover is not None and calibration is not None:
            try:
                recover.text(calibration)
            except ValidationError as error:
                raise ValueError(f"its text: {error.errors()[0]['msg']}") from None
        return recover

    @field_validator("exports")
    @classmethod
    def _safetensors_and_more(cls, exports: tuple[ExportFormat, ...]) -> tuple[ExportFormat, ...]:
        if "safetensors" not in exports:
            raise ValueError("safetensors cannot be left out: the other files are made from them")
        if len(set(exports)) < len(exports):
            raise ValueError("a format is named twice")
        return exports

    @property
    def gguf_formats(self) -> tuple[GgufFormat, ...]:
        """The GGUF files asked for."""
        return tuple(one for one in self.exports if one != "safetensors")


class CompressionConfig(CompressionSettings):
    """One compression of one model: settings, and exactly one budget.

    Without any, `ratio` is 0.3.
    """

    ratio: Ratio | None = Field(
        default=None,
        examples=[DEFAULT_RATIO],
        description="fraction of compressible parameters removed; 0.3 where no budget is given",
    )
    target_params: int | None = Field(
        default=None, ge=1, lt=2**63, description="parameters of the whole result"
    )
    target_bytes: int | None = Field(
        default=None, ge=1, lt=2**63, description="size of the result's weights in their files"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in_the_default_ratio(cls, given: Any) -> Any:
        if isinstance(given, dict) and all(given.get(name) is None for name in _BUDGETS):
            return given | {"ratio": DEFAULT_RATIO}
        return given

    @field_validator("target_params", "target_bytes")
    @classmethod
    def _refuse_a_second_budget(cls, value: int | None, info: ValidationInfo) -> int | None:
        earlier = next((name for name in _BUDGETS if info.data.get(name) is not None), None)
        if value is not None and earlier is not None:
            raise PydanticCustomError(
                "one_budget",
                "{earlier} says already how much stays: give one of ratio, target_params and "
                "target_bytes, and leave out the others",
                {"earlier": earlier},
            )
        return value

    @property
    def budget_field(self) -> BudgetField:
        """Which of the three was given."""
        return next(name for name in _BUDGETS if getattr(self, name) is not None)


class ModelLimits(FrozenModel):
    """How large a model may be; None sets no limit."""

    max_parameters: int | None = Field(default=None, ge=1)
    max_bytes: int | None = Field(default=None, ge=1, description="of the files with weights")


UNLIMITED = ModelLimits()


class GateConfig(FrozenModel):
    """Refuse to publish a result worse than this; give at least one of the limits."""

    max_perplexity_ratio: float | None = Field(
        default=None, gt=1.0, description="compressed over dense, on each text"
    )
    min_task_ratio: float | None = Field(
        default=None,
        gt=0.0,
        le=1.0,
        description="compressed over dense, of each metric of each task; of a metric that is "
        "better when lower, dense over compressed",
    )

    @model_validator(mode="after")
    def _limit_something(self) -> Self:
        if self.max_perplexity_ratio is None and self.min_task_ratio is None:
            raise ValueError("a gate needs max_perplexity_ratio or min_task_ratio")
        return self


TaskName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.()-]*$", max_length=128)
]
"""As lm-evaluation-harness registers tasks and groups; never a path, which would name code."""


class SpeedPoint(FrozenModel):
    """A load that both models are timed under."""

    batch_size: int = Field(default=1, ge=1, le=256, description="sequences at once")
    context_length: int = Field(
        default=256, ge=1, le=131_072, description="tokens of a prompt; decoding begins behind it"
    )


class EvaluationConfig(FrozenModel):
    """What is measured, dense against compressed, after the compression."""

    perplexity: tuple[str, ...] = Field(
        default=("pydoc",),
        description="texts, named as calibration sources are: their held-out parts; `self` and "
        "`chat` are written by the dense model",
    )
    max_tokens: int = Field(default=16_384, ge=64, description="tokens scored per text")
    context_length: int = Field(default=512, ge=16, description="window of the perplexity")
    tasks: tuple[TaskName, ...] = Field(
        default=(),
        max_length=32,
        description="tasks and groups of lm-evaluation-harness; needs the extra `eval` and the "
        "tasks' data where the work is done",
    )
    task_limit: int | None = Field(
        default=None, ge=1, le=1_000_000, description="examples of each task; null: all of them"
    )
    benchmark: bool = Field(default=True, description="prefill and decode tokens/s")
    speed_grid: tuple[SpeedPoint, ...] = Field(
        default=(),
        max_length=16,
        description="loads under which speed, memory and cache are measured, beside the benchmark",
    )
    prompts: tuple[Annotated[str, Field(min_length=1, max_length=2000)], ...] = Field(
        default=(),
        max_length=8,
        description="texts that both models continue, side by side in the report",
    )
    gate: GateConfig | None = None

    @field_validator("gate")
    @classmethod
    def _gate_what_is_measured(
        cls, gate: GateConfig | None, info: ValidationInfo
    ) -> GateConfig | None:
        if gate is not None and gate.min_task_ratio is not None and not info.data.get("tasks"):
            raise ValueError("min_task_ratio needs tasks")
        return gate
