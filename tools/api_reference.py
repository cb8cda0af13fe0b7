"""The documentation's page about the HTTP API, from `openapi.json`; a hook of MkDocs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SNAPSHOT = Path(__file__).resolve().parents[1] / "openapi.json"
_PLACE = "<!-- the operations of openapi.json -->"
_METHODS = ("get", "post", "put", "patch", "delete")


def on_page_markdown(markdown: str, **_page: Any) -> str:
    """Called by MkDocs for every page; only one has the place."""
    if _PLACE not in markdown:
        return markdown
    described = json.loads(SNAPSHOT.read_text("utf-8"))
    return markdown.replace(_PLACE, "\n".join(_operations(described)))


def _operations(described: dict[str, Any]) -> Iterator[str]:
    by_tag: dict[str, list[str]] = {}
    for path, methods in described["paths"].items():
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
        for one in parameters:
            said = (one.get("description") or "").replace("\n", " ")
            yield f"| `{one['name']}` | {one['in']} | {said} |"
    body = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if body:
        yield f"\nBody: {_schema(body['schema'])}."
    answers = ", ".join(f"{status}{_answer(one)}" for status, one in operation["responses"].items())
    yield f"\nAnswers: {answers}."


def _answer(response: dict[str, Any]) -> str:
    content = response.get("content", {}).get("application/json", {})
    name = _schema(content.get("schema", {}))
    return f" {name}" if name else ""


def _schema(schema: dict[str, Any]) -> str:
    reference = schema.get("$ref", "")
    return f"`{reference.rsplit('/', 1)[-1]}`" if reference else ""
