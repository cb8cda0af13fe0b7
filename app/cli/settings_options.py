"""The options that say how to compress and what to measure, given to several commands at once.

A command that `takes_settings` has them all, after its own, and gets what was said as one
argument, `asked`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from app.cli import options
from app.cli.option_groups import with_options
from app.cli.options import DEFAULT, DEFAULT_RECOVERY
from app.cli.quantities import quantity
from intraslice_core.config import EvaluationConfig

_CALIBRATION = ("samples", "sequence_length", "seed")
_PLAIN = (
    *("target", "method", "allocation", "module_cap", "attention_bias"),
    *("dtype", "device", "batch_size", "round_to"),
)
"""Called as the settings are."""

_OPTIONS: dict[str, tuple[Any, Any]] = {
    "target": (options.TargetOption, DEFAULT.target),
    "export": (options.ExportOption, None),
    "method": (options.MethodOption, DEFAULT.method),
    "allocation": (options.AllocationOption, DEFAULT.allocation),
    "module_cap": (options.ModuleCapOption, DEFAULT.module_cap),
    "attention_bias": (options.AttentionBiasOption, DEFAULT.attention_bias),
    "calibration": (options.CalibrationOption, None),
    "samples": (options.SamplesOption, DEFAULT.calibration.samples),
    "sequence_length": (options.SequenceLengthOption, DEFAULT.calibration.sequence_length),
    "seed": (options.SeedOption, DEFAULT.calibration.seed),
    "dtype": (options.DtypeOption, DEFAULT.dtype),
    "device": (options.DeviceOption, DEFAULT.device),
    "batch_size": (options.BatchSizeOption, DEFAULT.batch_size),
    "round_to": (options.RoundToOption, DEFAULT.round_to),
    "evaluate": (options.EvaluateOption, None),
    "evaluation": (options.EvaluationOption, True),
    "benchmark": (options.BenchmarkOption, True),
    "max_perplexity_ratio": (options.GateOption, None),
    "tasks": (options.TasksOption, None),
    "limit": (options.TaskLimitOption, None),
    "min_task_ratio": (options.TaskGateOption, None),
    "speed_loads": (options.SpeedGridOption, None),
    "prompts": (options.PromptOption, None),
    "recover": (options.RecoverOption, None),
    "recover_tokens": (options.RecoverTokensOption, str(DEFAULT_RECOVERY.max_tokens)),
    "recover_seconds": (options.RecoverSecondsOption, None),
    "recover_rank": (options.RecoverRankOption, DEFAULT_RECOVERY.rank),
    "recover_source": (options.RecoverSourceOption, None),
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was said, by option."""

    values: dict[str, Any]

    def compression(self) -> dict[str, Any]:
        """The settings of a compression, all but its size; to be validated.

        Raises:
            ConfigurationError: if a quantity is none.
        """
        said = self.values
        return {
            **{name: said[name] for name in _PLAIN},
            "exports": options.exports(said["export"]),
            "calibration": {
                "source": options.calibration_source(said["calibration"]),
                **{name: said[name] for name in _CALIBRATION},
            },
            "recover": options.recovery_settings(
                said["recover"],
                quantity(said["recover_tokens"], "--recover-tokens"),
                said["recover_seconds"],
                said["recover_rank"],
                said["recover_source"],
            ),
        }

    def evaluation(self) -> EvaluationConfig | None:
        """What is measured, if anything.

        Raises:
            ValidationError: if it contradicts itself; also where nothing is measured.
            ConfigurationError: if a load is none.
        """
        said = self.values
        gate = options.gate_settings(said["max_perplexity_ratio"], said["min_task_ratio"])
        found = options.evaluation_settings(
            said["evaluate"],
            said["benchmark"],
            gate,
            tasks=options.listed(said["tasks"]),
            task_limit=said["limit"],
            speed_grid=options.speed_grid(said["speed_loads"]),
            prompts=said["prompts"] or (),
        )
        return found if said["evaluation"] else None


def _collect(said: dict[str, Any]) -> Asked:
    return Asked(values=said)


takes_settings = with_options("asked", _OPTIONS, _collect)
"""Gives a command all options of settings in the place of its argument `asked`."""
