"""The page at /."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

router = APIRouter(include_in_schema=False)

_PAGE = (
    '<!doctype html><html lang="en"><title>IntraSlice</title>'
    '<p>IntraSlice is running: <a href="/docs">API reference</a>, <a href="/v1/jobs">jobs</a>.</p>'
    "</html>\n"
)


@router.get("/")
def home() -> HTMLResponse:
    return HTMLResponse(_PAGE)
