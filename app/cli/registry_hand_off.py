"""`intraslice register` and `push`: registry hand-off of a finished checkpoint."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.errors import reported_errors
from intraslice_core.errors import ConfigurationError

if TYPE_CHECKING:
    from app.domain.registry_hand_off import HandedOff

DEFAULT_NAME = "intraslice-{model}"

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
CheckpointArgument = Annotated[Path, typer.Argument(help="Downloaded or compressed checkpoint.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("register")(register_checkpoint)
    app.command()(push)


def register_checkpoint(
    directory: CheckpointArgument,
    mlflow: Annotated[str, typer.Option(help="Tracking URI of the MLflow server.", metavar="URI")],
    name: Annotated[
        str,
        typer.Option(
            help="Name of the registered model; {model}, {ratio} and {target} are replaced by the "
            "checkpoint's values."
        ),
    ] = DEFAULT_NAME,
    as_json: JsonOption = False,
) -> None:
    """Register a checkpoint as an MLflow model version.

    The version carries the settings and figures of the compression. The checkpoint's files are
    verified against their manifest first. A checkpoint that is registered already gets no second
    version.
    """
    from app.adapters.finished_checkpoints import read_facts
    from app.adapters.mlflow_registry import register_version
    from app.domain.registry_hand_off import registered_name

    with reported_errors():
        facts, report = read_facts(directory)
        try:
            registered = registered_name(
                name,
                model=report.model,
                ratio=report.config.ratio,
                target=report.config.target,
            )
        except ValueError as error:
            raise ConfigurationError(str(error), field="--name") from error
        # MLflow's client prints messages to stdout, where scripts read our output.
        with redirect_stdout(sys.stderr):
            hand_off = register_version(directory, facts, uri=mlflow, name=registered)
    outcome = "registered as" if hand_off.new else "was registered already:"
    _print(hand_off, outcome, as_json=as_json)


def push(
    directory: CheckpointArgument,
    repo: Annotated[
        str, typer.Option(help="Repository as ORGANISATION/NAME; created if it does not exist.")
    ],
    endpoint: Annotated[
        str | None,
        typer.Option(
            help="URL of the Hub.", show_default="HF_ENDPOINT, or else https://huggingface.co"
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option(help="Create the repository as private or as public.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Push a checkpoint to a Hub in one commit.

    The token is HF_TOKEN or the one of `hf auth login`. The checkpoint's files are verified
    against their manifest first.
    """
    from app.adapters.finished_checkpoints import read_facts
    from app.adapters.model_hub import push_checkpoint

    with reported_errors():
        facts, _ = read_facts(directory)
        hand_off = push_checkpoint(
            directory, facts, repository=repo, endpoint=endpoint, private=private
        )
    _print(hand_off, "pushed to", as_json=as_json)


def _print(hand_off: HandedOff, outcome: str, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(asdict(hand_off)))
        return
    typer.echo(f"{outcome} {hand_off.reference}")
    typer.echo(hand_off.url)
