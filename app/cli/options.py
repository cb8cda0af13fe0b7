"""Options shared by several commands, and the conversion of their values into settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from app.cli import panels
from intraslice_core.config import (
    DEFAULT_RATIO,
    FORMER_METHOD,
    METHOD_CHOICES,
    RENAMED_METHOD_ERROR,
    Allocation,
    CompressionConfig,
    ComputeDtype,
    EvaluationConfig,
    MethodChoice,
    RecoveryLoss,
    Target,
    describe_methods,
)
from intraslice_core.errors import ConfigurationError, ModelNotFoundError

DEFAULT = CompressionConfig()
DEFAULT_EVALUATION = EvaluationConfig()

ModelArgument = Annotated[
    str,
    typer.Argument(
        rich_help_panel=panels.MODEL,
        help="Dense model: a directory, a .gguf file, hub:ORG/NAME[@REVISION] or package:NAME.",
    ),
]
RatioOption = Annotated[
    float | None,
    typer.Option(
        rich_help_panel=panels.AMOUNT,
        help="Fraction of the compressible parameters to remove (0 or more, below 1).",
        show_default=f"{DEFAULT_RATIO}, unless --target-params or --target-bytes is given",
    ),
]
TargetParamsOption = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        rich_help_panel=panels.AMOUNT,
        help="Number of parameters of the whole result, instead of a ratio (for example 100M or "
        "1.2G; 1 or more).",
    ),
]
TargetBytesOption = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        rich_help_panel=panels.AMOUNT,
        help="Size of the result's weight files in bytes, instead of a ratio (for example 200M or "
        "1.2G; 1 or more).",
    ),
]
TargetOption = Annotated[
    Target,
    typer.Option(
        rich_help_panel=panels.OUTPUT,
        help="Runtimes that must load the result: research (individual shapes per layer, loaded by "
        "the checkpoint's own code), adaptive (DeciLM, for vLLM and llama.cpp) or stock (the "
        "dense model's class).",
    ),
]
ExportOption = Annotated[
    list[str] | None,
    typer.Option(
        "--exports",
        rich_help_panel=panels.OUTPUT,
        help="File format to write beside safetensors: gguf-f16 or gguf-q8_0; repeatable.",
        show_default="safetensors only",
    ),
]


def _method(value: str) -> MethodChoice:
    """Return the method of that name; its former name gets an explanation."""
    if value == FORMER_METHOD:
        raise typer.BadParameter(RENAMED_METHOD_ERROR)
    if value not in METHODS:
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(METHODS)}")
    return cast("MethodChoice", value)


METHODS: tuple[str, ...] = tuple(METHOD_CHOICES)
MethodOption = Annotated[
    MethodChoice,
    typer.Option(
        parser=_method,
        metavar=f"<{'|'.join(METHODS)}>",
        rich_help_panel=panels.AMOUNT,
        help=f"Compression method. {describe_methods()}",
    ),
]
AllocationOption = Annotated[
    Allocation,
    typer.Option(
        rich_help_panel=panels.ADVANCED,
        help="Budget allocation strategy, which decides how much of each module is removed; auto "
        "selects the method's own.",
    ),
]
ModuleCapOption = Annotated[
    float,
    typer.Option(
        rich_help_panel=panels.ADVANCED,
        help="Largest fraction of one module that may be removed (above 0, at most 1; 1 allows "
        "removing it entirely). Ignored by the uniform allocation.",
    ),
]
AttentionBiasOption = Annotated[
    float,
    typer.Option(
        rich_help_panel=panels.ADVANCED,
        help="Factor on the attention scores of the fisher allocations (above 0, at most 1000); "
        "larger values keep more of the attention.",
    ),
]
MaskTokensOption = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        rich_help_panel=panels.ADVANCED,
        help="Largest number of tokens on which masks are trained, by which the methods spp and "
        "disp then choose what stays; K, M and G are allowed (16 to 10G).",
        show_default="no training; 1M with --mask-seconds",
    ),
]
MaskSecondsOption = Annotated[
    float | None,
    typer.Option(
        rich_help_panel=panels.ADVANCED,
        help="Time limit of the training of masks in seconds (above 0).",
        show_default="no training; no limit with --mask-tokens",
    ),
]
CalibrationOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SOURCE[=WEIGHT]",
        rich_help_panel=panels.CALIBRATION,
        help="Calibration text: pydoc, pycode, self, chat, web, hub:DATASET[:CONFIG][@SPLIT] or a "
        "file (.txt, .md, .jsonl, .json, .csv or .parquet; also .gz or .zst). Repeat the option "
        "for a mixture.",
        show_default="pydoc, pycode, chat, self and web in equal parts; without web, where the Hub "
        "cannot be reached, half of the sequences are self",
    ),
]
SelfShareOption = Annotated[
    float | None,
    typer.Option(
        rich_help_panel=panels.CALIBRATION,
        help="Share of the calibration sequences that the model writes itself, beside the given "
        "text (0 to 0.9).",
        show_default="0.25 for intraslice_plus, else 0",
    ),
]
TextFieldOption = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=panels.CALIBRATION,
        help="Field of the records of text files and data sets that holds the text or the chat.",
        show_default="text, content, messages and other known fields",
    ),
]
SamplesOption = Annotated[
    int,
    typer.Option(
        rich_help_panel=panels.CALIBRATION,
        help="Number of calibration sequences over all sources (1 to 65536).",
    ),
]
SequenceLengthOption = Annotated[
    int,
    typer.Option(
        rich_help_panel=panels.CALIBRATION,
        help="Length of a calibration sequence in tokens (16 to 131072).",
    ),
]
SeedOption = Annotated[
    int, typer.Option(rich_help_panel=panels.CALIBRATION, help="Random seed (0 or greater).")
]
DtypeOption = Annotated[
    ComputeDtype,
    typer.Option(
        rich_help_panel=panels.ADVANCED,
        help="Compute dtype; auto selects the fastest one that is accurate enough.",
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        rich_help_panel=panels.ADVANCED,
        help="Compute device: auto, cpu, cuda, cuda:1 or another torch device.",
    ),
]
JobDeviceOption = Annotated[
    str,
    typer.Option(
        rich_help_panel=panels.ADVANCED,
        help="Kind of compute device: auto, cpu or gpu; the service selects the worker and GPU.",
    ),
]
DevicesOption = Annotated[
    int,
    typer.Option(
        rich_help_panel=panels.ADVANCED,
        help="Number of GPUs that share the work (1 to 64), or of processes on a CPU.",
    ),
]
JobDevicesOption = Annotated[
    int,
    typer.Option(
        rich_help_panel=panels.ADVANCED,
        help="Number of equal GPUs of one worker that share the work (1 to 64).",
    ),
]
BatchSizeOption = Annotated[
    int,
    typer.Option(
        rich_help_panel=panels.ADVANCED, help="Number of sequences per forward pass (1 to 4096)."
    ),
]
RoundToOption = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=panels.ADVANCED,
        help="Number that all layer dimensions are multiples of (1 to 512).",
        show_default="8, and less for models with narrow heads or MLPs",
    ),
]
FastShapesOption = Annotated[
    bool,
    typer.Option(
        rich_help_panel=panels.ADVANCED,
        help="Prefer MLP widths whose rows fill whole blocks of 128, 64 or 32 bytes, where that is "
        "predicted to cost at most 1 % of the perplexity.",
    ),
]
EvaluateOption = Annotated[
    list[str] | None,
    typer.Option(
        rich_help_panel=panels.EVALUATION,
        help="Text on which the perplexity of both models is measured, named as for --calibration; "
        "repeatable.",
        show_default=", ".join(DEFAULT_EVALUATION.perplexity),
    ),
]
EvaluateTokensOption = Annotated[
    str,
    typer.Option(
        metavar="N",
        rich_help_panel=panels.EVALUATION,
        help="Largest number of tokens scored per text (64 or more).",
    ),
]
EvaluationOption = Annotated[
    bool,
    typer.Option(
        rich_help_panel=panels.EVALUATION, help="Evaluate the quality and speed of the result."
    ),
]
BenchmarkOption = Annotated[
    bool,
    typer.Option(
        rich_help_panel=panels.EVALUATION,
        help="Measure the prefill and decode speed of both models in tokens/s.",
    ),
]
GateOption = Annotated[
    float | None,
    typer.Option(
        rich_help_panel=panels.EVALUATION,
        help="Reject a result whose perplexity, divided by the dense model's, exceeds this ratio "
        "on any text (above 1).",
        show_default="no limit",
    ),
]
TasksOption = Annotated[
    list[str] | None,
    typer.Option(
        "--tasks",
        metavar="NAME,…",
        rich_help_panel=panels.EVALUATION,
        help="Zero-shot tasks of lm-evaluation-harness, separated by commas; repeatable (needs "
        'pip install "intraslice[eval]").',
        show_default="none",
    ),
]
TaskLimitOption = Annotated[
    int | None,
    typer.Option(
        "--limit",
        rich_help_panel=panels.EVALUATION,
        help="Largest number of examples per task (1 to 1000000).",
        show_default="all examples",
    ),
]
TaskGateOption = Annotated[
    float | None,
    typer.Option(
        rich_help_panel=panels.EVALUATION,
        help="Reject a result that keeps less than this fraction of the dense model's score in any "
        "task (above 0, at most 1).",
        show_default="no limit",
    ),
]
SpeedGridOption = Annotated[
    list[str] | None,
    typer.Option(
        "--speed-grid",
        metavar="BATCHxCONTEXT,…",
        rich_help_panel=panels.EVALUATION,
        help="Loads under which speed, memory and KV cache are measured, as batch size (1 to 256) "
        "and context length in tokens (1 to 131072), for example 1x512,8x2048; repeatable.",
        show_default="none",
    ),
]
OffloadOption = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=panels.ADVANCED,
        help="Offload hidden states to temporary files in this directory.",
        show_default="keep them in memory",
    ),
]
VerifyOption = Annotated[
    bool,
    typer.Option(
        "--verify/--no-verify",
        rich_help_panel=panels.OUTPUT,
        help="Load the result in a separate process and verify it; needs memory for the whole "
        "result in float32.",
    ),
]
RecoverOption = Annotated[
    RecoveryLoss | None,
    typer.Option(
        rich_help_panel=panels.RECOVERY,
        help="Fine-tune the result with this loss: distill (KL divergence to the dense model), ce "
        "(cross-entropy on the text) or hidden (error of the hidden states after every layer).",
        show_default="no fine-tuning",
    ),
]
PromptOption = Annotated[
    list[str] | None,
    typer.Option(
        "--prompts",
        rich_help_panel=panels.EVALUATION,
        help="Prompt that both models continue, side by side in the report (up to 2000 "
        "characters); repeatable up to 8 times.",
        show_default="none",
    ),
]
OutOption = Annotated[
    Path,
    typer.Option(
        rich_help_panel=panels.OUTPUT, help="Output directory; it must not exist or must be empty."
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", rich_help_panel=panels.OUTPUT, help="Print the report as JSON.")
]


def calibration_source(options: list[str] | None) -> Any:
    """Return the single source by its name, or several or weighted sources as a mixture."""
    if not options:
        return DEFAULT.calibration.source
    mixture = [_weighted(option) for option in options]
    return options[0] if mixture == [{"source": options[0]}] else mixture


def exports(options: list[str] | None) -> tuple[str, ...]:
    """Return safetensors and the further export formats."""
    return ("safetensors", *(name for name in options or () if name != "safetensors"))


def _weighted(option: str) -> dict[str, Any]:
    """Split `NAME=WEIGHT`; without a number after the last `=`, the whole option is the name."""
    name, _, weight = option.rpartition("=")
    try:
        return {"source": name, "weight": float(weight)} if name else {"source": option}
    except ValueError:
        return {"source": option}


def speed_grid(options: list[str] | None) -> list[dict[str, Any]]:
    """Return loads such as `8x2048` as batch sizes and context lengths.

    Raises:
        ConfigurationError: if a load has another form.
    """
    return [_load(option) for option in listed(options)]


def _load(option: str) -> dict[str, Any]:
    batch, _, context = option.partition("x")
    if not (batch.isdecimal() and context.isdecimal()):
        raise ConfigurationError(
            f"{option!r} is not a load",
            field="--speed-grid",
            hint="write BATCHxCONTEXT, for example 8x2048",
        )
    return {"batch_size": int(batch), "context_length": int(context)}


def listed(options: list[str] | None) -> list[str]:
    """Return the values of a repeatable option that also accepts comma-separated values."""
    parts = (part.strip() for option in options or () for part in option.split(","))
    return [part for part in parts if part]


def gate_settings(
    max_perplexity_ratio: float | None, min_task_ratio: float | None
) -> dict[str, Any] | None:
    """Return the limits of the quality gate, or None if there are none."""
    limits = {"max_perplexity_ratio": max_perplexity_ratio, "min_task_ratio": min_task_ratio}
    return limits if any(limit is not None for limit in limits.values()) else None


def evaluation_settings(
    texts: list[str] | None, benchmark: bool, gate: dict[str, Any] | None, **fields: Any
) -> EvaluationConfig:
    """Validate the evaluation settings; `fields` are further fields of `EvaluationConfig`.

    Raises:
        ValidationError: if a value is invalid.
    """
    return EvaluationConfig.model_validate(
        {
            "perplexity": texts or DEFAULT_EVALUATION.perplexity,
            "benchmark": benchmark,
            "gate": gate,
            **fields,
        }
    )


def require_checkpoint(directory: Path) -> None:
    """Raise if the directory holds no checkpoint; transformers' own error has thirty lines.

    Raises:
        ModelNotFoundError: naming the directory.
    """
    if not (directory / "config.json").is_file():
        raise ModelNotFoundError(
            f"{directory} is not a checkpoint: it has no config.json", field="directory"
        )
