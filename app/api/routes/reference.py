"""The API reference at /docs, and the files it is made of; no key opens it, none is needed."""

from __future__ import annotations

from fastapi import APIRouter, Header
from fastapi.responses import Response

from app import reference
from app.api.static_files import StaticFiles

router = APIRouter(include_in_schema=False)

_FILES = StaticFiles(reference)
_PAGE = "index.html"
_POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""Swagger UI sets inline styles and has its pictures as data URLs; it needs no other origin."""


@router.get("/docs")
def page(
    accept_encoding: str = Header("", max_length=1024),
    if_none_match: str = Header(""),
) -> Response:
    answer = _FILES.response(_PAGE, accept_encoding, if_none_match)
    answer.headers["Content-Security-Policy"] = _POLICY
    return answer


@router.get("/docs/{name:path}")
def asset(
    name: str,
    accept_encoding: str = Header("", max_length=1024),
    if_none_match: str = Header(""),
) -> Response:
    return _FILES.response(name, accept_encoding, if_none_match)
