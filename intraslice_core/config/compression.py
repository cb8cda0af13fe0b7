"""Compression settings: method, target, budget and output files."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from intraslice_core.accelerators import DEVICE_HINT, unsupported_device
from intraslice_core.config.base import FrozenModel
from intraslice_core.config.calibration import DEFAULT_MIXTURE, OFFLINE_MIXTURE, CalibrationConfig
from intraslice_core.config.mask_training import MaskTrainingConfig
from intraslice_core.config.methods import (
    FORMER_METHOD,
    RENAMED_METHOD_ERROR,
    MethodChoice,
    describe_methods,
)
from intraslice_core.config.recovery import RecoveryConfig

Target = Literal["research", "adaptive", "stock"]
"""Runtimes that must load the result. `research` leaves every shape free per layer, `adaptive` is a
DeciLM, whose layers differ only in the MLP width, `stock` uses the dense model's own class."""

GgufFormat = Literal["gguf-f16", "gguf-q8_0"]
"""Format of an additional GGUF file, named for the type in which matrices are stored."""

GGUF_FILES: Mapping[GgufFormat, str] = MappingProxyType(
    {"gguf-f16": "model-f16.gguf", "gguf-q8_0": "model-q8_0.gguf"}
)
"""Names of the GGUF files beside the checkpoint."""

ExportFormat = Literal["safetensors", "gguf-f16", "gguf-q8_0"]

Allocator = Literal[
    "uniform",
    "fisher",
    "fisher_pca",
    "lagrangian",
    "global_threshold",
    "two_stage",
    "block_influence",
    "whole_layers",
    "residual_width",
    "solution_path",
    "hypernetwork",
]
"""Budget allocation strategy (docs/method.md, section 4); the last seven are methods' own, of FLAP,
2SSP, MoDeGPT, the methods that remove decoder layers, SliceGPT, SPP, and DISP-LLM with trained
masks."""

Allocation = Literal["auto", "uniform", "fisher", "fisher_pca", "lagrangian"]
"""Requested allocation strategy; `auto` selects the method's own (`methods.resolve_allocator`)."""

BudgetField = Literal["ratio", "target_params", "target_bytes"]
"""Alternative fields that set the budget."""

SUPPORTED_MODEL_TYPES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "phi",
    "phi3",
    "gemma2",
    "gemma3_text",
    "cohere",
    "cohere2",
    "exaone4",
    "glm",
    "glm4",
    "gpt_neox",
    "granite",
    "granitemoehybrid",
    "ministral3",
    "nemotron",
    "olmo2",
    "olmo3",
    "opt",
    "seed_oss",
    "smollm3",
    "stablelm",
    "starcoder2",
)
"""Model types with an adapter in `families`, listed here for callers that must not import torch."""

COMPRESSED_MODEL_TYPES = ("intraslice", "nemotron-nas")
"""Model types of results of the targets `research` and `adaptive`, which are inputs, too."""

ComputeDtype = Literal["auto", "float32", "bfloat16", "float16"]
Ratio = Annotated[float, Field(ge=0.0, lt=1.0)]
DEFAULT_RATIO = 0.3
MAX_DEVICES = 64
"""Largest number of devices of one compression, all of one machine."""

_BUDGETS: tuple[BudgetField, ...] = ("ratio", "target_params", "target_bytes")


