"""Request body of `POST /v1/uploads`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from app.api.schemas import storable
from app.domain.upload import MOST_FILES, UploadFile, UploadKind, UploadRequest

_SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


class UploadCreate(BaseModel):
    """An upload to be created: its files with their sizes and SHA-256 hashes."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "kind": "text",
                    "files": [{"name": "corpus.jsonl", "bytes": 1048576, "sha256": _SHA256}],
                }
            ]
        },
    )

    kind: UploadKind
    files: Annotated[
        tuple[UploadFile, ...],
        BeforeValidator(storable),
        Field(min_length=1, max_length=MOST_FILES),
    ]
    name: Annotated[
        Annotated[str, StringConstraints(min_length=1, max_length=200)] | None,
        BeforeValidator(storable),
        Field(description="Name for people to find the upload by."),
    ] = None

    def to_domain(self) -> UploadRequest:
        return UploadRequest(kind=self.kind, files=self.files, name=self.name)
