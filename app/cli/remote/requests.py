"""Request fields parsed from command arguments: models, labels, whole files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from app.domain.model_source import ModelSource
from intraslice_core.errors import ConfigurationError

if TYPE_CHECKING:
    from intraslice_client import Client

Body = TypeVar("Body", bound=BaseModel)
_SOURCES = ("hub", "package", "upload", "path")


def model_source(client: Client, text: str) -> ModelSource:
    """Parse a model argument; a local directory is uploaded first.

    Args:
        client: client for the upload.
        text: `hub:ORG/NAME[@REVISION]`, `package:NAME`, `upload:ID`, `path:DIR` on the workers'
            file system, or a local directory.

    Raises:
        ConfigurationError: if it is none of these.
    """
    kind, colon, rest = text.partition(":")
    if colon and kind in _SOURCES:
        name, at, revision = rest.partition("@") if kind == "hub" else (rest, "", "")
        return _validated(source=kind, ref=name, revision=revision if at else None)
    directory = Path(text).expanduser()
    if not directory.is_dir():
        raise ConfigurationError(
            f"{text!r} is not a model source and not a local directory",
            field="model",
            hint="write hub:ORG/NAME, package:NAME, upload:ID, path:DIR (on the workers) or a "
            "local directory",
        )
    return _validated(source="upload", ref=_upload(client, directory))


def is_uploaded(text: str | None) -> bool:
    """Return True if a model argument names a local directory, which is uploaded."""
    return text is not None and text.partition(":")[0] not in _SOURCES


def _upload(client: Client, directory: Path) -> str:
    from rich.markup import escape
    from rich.progress import Progress

    with Progress(transient=True) as bar:
        task = bar.add_task(f"uploading {escape(directory.name)}")
        upload = client.uploads.model(
            directory,
            on_progress=lambda stored, total: bar.update(task, completed=stored, total=total),
        )
    return upload.id


def _validated(**fields: Any) -> ModelSource:
    try:
        return ModelSource.model_validate(fields)
    except ValidationError as error:
        raise ConfigurationError(error.errors()[0]["msg"], field="model") from error


def labels(options: list[str] | None) -> dict[str, str]:
    """Parse `--label KEY=VALUE` options.

    Raises:
        ConfigurationError: if an option has another form.
    """
    parsed = {}
    for option in options or ():
        key, equals, value = option.partition("=")
        if not (key and equals):
            raise ConfigurationError(
                f"{option!r} is not a label", field="--label", hint="write KEY=VALUE"
            )
        parsed[key] = value
    return parsed


def edited_labels(
    name: str | None, options: list[str] | None, removed: list[str] | None
) -> dict[str, str | None]:
    """Return the labels that a job gets, and as None those that it loses; its name is a label.

    Raises:
        ConfigurationError: if nothing is to be changed, or a label is set and removed.
    """
    changes: dict[str, str | None] = dict(labels(options))
    changes |= {} if name is None else {"name": name}
    for key in removed or ():
        if key in changes:
            hint = "set a label or remove it"
            raise ConfigurationError(f"{key!r} is also set", field="--remove-label", hint=hint)
        changes[key] = None
    if not changes:
        hint = "give --name, --label or --remove-label"
        raise ConfigurationError("nothing is to be changed", hint=hint)
    return changes


def read_body(file: Path, body_type: type[Body]) -> Body:
    """Read and validate a request body from a JSON file.

    Raises:
        ConfigurationError: if the file is not JSON or a field is invalid.
    """
    try:
        return body_type.model_validate(json.loads(file.read_text("utf-8")))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigurationError(f"{file} is not a JSON file: {error}", field="--file") from error
    except ValidationError as error:
        problem = error.errors()[0]
        location = ".".join(str(part) for part in problem["loc"])
        raise ConfigurationError(f"{file}: {location}: {problem['msg']}", field="--file") from error