class CompressionSettings(FrozenModel):
    """All settings of a compression except its budget."""

    method: MethodChoice = Field(
        default="intraslice_plus",
        description=f"Compression method. {describe_methods()}",
    )
    target: Target = Field(
        default="research",
        description="Runtimes that must load the result. research: individual shapes per layer, "
        "loaded by the checkpoint's own code. adaptive: individual MLP widths per layer, loaded by "
        "vLLM and llama.cpp. stock: one shape for all layers, loaded by every runtime that loads "
        "the dense model.",
    )
    calibration: CalibrationConfig = Field(
        default=CalibrationConfig(), description="Text from which the statistics are taken."
    )
    dtype: ComputeDtype = Field(
        default="auto",
        description="Compute dtype; auto selects the fastest sufficiently exact dtype of the "
        "device.",
    )
    device: str = Field(
        default="auto",
        description="Compute device: auto, cpu, or a torch device such as cuda or cuda:1. Jobs of "
        "a service ask for auto, cpu or gpu: auto is a GPU that fits, or else a CPU.",
    )
    devices: int = Field(
        default=1,
        ge=1,
        le=MAX_DEVICES,
        description="Number of devices that divide the calibration sequences among them, each with "
        "its own process: GPUs of one machine or, with the device cpu, equal parts of its cores. "
        "Jobs of a service ask for GPUs of one worker.",
    )
    round_to: int | None = Field(
        default=None,
        ge=1,
        le=512,
        description="Dimensions are rounded to multiples of this number. null selects 8, which GPU "
        "kernels prefer, and less for models whose heads are narrower than 64 dimensions or whose "
        "MLPs are narrower than 256.",
    )
    prefer_fast_shapes: bool = Field(
        default=True,
        description="Prefer MLP widths whose rows fill whole blocks of 128, 64 or 32 bytes, which "
        "matrix kernels read faster. Budget, target and round_to have "
        "precedence, and it is dropped where it is predicted to cost more than 0.01 nats per token "
        "(1 % of the perplexity). The allocations lagrangian and uniform use it.",
    )
    batch_size: int = Field(default=8, ge=1, le=4096, description="Sequences per forward pass.")
    exports: tuple[ExportFormat, ...] = Field(
        default=("safetensors",),
        min_length=1,
        max_length=3,
        description="File formats of the result: safetensors always; gguf-f16 and gguf-q8_0 add "
        "files for llama.cpp, for the targets stock and adaptive.",
    )
    allocation: Allocation = Field(
        default="auto",
        description="Budget allocation strategy, which decides how much of each module is removed; "
        "auto selects the method's own.",
    )
    module_cap: float = Field(
        default=0.9,
        gt=0.0,
        le=1.0,
        description="Largest fraction of one module that may be removed; 1 allows removing whole "
        "modules. The allocation uniform and the methods 2ssp, shortgpt, fusegpt, slicegpt and "
        "disp ignore it.",
    )
    attention_bias: float = Field(
        default=1.0,
        gt=0.0,
        le=1000.0,
        description="Factor on attention scores in the allocations fisher and fisher_pca; larger "
        "values retain more of the attention.",
    )
    mask_training: MaskTrainingConfig | None = Field(
        default=None,
        description="Training of masks by which the methods spp and disp choose what stays; null "
        "chooses without training.",
    )
    recover: RecoveryConfig | None = Field(
        default=None, description="Recovery fine-tuning after the compression; null skips it."
    )

    @property
    def resolved_calibration(self) -> CalibrationConfig:
        """Calibration with the share of self-written text that the method uses by default."""
        return self.calibration.with_self_share(self.method)

    @property
    def seen_sources(self) -> tuple[str, ...]:
        """Text sources used for calibration or fine-tuning."""
        mixture = self.resolved_calibration.mixture
        if self.recover is not None:
            mixture += self.recover.mixture(self.calibration)
        return tuple(dict.fromkeys(weighted.source for weighted in mixture))

    def without_web(self) -> Self:
        """Return the settings with the offline mixture in place of every default one."""
        calibration, recover = self.calibration, self.recover
        offline = {"source": OFFLINE_MIXTURE}
        if calibration.web_is_optional:
            calibration = calibration.model_copy(update=offline)
        if recover is not None and recover.source == DEFAULT_MIXTURE:
            recover = recover.model_copy(update=offline)
        return self.model_copy(update={"calibration": calibration, "recover": recover})

    @field_validator("method", mode="before")
    @classmethod
    def _reject_the_old_name(cls, method: Any) -> Any:
        if method == FORMER_METHOD:
            raise ValueError(RENAMED_METHOD_ERROR)
        return method

    @field_validator("device")
    @classmethod
    def _reject_devices_never_tested(cls, device: str) -> str:
        reason = unsupported_device(device)
        if reason is not None:
            raise ValueError(f"{reason}: {DEVICE_HINT}")
        return device

    @field_validator("devices")
    @classmethod
    def _require_a_device_and_a_sequence_for_each(cls, devices: int, info: ValidationInfo) -> int:
        device, calibration = info.data.get("device", ""), info.data.get("calibration")
        if devices > 1 and ":" in device:
            raise ValueError(
                f"{device} is a single device, not {devices}: write {device.partition(':')[0]}, of "
                "which every process takes its own"
            )
        if calibration is not None and devices > calibration.samples:
            raise ValueError(
                f"{devices} devices cannot divide {calibration.samples} calibration sequences: "
                "lower devices, or raise calibration.samples"
            )
        return devices

    @field_validator("recover")
    @classmethod
    def _require_text_from_every_source(
        cls, recover: RecoveryConfig | None, info: ValidationInfo
    ) -> RecoveryConfig | None:
        calibration = info.data.get("calibration")
        if recover is not None and calibration is not None:
            try:
                recover.text(calibration)
            except ValidationError as error:
                raise ValueError(f"fine-tuning text: {error.errors()[0]['msg']}") from None
        return recover

    @field_validator("exports")
    @classmethod
    def _require_safetensors_once(
        cls, exports: tuple[ExportFormat, ...]
    ) -> tuple[ExportFormat, ...]:
        if "safetensors" not in exports:
            raise ValueError(
                "exports must contain safetensors, because the other files are made from it: add it"
            )
        if len(set(exports)) < len(exports):
            raise ValueError("a format occurs twice: name each format once")
        return exports

    @property
    def gguf_formats(self) -> tuple[GgufFormat, ...]:
        """Requested GGUF formats."""
        return tuple(name for name in self.exports if name != "safetensors")


