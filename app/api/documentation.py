"""How errors appear in the OpenAPI description: as problem documents, never as FastAPI's own."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from app.api.problems import MEDIA_TYPE
from app.api.schemas import ProblemOut

_NAME = "Problem"
_FASTAPIS_OWN = ("HTTPValidationError", "ValidationError")


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that can fail so."""
    content = {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{_NAME}"}}}
    return {status: {"description": "A problem.", "content": content} for status in statuses}


class DescribedApi(FastAPI):
    """FastAPI with one schema for all errors."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            schemas = super().openapi()["components"]["schemas"]
            for name in _FASTAPIS_OWN:
                schemas.pop(name, None)
            schemas[_NAME] = ProblemOut.model_json_schema()
        return super().openapi()
