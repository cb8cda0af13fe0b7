"""The dashboard at /, and the files it is made of."""

from __future__ import annotations

from fastapi import APIRouter, Header
from fastapi.responses import Response

from app import dashboard
from app.api.dependencies import ResourcesDep
from app.api.static_files import StaticFiles

router = APIRouter(include_in_schema=False)

_FILES = StaticFiles(dashboard)
_PAGE = "index.html"
_POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'{bucket}; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


@router.get("/")
def home(
    resources: ResourcesDep,
    accept_encoding: str = Header("", max_length=1024),
    if_none_match: str = Header(""),
) -> Response:
    answer = _FILES.response(_PAGE, accept_encoding, if_none_match)
    # In direct mode the page uploads to the bucket; it requests nothing else from there.
    origin = resources.store.origin
    bucket = f" {origin}" if origin is not None else ""
    answer.headers["Content-Security-Policy"] = _POLICY.format(bucket=bucket)
    return answer


@router.get("/dashboard/{name:path}")
def asset(
    name: str,
    accept_encoding: str = Header("", max_length=1024),
    if_none_match: str = Header(""),
) -> Response:
    return _FILES.response(name, accept_encoding, if_none_match)
