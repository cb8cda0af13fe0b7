"""What is asked of the service, from a command's words: models, labels, whole files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from app.domain.model_source import ModelSource
from intraslice_core.errors import ConfigurationError

if TYPE_CHECKING:
    from app.client import Client

Body = TypeVar("Body", bound=BaseModel)
_SOURCES = ("hub", "package", "upload", "path")


def model_source(client: Client, text: str) -> ModelSource:
    """The model that is meant; a directory of this machine is sent to the service.

    Args:
        client: for sending.
        text: `hub:ORG/NAME[@REVISION]`, `package:NAME`, `upload:ID`, `path:PLACE` as the workers
            see it, or a directory here.

    Raises:
        ConfigurationError: if it is none of these.
    """
    kind, colon, rest = text.partition(":")
    if colon and kind in _SOURCES:
        name, at, revision = rest.partition("@") if kind == "hub" else (rest, "", "")
        return _valid(source=kind, ref=name, revision=revision if at else None)
    place = Path(text).expanduser()
    if not place.is_dir():
        raise ConfigurationError(
            f"{text} is no directory here",
            field="model",
            hint="hub:ORG/NAME, package:NAME, upload:ID, or path:PLACE as the workers see it",
        )
    return _valid(source="upload", ref=_send(client, place))


def _send(client: Client, directory: Path) -> str:
    from rich.markup import escape
    from rich.progress import Progress

    with Progress(transient=True) as bar:
        task = bar.add_task(f"sending {escape(directory.name)}")
        done = client.uploads.model(
            directory,
            on_progress=lambda there, total: bar.update(task, completed=there, total=total),
        )
    return done.id


def _valid(**fields: Any) -> ModelSource:
    try:
        return ModelSource.model_validate(fields)
    except ValidationError as error:
        raise ConfigurationError(error.errors()[0]["msg"], field="model") from error


def labels(options: list[str] | None) -> dict[str, str]:
    """`KEY=VALUE`, as often as given.

    Raises:
        ConfigurationError: if one is written otherwise.
    """
    found = {}
    for option in options or ():
        key, equals, value = option.partition("=")
        if not (key and equals):
            raise ConfigurationError(f"{option!r} is no label", field="--label", hint="KEY=VALUE")
        found[key] = value
    return found


def read_body(file: Path, kind: type[Body]) -> Body:
    """A request in a file, checked here before it is sent.

    Raises:
        ConfigurationError: naming the field at fault.
    """
    try:
        return kind.model_validate(json.loads(file.read_text("utf-8")))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigurationError(f"{file} holds no JSON: {error}", field="--file") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(f"{file}: {place}: {first['msg']}", field="--file") from error
