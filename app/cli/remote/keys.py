"""`intraslice keys` where a service is named: through its API, with a key of scope admin."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import typer

from app.cli.remote.link import Link
from app.cli.remote.tables import print_json, print_table

if TYPE_CHECKING:
    from app.domain.principal import Scope


def create_key(
    link: Link, name: str, scope: Scope, project: str | None, expires_at: datetime | None
) -> None:
    """Its secret goes alone to stdout."""
    with link.client() as client:
        made = client.keys.create(name, scope, project=project, expires_at=expires_at)
    if link.as_json:
        print_json(made)
        return
    typer.echo(f"{made.id}: {made.scope} in project {made.project}", err=True)
    typer.echo(made.secret)


def list_keys(link: Link, project: str | None) -> None:
    """Newest first."""
    with link.client() as client:
        found = list(client.keys.list(project=project))
    if link.as_json:
        print_json(found)
        return
    rows = (
        (
            *(key.id, key.name, key.scope, key.hint),
            "revoked" if key.revoked_at else key.expires_at or "good",
            key.last_used_at or "never",
        )
        for key in found
    )
    print_table(("id", "name", "scope", "begins with", "state", "last used"), rows)


def revoke_key(link: Link, key_id: str) -> None:
    """It opens nothing any more."""
    with link.client() as client:
        client.keys.revoke(key_id)
    typer.echo(f"{key_id} is revoked", err=True)
