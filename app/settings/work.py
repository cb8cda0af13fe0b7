"""Leases of jobs, worker processes, periodic tasks and retention."""

from __future__ import annotations

from pydantic import Field

from app.settings.base import SettingsGroup, renamed
from app.settings.types import ALL_DEVICES, WorkerDevices


class WorkSettings(SettingsGroup):
    """Leases, worker processes, periodic tasks and retention."""

    lease_seconds: float = Field(
        default=30.0,
        gt=0,
        description="Lifetime of a lease, 3 heartbeats or more (seconds, > 0; default 30)",
    )
    heartbeat_seconds: float = Field(
        default=1.0,
        gt=0,
        description="Interval of lease renewals and cancel checks (seconds, > 0; default 1)",
    )
    maintenance_seconds: float = Field(
        default=5.0,
        gt=0,
        validation_alias=renamed("MAINTENANCE_SECONDS", "SWEEP_SECONDS"),
        description="Interval of the periodic tasks (seconds, > 0; default 5)",
    )
    child_grace_seconds: float = Field(
        default=5.0,
        ge=0,
        description="Engine process: time from SIGTERM to SIGKILL (seconds, >= 0; default 5)",
    )
    pause_seconds: float = Field(
        default=60.0,
        ge=0,
        description="Engine process: time to reach the next layer, step or batch from which a "
        "paused job resumes (seconds, >= 0; default 60)",
    )
    shared_statistics_max_bytes: int = Field(
        default=8 * 2**30,
        ge=0,
        description="Disk of a sweep's shared statistics (bytes, 0 disables; default 8 GiB)",
    )
    resume_state_seconds: float = Field(
        default=60.0,
        ge=0,
        validation_alias=renamed("RESUME_STATE_SECONDS", "CHECKPOINT_STREAMS_SECONDS"),
        description="Interval of saving hidden states to resume (seconds, >= 0; default 60)",
    )
    max_runtime_s: int | None = Field(
        default=None,
        ge=1,
        description="Upper bound of every job's run time (seconds, at least 1; default none)",
    )
    max_attempts: int = Field(
        default=3, ge=1, description="Attempts before a job fails (at least 1; default 3)"
    )
    worker_concurrency: int = Field(
        default=1, ge=1, description="Jobs one worker runs at once on a CPU (at least 1; default 1)"
    )
    worker_devices: WorkerDevices = Field(
        default=ALL_DEVICES,
        description="Devices of a worker: all GPUs, GPUs by number (0,1), or cpu (default all)",
    )
    drain_seconds: float = Field(
        default=5.0,
        ge=0,
        description="Time after SIGTERM for requests and jobs to stop (seconds, >= 0; default 5)",
    )
    drain_notice_seconds: float = Field(
        default=0.0,
        ge=0,
        description="Time /readyz reports draining before the port closes (seconds; default 0)",
    )
    maintenance_in_worker: bool = Field(
        default=True,
        validation_alias=renamed("MAINTENANCE_IN_WORKER", "SWEEP_IN_WORKER"),
        description="Workers run periodic tasks; off beside schedulers (boolean; default true)",
    )
    audit_days: float = Field(
        default=365.0,
        ge=0,
        description="Retention of the audit log (days, 0 keeps it for ever; default 365)",
    )
    retention_days: float = Field(
        default=30.0,
        ge=0,
        description="Retention of unpinned artifacts (days, 0 keeps them for ever; default 30)",
    )
    orphan_check_seconds: float = Field(
        default=3600.0,
        gt=0,
        validation_alias=renamed("ORPHAN_CHECK_SECONDS", "ORPHAN_SWEEP_SECONDS"),
        description="Interval of searches for objects without owner (seconds, > 0; default 3600)",
    )
    orphan_hours: float = Field(
        default=24.0,
        ge=24,
        description="Age of objects without owner at removal (hours, at least 24; default 24)",
    )
    artifact_check_hours: float = Field(
        default=24.0,
        gt=0,
        description="Interval of checks that a job's files exist (hours, > 0; default 24)",
    )
