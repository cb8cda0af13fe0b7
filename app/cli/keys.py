"""`intraslice keys`: API keys of a service or, to create the first one, in the database.

If a service is named (`--url`, `INTRASLICE_URL`, the config file), the commands use its API.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.errors import reported_errors
from app.cli.panels import CommandLine
from app.cli.remote import keys as remote
from app.cli.remote.link import Link, takes_service_options
from app.cli.remote.tables import print_json, print_table
from app.cli.sections import SectionedGroup
from app.domain.principal import DEFAULT_PROJECT, PROJECT_PATTERN, Scope

if TYPE_CHECKING:
    from app.domain.api_key import ApiKey
    from app.services.resources import Resources

_MAX_SHOWN = 1000

commands = CommandLine(
    help="Create, list and revoke API keys.\n\nThe keys are those of the service named by --url, "
    "INTRASLICE_URL or the config file. Without one, the commands use the database of "
    "INTRASLICE_DATABASE_URL directly and need no running API.",
    cls=SectionedGroup,
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add `keys` to the command line."""
    app.add_typer(commands, name="keys")


def _project(name: str | None) -> str | None:
    if name is not None and re.fullmatch(PROJECT_PATTERN, name) is None:
        raise typer.BadParameter(
            "use lower-case letters, digits, dots, dashes and underscores only"
        )
    return name


ProjectOption = Annotated[
    str | None,
    typer.Option(
        callback=_project,
        help="Project (tenant) that the key belongs to.",
        show_default=f"{DEFAULT_PROJECT}, or that of the key in use",
    ),
]


@commands.command()
@takes_service_options
def create(
    *,
    name: Annotated[str, typer.Argument(help="Name of the key, for example its user.")],
    scope: Annotated[
        Scope, typer.Option(help="Permissions of the key; each scope includes the one before it.")
    ] = Scope.WRITE,
    project: ProjectOption = None,
    days: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=36_500,
            help="Days until the key expires (1 to 36500).",
            show_default="never",
        ),
    ] = None,
    link: Link,
) -> None:
    """Create a key and print its secret, which is shown only once."""
    expires_at = datetime.now(UTC) + timedelta(days=days) if days else None
    if names_a_service(link):
        remote.create_key(link, name, scope, project, expires_at)
        return
    from app.domain.principal import OPERATOR
    from app.services.keys import KeyRequest, create_key

    project = project or DEFAULT_PROJECT
    request = KeyRequest(name=name, scope=scope, project_id=project, expires_at=expires_at)
    with _resources() as resources:
        issued = create_key(resources, OPERATOR, request)
        _record(resources, "create", issued, HTTPStatus.CREATED)
    if link.as_json:
        print_json(issued)
        return
    typer.echo(f"{issued.id}: {scope} in project {project}", err=True)
    typer.echo(issued.secret)


@commands.command("list")
@takes_service_options
def list_all(*, project: ProjectOption = None, link: Link) -> None:
    """List a project's keys, newest first."""
    if names_a_service(link):
        remote.list_keys(link, project)
        return
    from app.domain.principal import OPERATOR
    from app.services.keys import list_keys

    with _resources() as resources:
        page = list_keys(
            resources,
            OPERATOR,
            project_id=project or DEFAULT_PROJECT,
            limit=_MAX_SHOWN,
            before=None,
        )
    if link.as_json:
        print_json(page.data)
        return
    rows = (
        (
            *(key.id, key.name, key.scope, key.hint, _state(key)),
            key.last_used_at.isoformat(timespec="minutes") if key.last_used_at else "never",
        )
        for key in page.data
    )
    print_table(("id", "name", "scope", "begins with", "state", "last used"), rows)


@commands.command()
@takes_service_options
def revoke(
    *, key_id: Annotated[str, typer.Argument(help="Id of the key, as `list` shows it.")], link: Link
) -> None:
    """Revoke a key permanently, within seconds in every API process."""
    if names_a_service(link):
        remote.revoke_key(link, key_id)
        return
    from app.domain.principal import OPERATOR
    from app.services.keys import revoke_key

    with _resources() as resources:
        key = revoke_key(resources, OPERATOR, key_id)
        _record(resources, "revoke", key, HTTPStatus.OK)
    typer.echo(f"{key.id} is revoked", err=True)


def names_a_service(link: Link) -> bool:
    """Return True if the command uses the API of a service instead of the database."""
    with reported_errors():
        return link.connection().is_chosen


@contextmanager
def _resources() -> Iterator[Resources]:
    """Yield the service's resources; print an expected error as one line."""
    from app.cli.service import opened_resources, print_advice, process_settings

    settings = process_settings()
    print_advice(settings)
    with opened_resources(settings) as resources:
        yield resources


def _record(resources: Resources, command: str, key: ApiKey, status: HTTPStatus) -> None:
    """Add an entry to the audit log of the key's project."""
    from app.domain.audit import Attempt
    from app.services import audit

    attempt = Attempt(
        project_id=key.project,
        key_id=None,
        method="CLI",
        route=f"intraslice keys {command}",
        object_id=key.id,
        status=status,
        request_id=f"cli_{uuid.uuid4().hex}",
    )
    audit.record(resources, attempt)


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if not key.is_good(datetime.now(UTC)):
        return "expired"
    return f"until {key.expires_at.date()}" if key.expires_at else "good"
