"""Every response in the OpenAPI document has an example that its schema accepts."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from app.api.examples import example_of
from app.api.schemas import JobCreate
from app.main import create_app
from app.settings import Settings

DOCUMENT = create_app(Settings()).openapi()
SHOWN = ("application/json", "application/problem+json", "text/event-stream")
ANSWERS = [
    pytest.param(media, content, id=f"{method.upper()} {path} {status} {media}")
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
    for status, response in operation["responses"].items()
    for media, content in response.get("content", {}).items()
    if media in SHOWN
]
BODIES = [
    pytest.param(content, id=f"{method.upper()} {path}")
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
    for content in operation.get("requestBody", {}).get("content", {}).values()
]


def shown(content: dict[str, Any]) -> list[Any]:
    named = [example["value"] for example in content.get("examples", {}).values()]
    return [content["example"], *named] if "example" in content else named


def complaints(schema: dict[str, Any], example: Any) -> list[str]:
    whole = schema | {"components": DOCUMENT["components"]}
    return [error.message for error in jsonschema.Draft202012Validator(whole).iter_errors(example)]


@pytest.mark.parametrize(("media", "content"), ANSWERS)
def test_every_response_has_a_valid_example(media: str, content: dict[str, Any]) -> None:
    assert shown(content), (
        "no example: give the response model `model_config = ConfigDict(json_schema_extra="
        "{'examples': [...]})`, or the route `responses={200: {'content': {…: {'example': …}}}}`"
    )
    if media == "text/event-stream":
        return  # the schema describes the data of one event, the example is a stream
    for example in shown(content):
        assert complaints(content.get("schema", {}), example) == []


@pytest.mark.parametrize("content", BODIES)
def test_every_request_body_has_a_valid_example(content: dict[str, Any]) -> None:
    for example in shown(content):
        assert complaints(content["schema"], example) == []


def test_every_example_of_a_job_request_is_accepted() -> None:
    shown_bodies = JobCreate.model_json_schema()["examples"]
    budgets = [JobCreate.model_validate(body).compression.budget_field for body in shown_bodies]
    assert budgets == ["ratio", "ratio", "target_params", "ratio", "target_bytes"]


def test_examples_of_problems_have_the_code_and_status_of_their_response() -> None:
    responses = DOCUMENT["paths"]["/v1/jobs/{job_id}"]["get"]["responses"]
    for status, code in (("401", "unauthenticated"), ("404", "job_not_found")):
        example = responses[status]["content"]["application/problem+json"]["example"]
        assert (example["status"], example["code"]) == (int(status), code)


def test_a_schema_that_refers_to_itself_needs_an_example() -> None:
    tree = {"type": "object", "properties": {"child": {"$ref": "#/components/schemas/Tree"}}}
    with pytest.raises(ValueError, match="refers to itself"):
        example_of(tree, {"Tree": tree})
    shown_tree = tree | {"examples": [{"child": None}]}
    assert example_of({"$ref": "#/x/Tree"}, {"Tree": shown_tree}) == {"child": None}
