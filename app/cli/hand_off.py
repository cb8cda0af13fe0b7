"""`intraslice register` and `push`: a finished checkpoint to those who keep models."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from app.adapters.finished_checkpoints import read_facts
from app.cli.refusals import explained
from app.domain.hand_off import HandedOff, registered_name
from intraslice_core.errors import ConfigurationError

DEFAULT_NAME = "intraslice-{model}"

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Checkpoint = Annotated[Path, typer.Argument(help="A downloaded or compressed checkpoint.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("register")(register_checkpoint)
    app.command()(push)


def register_checkpoint(
    directory: Checkpoint,
    mlflow: Annotated[str, typer.Option(help="MLflow's tracking URI.", metavar="URI")],
    name: Annotated[
        str, typer.Option(help="Of the registered model; {model}, {ratio}, {target} are filled in.")
    ] = DEFAULT_NAME,
    as_json: AsJson = False,
) -> None:
    """Make an MLflow model version of a checkpoint, with its settings and figures.

    The files are compared with their manifest first. A checkpoint that has a version already gets
    no other one.
    """
    from app.adapters.mlflow_registry import register_version

    with explained():
        facts, report = read_facts(directory)
        try:
            called = registered_name(
                name,
                model=report.model,
                ratio=report.config.ratio,
                target=report.config.target,
            )
        except ValueError as error:
            raise ConfigurationError(str(error), field="--name") from error
        # MLflow's client talks of runs where scripts read what we say.
        with redirect_stdout(sys.stderr):
            done = register_version(directory, facts, uri=mlflow, name=called)
    _tell(done, "registered as" if done.new else "was registered already:", as_json=as_json)


def push(
    directory: Checkpoint,
    repo: Annotated[str, typer.Option(help="ORGANISATION/NAME; made where there is none.")],
    endpoint: Annotated[
        str | None, typer.Option(help="Of a Hub of your own; else huggingface.co or HF_ENDPOINT.")
    ] = None,
    private: Annotated[bool, typer.Option(help="Who may see a repository that is made.")] = True,
    as_json: AsJson = False,
) -> None:
    """Send a checkpoint to a Hub, in one commit; the token is HF_TOKEN or that of `hf auth login`.

    The files are compared with their manifest first.
    """
    from app.adapters.model_hub import push_checkpoint

    with explained():
        facts, _ = read_facts(directory)
        done = push_checkpoint(
            directory, facts, repository=repo, endpoint=endpoint, private=private
        )
    _tell(done, "pushed to", as_json=as_json)


def _tell(done: HandedOff, what: str, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(asdict(done)))
        return
    typer.echo(f"{what} {done.reference}")
    typer.echo(done.url)
