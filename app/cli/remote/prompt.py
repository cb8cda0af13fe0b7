"""`intraslice prompt`: the continuations of a prompt by both models of a job of a service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.exit_codes import TABLE, ExitCode
from app.cli.panels import ON_A_SERVICE
from app.cli.remote.jobs import JobArgument
from app.cli.remote.link import Link, takes_service_options
from app.cli.remote.tables import print_json

if TYPE_CHECKING:
    from app.domain.generation import Answer

_NAMES = {"dense": "original", "compressed": "compressed"}


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(rich_help_panel=ON_A_SERVICE, epilog=TABLE)(prompt)


@takes_service_options
def prompt(
    *,
    job: JobArgument,
    text: Annotated[str, typer.Argument(metavar="PROMPT", help="Text to continue.")],
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Largest number of tokens of each answer (1 or more).")
    ] = 64,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=2.0,
            help="Temperature of sampling (above 0, up to 2).",
            show_default="the most likely tokens",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of sampling (0 or more).")] = 0,
    link: Link,
) -> None:
    """Continue a prompt by both models of a job; needs the playground of the service."""
    with link.client(is_long=True) as client:
        made = client.generations.create(
            job, text, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
        )
        try:
            ended = client.generations.wait(
                job, made.id, on_answer=None if link.as_json else _print_answer
            )
        except KeyboardInterrupt:
            client.generations.cancel(job, made.id)
            typer.echo("the prompt was cancelled", err=True)
            raise typer.Exit(ExitCode.INTERRUPTED) from None
    if link.as_json:
        print_json(ended)


def _print_answer(answer: Answer) -> None:
    """Print how an answer was made to stderr, and its text to stdout."""
    cut = ", cut off" if answer.finish_reason == "length" else ""
    typer.echo(
        f"{_NAMES[answer.model]} ({answer.new_tokens} tokens{cut}, "
        f"{answer.tokens_per_second:.1f} tok/s, loaded in {answer.load_seconds:.1f} s):",
        err=True,
    )
    typer.echo(answer.text)
