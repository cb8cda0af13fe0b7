"""The options for compression and evaluation settings, shared by several commands.

A command decorated with `takes_settings` has all of them after its own options. It receives their
values as one argument, `options`. One decorated with `takes_shared_settings` has all but the
method.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from app.cli import options, recovery_options
from app.cli.option_groups import with_options
from app.cli.options import DEFAULT, DEFAULT_EVALUATION
from app.cli.quantities import quantity
from intraslice_core.config import EvaluationConfig

_CALIBRATION = ("samples", "sequence_length", "seed", "self_share", "text_field")
_SAME_NAME = (
    *("target", "method", "allocation", "module_cap", "attention_bias"),
    *("dtype", "device", "devices", "batch_size", "round_to", "prefer_fast_shapes"),
)
"""Options that have the name of their setting."""

_OPTIONS: dict[str, tuple[Any, Any]] = {
    "target": (options.TargetOption, DEFAULT.target),
    "export": (options.ExportOption, None),
    "method": (options.MethodOption, DEFAULT.method),
    "allocation": (options.AllocationOption, DEFAULT.allocation),
    "module_cap": (options.ModuleCapOption, DEFAULT.module_cap),
    "attention_bias": (options.AttentionBiasOption, DEFAULT.attention_bias),
    "mask_tokens": (options.MaskTokensOption, None),
    "mask_seconds": (options.MaskSecondsOption, None),
    "calibration": (options.CalibrationOption, None),
    "self_share": (options.SelfShareOption, None),
    "text_field": (options.TextFieldOption, None),
    "samples": (options.SamplesOption, DEFAULT.calibration.samples),
    "sequence_length": (options.SequenceLengthOption, DEFAULT.calibration.sequence_length),
    "seed": (options.SeedOption, DEFAULT.calibration.seed),
    "dtype": (options.DtypeOption, DEFAULT.dtype),
    "device": (options.DeviceOption, DEFAULT.device),
    "devices": (options.DevicesOption, DEFAULT.devices),
    "batch_size": (options.BatchSizeOption, DEFAULT.batch_size),
    "round_to": (options.RoundToOption, DEFAULT.round_to),
    "prefer_fast_shapes": (options.FastShapesOption, DEFAULT.prefer_fast_shapes),
    "evaluate": (options.EvaluateOption, None),
    "evaluate_tokens": (options.EvaluateTokensOption, str(DEFAULT_EVALUATION.max_tokens)),
    "evaluation": (options.EvaluationOption, True),
    "benchmark": (options.BenchmarkOption, True),
    "max_perplexity_ratio": (options.GateOption, None),
    "tasks": (options.TasksOption, None),
    "limit": (options.TaskLimitOption, None),
    "min_task_ratio": (options.TaskGateOption, None),
    "speed_loads": (options.SpeedGridOption, None),
    "prompts": (options.PromptOption, None),
    "recover": (options.RecoverOption, None),
    **{f"recover_{name}": option for name, option in recovery_options.OPTIONS.items()},
}


@dataclass(frozen=True, kw_only=True)
class SettingsOptions:
    """Values of the settings options, by parameter name."""

    values: dict[str, Any]

    def compression(self) -> dict[str, Any]:
        """Return the settings of a compression, except for its budget, still to be validated.

        Raises:
            ConfigurationError: if a quantity is malformed.
        """
        values = self.values
        return {
            **{name: values[name] for name in _SAME_NAME},
            "exports": options.exports(values["export"]),
            "calibration": {
                "source": options.calibration_source(values["calibration"]),
                **{name: values[name] for name in _CALIBRATION},
            },
            "mask_training": self._mask_training(),
            "recover": self._recovery(),
        }

    def evaluation(self) -> EvaluationConfig | None:
        """Return the evaluation settings, or None with `--no-evaluation`.

        Raises:
            ValidationError: if a setting is invalid, also with `--no-evaluation`.
            ConfigurationError: if a quantity or a load of the speed grid is malformed.
        """
        values = self.values
        gate = options.gate_settings(values["max_perplexity_ratio"], values["min_task_ratio"])
        config = options.evaluation_settings(
            values["evaluate"],
            values["benchmark"],
            gate,
            max_tokens=quantity(values["evaluate_tokens"], "--evaluate-tokens"),
            tasks=options.listed(values["tasks"]),
            task_limit=values["limit"],
            speed_grid=options.speed_grid(values["speed_loads"]),
            prompts=values["prompts"] or (),
            text_field=values["text_field"],
        )
        return config if values["evaluation"] else None

    def _mask_training(self) -> dict[str, Any] | None:
        """Return the settings of the training of masks, or None without a bound.

        Raises:
            ConfigurationError: if a quantity is malformed.
        """
        tokens, seconds = self.values["mask_tokens"], self.values["mask_seconds"]
        settings: dict[str, Any] = {}
        if tokens is not None:
            settings["max_tokens"] = quantity(tokens, "--mask-tokens")
        if seconds is not None:
            settings["max_seconds"] = seconds
        return settings or None

    def _recovery(self) -> dict[str, Any] | None:
        """Return the settings of the recovery fine-tuning, or None without a loss."""
        loss, text_field = self.values["recover"], self.values["text_field"]
        values = {name: self.values[f"recover_{name}"] for name in recovery_options.OPTIONS}
        # Malformed options are errors without a loss, too.
        settings = recovery_options.recovery_settings(
            loss or recovery_options.DEFAULT_RECOVERY.loss, values, text_field, "--recover-"
        )
        return settings if loss else None


def _collect(values: dict[str, Any]) -> SettingsOptions:
    return SettingsOptions(values=values)


takes_settings = with_options("options", _OPTIONS, _collect)
"""Decorator that gives a command all settings options in place of its argument `options`."""


def _collect_shared(values: dict[str, Any]) -> SettingsOptions:
    return SettingsOptions(values=values | {"method": DEFAULT.method})


takes_shared_settings = with_options(
    "options",
    {name: option for name, option in _OPTIONS.items() if name != "method"},
    _collect_shared,
)
"""The same without `--method`, for commands that compare methods."""


_JOB_DEVICES: dict[str, tuple[Any, Any]] = {
    "device": (options.JobDeviceOption, DEFAULT.device),
    "devices": (options.JobDevicesOption, DEFAULT.devices),
}
takes_job_settings = with_options("options", _OPTIONS | _JOB_DEVICES, _collect)
"""The settings options of commands on a service, which has no names for single devices."""
