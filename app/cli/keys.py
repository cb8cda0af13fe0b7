"""`intraslice keys`: API keys, straight from the database, so that the first one can be made.

Where a service is named (`--url`, `INTRASLICE_URL`, the config file) they are asked of it instead.
"""

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

from app.cli.refusals import explained
from app.cli.remote import keys as remote
from app.cli.remote.link import Link, speaks
from app.cli.remote.tables import print_json
from app.domain.principal import DEFAULT_PROJECT, PROJECT_PATTERN, Scope

if TYPE_CHECKING:
    from app.domain.api_key import ApiKey
    from app.services.resources import Resources

_out = Console(highlight=False, soft_wrap=True)
_errors = Console(stderr=True, highlight=False, soft_wrap=True)
_MOST_SHOWN = 1000
_WIDEST = 500

commands = typer.Typer(
    help="Make, list and revoke API keys: of the service that is named, or else straight in the "
    "database of INTRASLICE_DATABASE_URL, which needs no running API.",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add `keys` to the command line."""
    app.add_typer(commands, name="keys")


def _project(name: str | None) -> str | None:
    if name is not None and re.fullmatch(PROJECT_PATTERN, name) is None:
        raise typer.BadParameter("small letters, digits, dots, dashes and underscores")
    return name


Project = Annotated[
    str | None,
    typer.Option(
        callback=_project,
        help=f"The tenant the key belongs to.  [default: {DEFAULT_PROJECT}, or the asking key's]",
    ),
]


@commands.command()
@speaks
def create(
    *,
    name: Annotated[str, typer.Argument(help="Who or what will use it.")],
    scope: Annotated[Scope, typer.Option(help="Each includes the one before.")] = Scope.WRITE,
    project: Project = None,
    days: Annotated[int | None, typer.Option(min=1, max=36_500, help="Until it expires.")] = None,
    link: Link,
) -> None:
    """Make a key; its secret goes alone to stdout and is shown this once."""
    from app.api.key_schemas import IssuedKeyOut
    from app.domain.principal import OPERATOR
    from app.services.keys import KeyRequest, create_key

    expires_at = datetime.now(UTC) + timedelta(days=days) if days else None
    if names_a_service(link):
        remote.create_key(link, name, scope, project, expires_at)
        return
    project = project or DEFAULT_PROJECT
    request = KeyRequest(name=name, scope=scope, project_id=project, expires_at=expires_at)
    with _resources() as resources:
        issued = create_key(resources, OPERATOR, request)
        _write_down(resources, "create", issued.key, HTTPStatus.CREATED)
    if link.as_json:
        print_json(IssuedKeyOut.issued(issued))
        return
    _errors.print(f"{issued.key.id}: {scope} in project {project}", markup=False)
    _out.print(issued.secret, markup=False)


@commands.command("list")
@speaks
def list_all(*, project: Project = None, link: Link) -> None:
    """List a project's keys, newest first."""
    if names_a_service(link):
        remote.list_keys(link, project)
        return
    project = project or DEFAULT_PROJECT
    from app.api.key_schemas import KeyOut
    from app.domain.principal import OPERATOR
    from app.services.keys import list_keys

    with _resources() as resources:
        page = list_keys(resources, OPERATOR, project_id=project, limit=_MOST_SHOWN, before=None)
    if link.as_json:
        print_json([KeyOut.of(key) for key in page.keys])
        return
    table = Table("id", "name", "scope", "begins with", "state", "last used", box=None)
    for key in page.keys:
        used = key.last_used_at.isoformat(timespec="minutes") if key.last_used_at else "never"
        table.add_row(key.id, key.name, key.scope, key.hint, _state(key), used)
    # Ids are there to be copied, by scripts too: elsewhere than in a terminal nothing is cut.
    console = Console(highlight=False, width=_WIDEST if not _out.is_terminal else None)
    console.print(table)


@commands.command()
@speaks
def revoke(
    *, key_id: Annotated[str, typer.Argument(help="As `list` shows it.")], link: Link
) -> None:
    """End a key for good; within seconds no API process accepts it."""
    if names_a_service(link):
        remote.revoke_key(link, key_id)
        return
    from app.domain.principal import OPERATOR
    from app.services.keys import revoke_key

    with _resources() as resources:
        key = revoke_key(resources, OPERATOR, key_id)
        _write_down(resources, "revoke", key, HTTPStatus.OK)
    _errors.print(f"{key.id} is revoked", markup=False)


def names_a_service(link: Link) -> bool:
    """Whether the keys are those of a service, and not of the database."""
    with explained():
        return link.connection().is_chosen


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
