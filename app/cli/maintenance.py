"""`intraslice maintenance`: one run of the store's maintenance, or a list of what it would do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.exit_codes import ExitCode
from app.cli.remote.tables import print_json, print_table

if TYPE_CHECKING:
    from app.domain.maintenance import MaintenancePlan, MaintenanceResult, PlannedRemoval
    from app.services.resources import Resources

_DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="List what would be removed, now and later; change nothing."),
]
_ClaimOption = Annotated[
    bool,
    typer.Option(
        "--claim-store",
        help="Make the artifact store this database's own, whatever its marker says, then run. "
        "Objects of another deployment stay; it stops deleting.",
    ),
]
_CheckOption = Annotated[
    bool,
    typer.Option(
        "--check-artifacts", help="Check the artifacts of every job, not only those that are due."
    ),
]
_JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def register(app: typer.Typer) -> None:
    """Add `maintenance` to the command line."""
    app.command()(maintenance)


def maintenance(
    dry_run: _DryRunOption = False,
    claim_store: _ClaimOption = False,
    check_artifacts: _CheckOption = False,
    as_json: _JsonOption = False,
) -> None:
    """Remove what is due from the artifact store and check the artifacts of jobs.

    Workers and schedulers do this periodically. The command uses the database and the store of
    INTRASLICE_DATABASE_URL and INTRASLICE_ARTIFACT_STORE. It exits with 1 if the store is not
    this deployment's own, or if artifacts are missing.
    """
    if dry_run and (claim_store or check_artifacts):
        raise typer.BadParameter("--dry-run changes nothing: use it alone")
    from app.services import maintenance as services
    from app.services.deployment import take_over_store

    with _resources() as resources:
        if dry_run:
            plan = services.plan(resources)
            _print(plan, as_json=as_json)
            raise typer.Exit(ExitCode.FAILED if plan.problem else ExitCode.DONE)
        if claim_store:
            state = take_over_store(resources)
            typer.echo(f"the store belongs to deployment {state.deployment_id} now", err=True)
        result = services.run(resources, check_all=check_artifacts)
    _print(result, as_json=as_json)
    if result.problem or result.missing_artifacts:
        raise typer.Exit(ExitCode.FAILED)


@contextmanager
def _resources() -> Iterator[Resources]:
    """Yield the service's resources, with logs on stderr; print an expected error as one line."""
    from app.cli.service import opened_resources, process_settings
    from app.environment import log_advice
    from app.telemetry import configure_logging

    settings = process_settings()
    configure_logging(
        settings.log_level,
        settings.log_style,
        secrets=settings.secrets,
        fixed={"process": "maintenance"},
    )
    log_advice(settings)
    with opened_resources(settings) as resources:
        yield resources


def _print(outcome: MaintenancePlan | MaintenanceResult, *, as_json: bool) -> None:
    from app.domain.maintenance import MaintenancePlan

    if as_json:
        print_json(outcome)
        return
    if outcome.problem is not None:
        typer.echo(f"error: {outcome.problem}", err=True)
    if isinstance(outcome, MaintenancePlan):
        _print_plan(outcome)
    else:
        _print_result(outcome)


def _print_plan(plan: MaintenancePlan) -> None:
    typer.echo(f"deployment {plan.deployment_id}, artifact store {plan.store}: {plan.claim}")
    if not plan.removals:
        typer.echo("Nothing would be removed.")
        return
    columns = ("removed", "owner", "reason", "objects", "bytes")
    print_table(columns, (_row(removal) for removal in plan.removals))
    due = plan.due
    objects, size = sum(r.objects for r in due), sum(r.bytes for r in due)
    typer.echo(f"The next run would remove {objects} objects, {size:,} bytes.")


def _row(removal: PlannedRemoval) -> tuple[str, ...]:
    due_at = removal.due_at
    when = "next run" if due_at is None else f"from {due_at:%Y-%m-%d %H:%M} UTC"
    return (when, removal.owner, removal.reason, str(removal.objects), f"{removal.bytes:,}")


def _print_result(result: MaintenanceResult) -> None:
    typer.echo(f"artifact store {result.store}; removed:")
    typer.echo(f"  left-overs of ended jobs: {result.settled_jobs}")
    typer.echo(f"  files of expired jobs: {result.expired_jobs}")
    typer.echo(f"  expired uploads: {result.expired_uploads}")
    typer.echo(f"  objects without an owner: {result.orphaned_objects}")
    missing = len(result.missing_artifacts)
    typer.echo(f"artifacts of {result.checked_jobs} jobs checked; {missing} jobs miss files")
    for job_id in result.missing_artifacts:
        typer.echo(f"error: {job_id}: artifacts are missing in the store", err=True)
