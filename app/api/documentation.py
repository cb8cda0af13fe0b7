"""The OpenAPI document: one schema for all errors, an example for every response.

The responses of middlewares are added to every operation here, so that no route declares them.
"""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from app.api.examples import example_of
from app.api.problems import MEDIA_TYPE, ProblemDetails

Described = dict[str, Any]

_NAME = "Problem"
_FASTAPIS_OWN = ("HTTPValidationError", "ValidationError")
_METHODS = frozenset({"get", "put", "post", "delete", "patch", "head"})
_KEYED = "/v1/"
_OF_EVERY_KEYED = (401, 429)
_OF_EVERY_BODY = (400, 413)

_DETAILS: dict[int, tuple[str, str]] = {
    400: ("bad_request", "There was an error parsing the body"),
    401: ("unauthenticated", "Send an API key as a bearer token in the Authorization header"),
    403: ("scope_missing", "This needs a key with the scope 'write'"),
    406: ("not_acceptable", "This is there as application/json or text/html only; ask for one"),
    409: ("illegal_state", "The job has succeeded; it cannot be cancelled"),
    412: (
        "precondition_failed",
        "The resource has changed since the client read it; read it again",
    ),
    413: ("body_too_large", "The body is larger than 1048576 bytes"),
    422: ("invalid_request", "The request does not have the right form"),
    429: ("rate_limited", "This key asks too often; try again in 1 s"),
    503: ("database_unavailable", "The database does not answer"),
}
_FIELD_ERROR = {
    "pointer": "/compression/ratio",
    "code": "less_than",
    "message": "Input should be less than 1",
}


def problems(*statuses: int) -> dict[int | str, Described]:
    """Return the `responses` of a route that can fail with these statuses."""
    content = {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{_NAME}"}}}
    return {status: {"description": "A problem.", "content": content} for status in statuses}


def operation_id(route: APIRoute) -> str:
    """Return the name of the route's function, which generated clients use for their methods."""
    return route.name


class DescribedApi(FastAPI):
    """FastAPI with problem documents for errors, and examples."""

    def openapi(self) -> Described:
        if self.openapi_schema is None:
            document = super().openapi()
            schemas = document["components"]["schemas"]
            for name in _FASTAPIS_OWN:
                schemas.pop(name, None)
            schemas[_NAME] = ProblemDetails.model_json_schema()
            for path, operation in _operations(document):
                _complete(path, operation, schemas)
        return super().openapi()


def _operations(document: Described) -> Iterator[tuple[str, Described]]:
    for path, methods in document["paths"].items():
        for method in _METHODS & methods.keys():
            yield path, methods[method]


def _complete(path: str, operation: Described, schemas: Described) -> None:
    responses: Described = operation["responses"]
    expected = [
        *(_OF_EVERY_KEYED if path.startswith(_KEYED) else ()),
        *(_OF_EVERY_BODY if "requestBody" in operation else ()),
    ]
    for status, response in problems(*expected).items():
        responses.setdefault(str(status), response)
    for status in responses:
        # Copied, because FastAPI shares one object between routes.
        response = responses[status] = dict(responses[status])
        if "content" in response:
            response["content"] = {
                media: _with_example(media, content, path, int(status), schemas)
                for media, content in response["content"].items()
            }
    operation["responses"] = dict(sorted(responses.items()))
    for content in operation.get("requestBody", {}).get("content", {}).values():
        content.setdefault("example", example_of(content["schema"], schemas))


def _with_example(
    media: str, content: Described, path: str, status: int, schemas: Described
) -> Described:
    if "example" in content or "examples" in content:
        return content
    if media == MEDIA_TYPE:
        return content | {"example": _problem(path, status)}
    example = example_of(content.get("schema", {}), schemas)
    return content if example is None else content | {"example": example}


def _problem(path: str, status: int) -> Described:
    phrase = HTTPStatus(status).phrase
    code, detail = _DETAILS.get(status, (phrase.lower().replace(" ", "_"), phrase))
    if status == HTTPStatus.NOT_FOUND:
        name = path.rpartition("{")[2].partition("}")[0] if "{" in path else ""
        noun = name.removesuffix("_id") or "object"
        code, detail = f"{noun}_not_found", f"There is no such {noun.replace('_', ' ')}"
    example = {
        "type": f"urn:intraslice:problem:{code}",
        "title": phrase,
        "status": status,
        "detail": detail,
        "instance": path,
        "code": code,
        "request_id": "req_0f4c2b1e9d8a7c6b5a4938271605f4e3",
    }
    return example | ({"errors": [_FIELD_ERROR]} if status == 422 else {})
