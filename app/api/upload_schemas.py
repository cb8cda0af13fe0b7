"""The wire format of uploads."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from app.api.pagination import encode_cursor
from app.api.schemas import storable
from app.domain.upload import (
    MOST_FILES,
    Upload,
    UploadError,
    UploadFile,
    UploadKind,
    UploadRequest,
    UploadState,
)
from app.services.uploads import UploadPage, UploadView

_SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


class UploadCreate(BaseModel):
    """The files that will come, each with the SHA-256 it will have."""

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
        Field(description="For people, to find it by."),
    ] = None

    def to_domain(self) -> UploadRequest:
        return UploadRequest(kind=self.kind, files=self.files, name=self.name)


class PartOut(BaseModel):
    """A piece of a file; PUT its bytes to `url` as they are, unless it was received."""

    number: int
    bytes: int
    received: bool
    url: str | None


class UploadFileOut(BaseModel):
    """A file and its parts; none are listed once the upload is not open any more."""

    name: str
    bytes: int
    sha256: str
    parts: list[PartOut]


class UploadUrls(BaseModel):
    """Where the rest is."""

    self: str
    complete: str


class UploadOut(BaseModel):
    """An upload: `open` takes parts, `ready` can be named in jobs, `refused` says why."""

    id: str
    object: Literal["upload"] = "upload"
    name: str | None = None
    kind: UploadKind
    state: UploadState
    bytes: int
    created_at: datetime
    expires_at: datetime | None
    error: UploadError | None
    urls: UploadUrls

    @classmethod
    def of(cls, upload: Upload) -> UploadOut:
        base = f"/v1/uploads/{upload.id}"
        return cls(
            id=upload.id,
            name=upload.name,
            kind=upload.kind,
            state=upload.state,
            bytes=upload.bytes,
            created_at=upload.created_at,
            expires_at=upload.expires_at,
            error=upload.error,
            urls=UploadUrls(self=base, complete=f"{base}/complete"),
        )


class UploadDetailsOut(UploadOut):
    """An upload with its files."""

    part_bytes: int
    files: list[UploadFileOut]

    @classmethod
    def of_view(cls, view: UploadView) -> UploadDetailsOut:
        upload = view.upload
        files = [
            UploadFileOut(
                **file.model_dump(),
                parts=[
                    PartOut(
                        number=one.part.number,
                        bytes=one.part.bytes,
                        received=one.received,
                        url=one.url,
                    )
                    for one in parts
                ],
            )
            for file, parts in zip(upload.files, view.parts, strict=True)
        ]
        return cls(**dict(UploadOut.of(upload)), part_bytes=upload.part_bytes, files=files)


class UploadList(BaseModel):
    """One page of uploads, newest first."""

    data: list[UploadOut]
    has_more: bool
    next_cursor: str | None

    @classmethod
    def of(cls, page: UploadPage) -> UploadList:
        return cls(
            data=[UploadOut.of(upload) for upload in page.uploads],
            has_more=page.has_more,
            next_cursor=encode_cursor(page.uploads[-1].id) if page.has_more else None,
        )
