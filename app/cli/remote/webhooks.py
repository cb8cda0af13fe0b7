"""`intraslice webhooks`: who is told of jobs, and what was delivered."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli.exit_codes import TABLE
from app.cli.remote.jobs import PANEL
from app.cli.remote.link import Link, speaks
from app.cli.remote.tables import age, print_json, print_table

commands = typer.Typer(
    help="Webhooks of a service; needs a key of scope admin.", no_args_is_help=True
)
WebhookArgument = Annotated[str, typer.Argument(metavar="WEBHOOK", help="Its id.")]


def register(app: typer.Typer) -> None:
    """Add `webhooks` to the command line."""
    app.add_typer(commands, name="webhooks", rich_help_panel=PANEL, epilog=TABLE)


@commands.command()
@speaks
def create(
    *,
    address: Annotated[str, typer.Argument(metavar="URL", help="That is posted to.")],
    event: Annotated[
        list[str] | None,
        typer.Option(help="job.queued, job.started, …; repeatable.  [default: the ends of jobs]"),
    ] = None,
    description: Annotated[str, typer.Option(help="For people.")] = "",
    link: Link,
) -> None:
    """Make a webhook; its secret goes alone to stdout and is shown this once."""
    with link.client() as client:
        made = client.webhooks.create(address, event, description=description)
    if link.as_json:
        print_json(made)
        return
    typer.echo(made.id, err=True)
    typer.echo(made.secret)


@commands.command("list")
@speaks
def list_webhooks(*, link: Link) -> None:
    """List webhooks, newest first."""
    with link.client() as client:
        found = list(client.webhooks.list())
    if link.as_json:
        print_json(found)
        return
    rows = (
        (one.id, one.url, ", ".join(one.events), "on" if one.enabled else one.disabled_reason)
        for one in found
    )
    print_table(("id", "url", "events", "state"), rows)


@commands.command()
@speaks
def delete(*, webhook: WebhookArgument, link: Link) -> None:
    """Send nothing more there."""
    with link.client() as client:
        client.webhooks.delete(webhook)
    typer.echo(f"{webhook} is deleted", err=True)


@commands.command()
@speaks
def rotate(*, webhook: WebhookArgument, link: Link) -> None:
    """Change the secret; the one before signs beside it for a day."""
    with link.client() as client:
        made = client.webhooks.rotate(webhook)
    if link.as_json:
        print_json(made)
    else:
        typer.echo(made.secret)


@commands.command()
@speaks
def test(*, webhook: WebhookArgument, link: Link) -> None:
    """Send a trial."""
    with link.client() as client:
        sent = client.webhooks.test(webhook)
    if link.as_json:
        print_json(sent)
    else:
        typer.echo(sent.id)


@commands.command()
@speaks
def deliveries(*, webhook: WebhookArgument, link: Link) -> None:
    """List what was sent, newest first, and how it was answered."""
    with link.client() as client:
        found = list(client.webhooks.deliveries(webhook))
    if link.as_json:
        print_json(found)
        return
    rows = (
        (
            one.id,
            one.type,
            one.state,
            one.attempts,
            one.last_status or one.last_error,
            age(one.created_at),
        )
        for one in found
    )
    print_table(("id", "event", "state", "tries", "answer", "age"), rows)


@commands.command()
@speaks
def redeliver(
    *,
    webhook: WebhookArgument,
    delivery: Annotated[str, typer.Argument(metavar="DELIVERY", help="Its id.")],
    link: Link,
) -> None:
    """Send a delivery again, under its id."""
    with link.client() as client:
        sent = client.webhooks.redeliver(webhook, delivery)
    if link.as_json:
        print_json(sent)
    else:
        typer.echo(f"{sent.id} is {sent.state}", err=True)