class CompressionConfig(CompressionSettings):
    """One compression of one model: settings and exactly one budget.

    The default budget is `ratio` 0.3.
    """

    ratio: Ratio | None = Field(
        default=None,
        examples=[DEFAULT_RATIO],
        description="Fraction of the compressible parameters to remove; 0.3 where no budget is "
        "given.",
    )
    target_params: int | None = Field(
        default=None, ge=1, lt=2**63, description="Number of parameters of the whole result."
    )
    target_bytes: int | None = Field(
        default=None, ge=1, lt=2**63, description="Size of the result's weight files in bytes."
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in_the_default_ratio(cls, data: Any) -> Any:
        if isinstance(data, dict) and all(data.get(name) is None for name in _BUDGETS):
            return data | {"ratio": DEFAULT_RATIO}
        return data

    @field_validator("target_params", "target_bytes")
    @classmethod
    def _reject_a_second_budget(cls, value: int | None, info: ValidationInfo) -> int | None:
        earlier = next((name for name in _BUDGETS if info.data.get(name) is not None), None)
        if value is not None and earlier is not None:
            raise PydanticCustomError(
                "one_budget",
                "{earlier} already sets the budget: give one of ratio, target_params and "
                "target_bytes, and leave out the others",
                {"earlier": earlier},
            )
        return value

    @property
    def budget_field(self) -> BudgetField:
        """Name of the field that sets the budget."""
        return next(name for name in _BUDGETS if getattr(self, name) is not None)


class ModelLimits(FrozenModel):
    """Largest allowed size of a dense model; None sets no limit."""

    max_parameters: int | None = Field(
        default=None, ge=1, description="Largest number of parameters."
    )
    max_bytes: int | None = Field(
        default=None, ge=1, description="Largest total size of the weight files in bytes."
    )


UNLIMITED = ModelLimits()
