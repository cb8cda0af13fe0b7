"""`intraslice webhooks`: webhooks of a service and their deliveries."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli.exit_codes import TABLE
from app.cli.panels import ON_A_SERVICE, CommandLine
from app.cli.remote.link import Link, takes_service_options
from app.cli.remote.tables import age, print_json, print_table

commands = CommandLine(
    help="Webhooks of a service and their deliveries; requires an API key of scope admin.",
    no_args_is_help=True,
)
WebhookArgument = Annotated[str, typer.Argument(metavar="WEBHOOK", help="Id of the webhook.")]


def register(app: typer.Typer) -> None:
    """Add `webhooks` to the command line."""
    app.add_typer(commands, name="webhooks", rich_help_panel=ON_A_SERVICE, epilog=TABLE)


@commands.command()
@takes_service_options
def create(
    *,
    address: Annotated[
        str, typer.Argument(metavar="URL", help="Public HTTPS address that receives the events.")
    ],
    event: Annotated[
        list[str] | None,
        typer.Option(
            help="Event type to send, such as job.queued or job.started; repeatable.  "
            "[default: job.succeeded, job.failed and job.cancelled]"
        ),
    ] = None,
    description: Annotated[str, typer.Option(help="Description of the webhook.")] = "",
    link: Link,
) -> None:
    """Create a webhook; its secret is printed to stdout and is not shown again."""
    with link.client() as client:
        webhook = client.webhooks.create(address, event, description=description)
    if link.as_json:
        print_json(webhook)
        return
    typer.echo(webhook.id, err=True)
    typer.echo(webhook.secret)


@commands.command("list")
@takes_service_options
def list_webhooks(*, link: Link) -> None:
    """List webhooks, newest first."""
    with link.client() as client:
        webhooks = list(client.webhooks.list())
    if link.as_json:
        print_json(webhooks)
        return
    rows = (
        (
            webhook.id,
            webhook.url,
            ", ".join(webhook.events),
            "on" if webhook.enabled else webhook.disabled_reason,
        )
        for webhook in webhooks
    )
    print_table(("id", "url", "events", "state"), rows)


@commands.command()
@takes_service_options
def delete(*, webhook: WebhookArgument, link: Link) -> None:
    """Delete a webhook."""
    with link.client() as client:
        client.webhooks.delete(webhook)
    typer.echo(f"{webhook} was deleted", err=True)


@commands.command()
@takes_service_options
def rotate(*, webhook: WebhookArgument, link: Link) -> None:
    """Replace the secret; the previous one stays valid for 24 hours."""
    with link.client() as client:
        rotated = client.webhooks.rotate(webhook)
    if link.as_json:
        print_json(rotated)
    else:
        typer.echo(rotated.secret)


@commands.command()
@takes_service_options
def test(*, webhook: WebhookArgument, link: Link) -> None:
    """Send a test event; the id of the delivery is printed to stdout."""
    with link.client() as client:
        delivery = client.webhooks.test(webhook)
    if link.as_json:
        print_json(delivery)
    else:
        typer.echo(delivery.id)


@commands.command()
@takes_service_options
def deliveries(*, webhook: WebhookArgument, link: Link) -> None:
    """List the deliveries of a webhook and their responses, newest first."""
    with link.client() as client:
        sent = list(client.webhooks.deliveries(webhook))
    if link.as_json:
        print_json(sent)
        return
    rows = (
        (
            delivery.id,
            delivery.type,
            delivery.state,
            delivery.attempts,
            delivery.last_status or delivery.last_error,
            age(delivery.created_at),
        )
        for delivery in sent
    )
    print_table(("id", "event", "state", "attempts", "response", "age"), rows)


@commands.command()
@takes_service_options
def redeliver(
    *,
    webhook: WebhookArgument,
    delivery: Annotated[str, typer.Argument(metavar="DELIVERY", help="Id of the delivery.")],
    link: Link,
) -> None:
    """Send a delivery again under the same id."""
    with link.client() as client:
        repeated = client.webhooks.redeliver(webhook, delivery)
    if link.as_json:
        print_json(repeated)
    else:
        typer.echo(f"{repeated.id} is {repeated.state}", err=True)
