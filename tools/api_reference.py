"""MkDocs hook that fills the HTTP API page from `openapi.json`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SNAPSHOT = Path(__file__).resolve().parents[1] / "openapi.json"
_MARKER = "<!-- the operations of openapi.json -->"
_METHODS = ("get", "post", "put", "patch", "delete")


def on_page_markdown(markdown: str, **_page: Any) -> str:
    """Replace the marker, which only one page has; MkDocs calls this for every page."""
    if _MARKER not in markdown:
        return markdown
    document = json.loads(SNAPSHOT.read_text("utf-8"))
    return markdown.replace(_MARKER, "\n".join(_operations(document)))


def _operations(document: dict[str, Any]) -> Iterator[str]:
    by_tag: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method in _METHODS:
            if method in methods:
                operation = methods[method]
                tag = operation.get("tags", ["other"])[0]
                by_tag.setdefault(tag, []).append("\n".join(_operation(method, path, operation)))
    for tag, operations in by_tag.items():
        yield f"\n## {tag.capitalize()}\n"
        yield from operations


def _operation(method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"\n### `{method.upper()} {path}`\n"
    yield operation.get("description") or operation.get("summary", "")
    parameters = operation.get("parameters", [])
    if parameters:
        yield "\n| parameter | in | |\n|---|---|---|"
        for parameter in parameters:
            description = (parameter.get("description") or "").replace("\n", " ")
            yield f"| `{parameter['name']}` | {parameter['in']} | {description} |"
    body = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if body:
        yield f"\nBody: {_schema(body['schema'])}."
    responses = ", ".join(
        f"{status}{_response(response)}" for status, response in operation["responses"].items()
    )
    yield f"\nResponses: {responses}."


def _response(response: dict[str, Any]) -> str:
    content = response.get("content", {}).get("application/json", {})
    name = _schema(content.get("schema", {}))
    return f" {name}" if name else ""


def _schema(schema: dict[str, Any]) -> str:
    reference = schema.get("$ref", "")
    return f"`{reference.rsplit('/', 1)[-1]}`" if reference else ""
