"""`intraslice keys`: API keys, straight from the database, so that the first one can be made."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from app.domain.principal import DEFAULT_PROJECT, PROJECT_PATTERN, Scope

if TYPE_CHECKING:
    from app.domain.api_key import ApiKey
    from app.services.resources import Resources

_out = Console(highlight=False, soft_wrap=True)
_errors = Console(stderr=True, highlight=False, soft_wrap=True)
_MOST_SHOWN = 1000
_WIDEST = 500

commands = typer.Typer(
    help="Make, list and revoke API keys; needs INTRASLICE_DATABASE_URL, no running API.",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add `keys` to the command line."""
    app.add_typer(commands, name="keys")


def _project(name: str) -> str:
    if re.fullmatch(PROJECT_PATTERN, name) is None:
        raise typer.BadParameter("small letters, digits, dots, dashes and underscores")
    return name


Project = Annotated[str, typer.Option(callback=_project, help="The tenant the key belongs to.")]


@commands.command()
def create(
    name: Annotated[str, typer.Argument(help="Who or what will use it.")],
    scope: Annotated[Scope, typer.Option(help="Each includes the one before.")] = Scope.WRITE,
    project: Project = DEFAULT_PROJECT,
    days: Annotated[int | None, typer.Option(min=1, max=36_500, help="Until it expires.")] = None,
) -> None:
    """Make a key; its secret goes alone to stdout and is shown this once."""
    from app.domain.principal import OPERATOR
    from app.services.keys import KeyRequest, create_key

    expires_at = datetime.now(UTC) + timedelta(days=days) if days else None
    request = KeyRequest(name=name, scope=scope, project_id=project, expires_at=expires_at)
    with _resources() as resources:
        issued = create_key(resources, OPERATOR, request)
        _write_down(resources, "create", issued.key, HTTPStatus.CREATED)
    _errors.print(f"{issued.key.id}: {scope} in project {project}", markup=False)
    _out.print(issued.secret, markup=False)


@commands.command("list")
def list_all(project: Project = DEFAULT_PROJECT) -> None:
    """List a project's keys, newest first."""
    from app.domain.principal import OPERATOR
    from app.services.keys import list_keys

    with _resources() as resources:
        page = list_keys(resources, OPERATOR, project_id=project, limit=_MOST_SHOWN, before=None)
    table = Table("id", "name", "scope", "begins with", "state", "last used", box=None)
    for key in page.keys:
        used = key.last_used_at.isoformat(timespec="minutes") if key.last_used_at else "never"
        table.add_row(key.id, key.name, key.scope, key.hint, _state(key), used)
    # Ids are there to be copied, by scripts too: elsewhere than in a terminal nothing is cut.
    console = Console(highlight=False, width=_WIDEST if not _out.is_terminal else None)
    console.print(table)


@commands.command()
def revoke(key_id: Annotated[str, typer.Argument(help="As `list` shows it.")]) -> None:
    """End a key for good; within seconds no API process accepts it."""
    from app.domain.principal import OPERATOR
    from app.services.keys import revoke_key

    with _resources() as resources:
        key = revoke_key(resources, OPERATOR, key_id)
        _write_down(resources, "revoke", key, HTTPStatus.OK)
    _errors.print(f"{key.id} is revoked", markup=False)


@contextmanager
def _resources() -> Iterator[Resources]:
    """The service's resources; what fails is one line."""
    from app.cli.service import process_settings
    from app.domain.errors import ServiceError
    from app.services.resources import open_resources

    resources = open_resources(process_settings())
    try:
        yield resources
    except ServiceError as error:
        _refuse(error.message)
    finally:
        resources.close()


def _write_down(resources: Resources, command: str, key: ApiKey, status: HTTPStatus) -> None:
    """In the log of the key's project, where its administrators look."""
    from app.domain.audit import Attempt
    from app.services import audit

    attempt = Attempt(
        project_id=key.project_id,
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


def _refuse(message: str) -> NoReturn:
    _errors.print(f"error: {message}", markup=False)
    raise typer.Exit(1)
