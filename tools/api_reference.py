"""Reference of the HTTP API in Markdown, made from `openapi.json`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

SNAPSHOT = Path(__file__).resolve().parents[1] / "openapi.json"
_METHODS = ("get", "post", "put", "patch", "delete")
_BOUNDS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minLength": "≥ {} characters",
    "maxLength": "≤ {} characters",
    "minItems": "≥ {} items",
    "maxItems": "≤ {} items",
}


@cache
def _document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(SNAPSHOT.read_text("utf-8"))
    return document


def operations() -> str:
    """Return a section for each tag, with a part for each of its operations."""
    return "\n".join(_sections())


def schemas() -> str:
    """Return a part for each schema, with a row for each of its fields."""
    named = _document()["components"]["schemas"].items()
    return "\n".join(line for name, schema in named for line in _schema(name, schema))


def _sections() -> Iterator[str]:
    by_tag: dict[str, list[str]] = {}
    for path, methods in _document()["paths"].items():
        for method in _METHODS:
            if method in methods:
                operation = methods[method]
                tag = operation.get("tags", ["other"])[0]
                by_tag.setdefault(tag, []).append("\n".join(_operation(method, path, operation)))
    for tag, parts in by_tag.items():
        yield f"\n## {tag.capitalize()}\n"
        yield from parts


def _operation(method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"\n### `{method.upper()} {path}`\n"
    yield operation.get("description") or operation.get("summary", "")
    parameters = operation.get("parameters", [])
    if parameters:
        yield "\n| parameter | in | type | |\n|---|---|---|---|"
        for parameter in parameters:
            schema = parameter.get("schema", {})
            description = _cell(parameter.get("description") or schema.get("description", ""))
            yield f"| `{parameter['name']}` | {parameter['in']} | {_type(schema)} | {description} |"
    body = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if body:
        yield f"\nBody: {_type(body['schema'])}."
    responses = ", ".join(
        f"{status}{_response(response)}" for status, response in operation["responses"].items()
    )
    yield f"\nResponses: {responses}."


def _response(response: dict[str, Any]) -> str:
    content = response.get("content", {})
    kinds = (content.get(kind, {}) for kind in ("application/json", "application/problem+json"))
    schema = next((kind["schema"] for kind in kinds if "$ref" in kind.get("schema", {})), None)
    return f" {_type(schema)}" if schema else ""


def _schema(name: str, schema: dict[str, Any]) -> Iterator[str]:
    yield f"\n### {name} {{ #{_anchor(name)} }}\n"
    yield schema.get("description", "")
    if "enum" in schema:
        yield f"\nOne of {_values(schema['enum'])}."
    fields = schema.get("properties", {})
    if fields:
        yield "\n| field | type | default | |\n|---|---|---|---|"
    for field, value in fields.items():
        title = f"**`{field}`**" if field in schema.get("required", []) else f"`{field}`"
        default = f"`{json.dumps(value['default'])}`" if _has_short_default(value) else ""
        yield f"| {title} | {_type(value)} | {default} | {_cell(value.get('description', ''))} |"


def _has_short_default(schema: dict[str, Any]) -> bool:
    """Return whether a default is worth a cell; those of whole objects stand at their fields."""
    default = schema.get("default")
    return default is not None and not isinstance(default, dict)


def _type(schema: dict[str, Any]) -> str:
    """Return the type of a value in words, with links to schemas."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{_anchor(name)})"
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(_type(choice) for choice in schema[key])
    if "const" in schema or "enum" in schema:
        return _values(schema.get("enum", [schema.get("const")]))
    return f"{_base_type(schema)}{_bounds(schema)}"


def _base_type(schema: dict[str, Any]) -> str:
    kind: str = schema.get("type", "any value")
    if kind == "array":
        items = schema.get("items", {})
        return f"list of {_type(items)}" if items else "list"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"map to {_type(schema['additionalProperties'])}"
    return str(schema.get("format", kind)) if kind == "string" else kind


def _bounds(schema: dict[str, Any]) -> str:
    given = ((text, schema[key]) for key, text in _BOUNDS.items() if key in schema)
    # JSON has no integers: bounds of integers are written as 9.0.
    words = ", ".join(text.format(int(n) if n == int(n) else n) for text, n in given)
    if schema.get("type") == "object":  # the schema of a map bounds its entries as if it were text
        words = words.replace("characters", "entries")
    return f" ({words})" if words else ""


def _values(values: list[Any]) -> str:
    return ", ".join(f"`{json.dumps(value).strip(chr(34))}`" for value in values)


def _anchor(name: str) -> str:
    """Return the anchor of a schema; its name alone may be that of a tag."""
    return f"schema-{name.lower()}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
