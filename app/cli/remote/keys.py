"""`intraslice keys` through the API of a service; requires an API key of scope admin."""

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
    """Create an API key; only its secret is printed to stdout."""
    with link.client() as client:
        issued = client.keys.create(name, scope, project=project, expires_at=expires_at)
    if link.as_json:
        print_json(issued)
        return
    typer.echo(f"{issued.id}: {issued.scope} in project {issued.project}", err=True)
    typer.echo(issued.secret)


def list_keys(link: Link, project: str | None) -> None:
    """Print the API keys, newest first."""
    with link.client() as client:
        keys = list(client.keys.list(project=project))
    if link.as_json:
        print_json(keys)
        return
    rows = (
        (
            *(key.id, key.name, key.scope, key.hint),
            "revoked" if key.revoked_at else key.expires_at or "valid",
            key.last_used_at or "never",
        )
        for key in keys
    )
    print_table(("id", "name", "scope", "begins with", "state", "last used"), rows)


def revoke_key(link: Link, key_id: str) -> None:
    """Revoke an API key."""
    with link.client() as client:
        client.keys.revoke(key_id)
    typer.echo(f"{key_id} was revoked", err=True)
