"""The state of one run: its listener, its cancellation check, its caches and its progress."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from intraslice_core.checkpoints.weight_files import CONFIG_FILE, read_json_object
from intraslice_core.checkpoints.writer import WrittenRecord
from intraslice_core.config import Target
from intraslice_core.content_key import fingerprint
from intraslice_core.evaluation.scoring import DenseScores
from intraslice_core.export.form import WrittenReference
from intraslice_core.families.wrappers import Wrapper, wrapper_of
from intraslice_core.plan import LayerPlan, ModelGeometry
from intraslice_core.progress import (
    CancellationCheck,
    LayerDone,
    ProgressEvent,
    ProgressListener,
    Shares,
    Stage,
    raise_if_cancelled,
    shares_of,
)
from intraslice_core.reports.schema import LayerReport
from intraslice_core.resume_state import ResumeState
from intraslice_core.statistics_cache import StatisticsCache


@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A dense model as a directory of safetensors, with the reference that named it."""

    reference: str
    directory: Path
    wrapper: Path | None = None
    """Directory of the multimodal model whose language model this is, if it is one."""

    @functools.cached_property
    def wrapper_table(self) -> Wrapper | None:
        """Return the table of the multimodal model, None without one."""
        if self.wrapper is None:
            return None
        return wrapper_of(read_json_object(self.wrapper / CONFIG_FILE))

    def target_type(self, target: Target, text_type: str) -> str:
        """Return the model type that decides what a target supports.

        Args:
            target: of the compression.
            text_type: `model_type` of the dense model or language model.
        """
        table = self.wrapper_table
        return text_type if table is None else table.target_type(target, text_type)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Return the SHA-256 of everything that decides what it computes; reads all files once."""
        return fingerprint(self.directory)


@dataclass(kw_only=True)
class Run:
    """The state of one run: listener, cancellation, caches, clock and intermediate results."""

    on_progress: ProgressListener
    should_cancel: CancellationCheck
    started: float = field(default_factory=time.perf_counter)
    warnings: list[str] = field(default_factory=list)
    statistics_cache: StatisticsCache | None = None
    resume_state: ResumeState | None = None
    dense_scores: DenseScores | None = None
    offload_dir: Path | None = None
    """Directory that holds hidden states instead of memory."""
    verify: bool = True
    resumed_layers: int = 0
    written: WrittenRecord | None = None
    """Digests of what the checkpoint's files must contain."""
    reference: WrittenReference | None = None
    """Model that the written files must equal, if they are of another architecture."""
    training_text: Tensor | None = None
    """Sequences to train on, (n, sequence_length), mapped from a file; None without fine-tuning."""
    shares: Shares = field(default_factory=lambda: shares_of(recover=False))
    calibration: Tensor | None = None
    """Calibration sequences, (samples, sequence_length); the evaluation measures its overlap."""

    def report(
        self,
        stage: Stage,
        message: str,
        done: float = 0.0,
        layer: int | None = None,
        layers: int | None = None,
        seconds_left: float | None = None,
    ) -> None:
        """Report progress, or stop if the run is cancelled.

        Args:
            stage: current stage.
            message: current step.
            done: finished fraction of the stage, in [0, 1].
            layer: current layer, from 0.
            layers: number of layers.
            seconds_left: remaining time of the stage, if the stage knows it.

        Raises:
            CompressionCancelledError: if the run is to stop.
        """
        raise_if_cancelled(self.should_cancel)
        begin, end = self.shares[stage]
        fraction = begin + (end - begin) * min(max(done, 0.0), 1.0)
        elapsed = time.perf_counter() - self.started
        eta = elapsed * (1.0 - fraction) / fraction if fraction > 0.02 else None
        if seconds_left is not None:
            eta = seconds_left + (elapsed + seconds_left) * (1.0 - end) / end
        self.on_progress(
            ProgressEvent(
                stage=stage,
                message=message,
                fraction=fraction,
                layer=layer,
                layers=layers,
                eta_seconds=eta,
            )
        )

    def layer_done(self, report: LayerReport, geometry: ModelGeometry) -> None:
        """Report the result of a layer."""
        layers = geometry.num_hidden_layers
        begin, end = self.shares[Stage.COMPRESS]
        self.on_progress(
            ProgressEvent(
                stage=Stage.COMPRESS,
                message=f"layer {report.layer + 1}/{layers} is done",
                fraction=begin + (end - begin) * (report.layer + 1) / layers,
                layer=report.layer,
                layers=layers,
                finished=_layer_done(report, geometry.dense_layer()),
            )
        )


def _layer_done(report: LayerReport, dense: LayerPlan) -> LayerDone:
    plan = report.plan
    return LayerDone(
        layer=report.layer,
        num_attention_heads=plan.num_attention_heads,
        num_key_value_heads=plan.num_key_value_heads,
        qk_head_dim=plan.qk_head_dim,
        v_head_dim=plan.v_head_dim,
        intermediate_size=plan.intermediate_size,
        attention_part=_head_widths(plan) / _head_widths(dense),
        mlp_part=plan.intermediate_size / dense.intermediate_size,
        attention_error=report.attention.relative_error,
        mlp_error=report.mlp.relative_error,
        explained_energy=report.attention.explained_energy,
    )


def _head_widths(plan: LayerPlan) -> int:
    return plan.num_attention_heads * (plan.qk_head_dim + plan.v_head_dim)
