"""What a user may ask of the engine: frozen pydantic models, shared by API, CLI and workers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Method = Literal["intraslice", "paper", "magnitude"]
"""`intraslice` is ours, `paper` the published method, `magnitude` the naive baseline."""

Target = Literal["research"]
"""Which runtimes must load the result; `research` leaves every shape free per layer."""

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


class FrozenModel(BaseModel):
    """A value that crosses a boundary: unknown fields are refused, nothing changes after birth."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class CalibrationConfig(FrozenModel):
    """Which text the statistics are taken from.

    `source` is `pydoc` (CPython's own documentation, on every machine), `self` (the model writes
    its own text), `hub:DATASET[:CONFIG][@SPLIT]`, or the path of a `.txt`, `.jsonl` or gzipped
    file of either kind.
    """

    source: str = "pydoc"
    samples: int = Field(default=128, ge=1, le=65_536, description="sequences")
    sequence_length: int = Field(default=2048, ge=16, le=131_072, description="tokens a sequence")
    seed: int = Field(default=0, ge=0, lt=2**31)


class CompressionSettings(FrozenModel):
    """Everything about a compression but how much is removed."""

    method: Method = "intraslice"
    target: Target = "research"
    calibration: CalibrationConfig = CalibrationConfig()
    dtype: ComputeDtype = Field(
        default="auto", description="compute dtype; auto: the fastest exact enough on the device"
    )
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, …")
    round_to: int = Field(
        default=8, ge=1, le=512, description="dimensions are multiples of this; kernels want 8"
    )
    batch_size: int = Field(default=8, ge=1, le=4096, description="sequences per forward pass")
    exports: tuple[Literal["safetensors"], ...] = ("safetensors",)


class CompressionConfig(CompressionSettings):
    """One compression of one model."""

    ratio: Ratio = Field(default=0.3, description="fraction of compressible parameters removed")


class ModelLimits(FrozenModel):
    """How large a model may be; None sets no limit."""

    max_parameters: int | None = Field(default=None, ge=1)
    max_bytes: int | None = Field(default=None, ge=1, description="of the files with weights")


UNLIMITED = ModelLimits()


class GateConfig(FrozenModel):
    """Refuse to publish a result worse than this."""

    max_perplexity_ratio: float = Field(gt=1.0, description="compressed over dense")


class EvaluationConfig(FrozenModel):
    """What is measured, dense against compressed, after the compression."""

    perplexity: tuple[str, ...] = Field(
        default=("pydoc",), description="texts, named as calibration sources are; held-out part"
    )
    max_tokens: int = Field(default=16_384, ge=64, description="tokens scored per text")
    context_length: int = Field(default=512, ge=16, description="window of the perplexity")
    benchmark: bool = Field(default=True, description="prefill and decode tokens/s")
    gate: GateConfig | None = None
