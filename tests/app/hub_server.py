"""A minimal Hub over real HTTP: creation of repositories and commits."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from tests.app.api.serving import listening

_SMALL = 64
"""Size in bytes above which files are sent by LFS, so that tiny checkpoints use both ways."""


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)


@dataclass
class Hub:
    token: str
    url: str = ""
    takes_objects: bool = True
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)


@contextmanager
def hub_server(token: str = "hf_of_the_tests") -> Iterator[Hub]:
    hub = Hub(token=token)
    with listening(_application(hub)) as url:
        hub.url = url
        yield hub


class _Routes:
    """Routes that the client uses, in the order of its requests."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def guard(self, request: Request, proceed: Any) -> Response:
        hub = self._hub
        hub.requests.append(f"{request.method} {request.url.path}")
        signed = request.url.path.startswith("/objects/")
        if not signed and request.headers.get("authorization") != f"Bearer {hub.token}":
            return JSONResponse({"error": "Invalid username or password."}, status_code=401)
        return await proceed(request)

    async def create(self, request: Request) -> Response:
        body = await request.json()
        name = f"{body['organization']}/{body['name']}"
        url = {"url": f"{self._hub.url}/{name}"}
        if name in self._hub.repositories:
            return JSONResponse(url | {"error": "You already created this repo"}, status_code=409)
        self._hub.repositories[name] = Repository(private=body.get("visibility") == "private")
        return JSONResponse(url)

    async def tree(self, owner: str, name: str) -> list[dict[str, Any]]:
        files = self._hub.repositories[f"{owner}/{name}"].files
        return [
            {"type": "file", "path": path, "size": len(content), "oid": "0" * 40}
            for path, content in {".gitattributes": b"", **files}.items()
        ]

    async def validate_card(self) -> dict[str, list[str]]:
        return {"errors": [], "warnings": []}

    async def preupload(self, request: Request) -> dict[str, Any]:
        files = (await request.json())["files"]
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["size"] > _SMALL else "regular",
                    "shouldIgnore": False,
                }
                for file in files
            ]
        }

    async def batch(self, request: Request) -> dict[str, Any]:
        return {
            "transfer": "basic",
            "objects": [
                described
                | {"actions": {"upload": {"href": f"{self._hub.url}/objects/{described['oid']}"}}}
                for described in (await request.json())["objects"]
            ],
        }

    async def put_object(self, oid: str, request: Request) -> Response:
        content = await request.body()
        if not self._hub.takes_objects or hashlib.sha256(content).hexdigest() != oid:
            return Response(status_code=400)
        self._hub.objects[oid] = content
        return Response()

    async def commit(self, owner: str, name: str, request: Request) -> dict[str, Any]:
        repository = self._hub.repositories[f"{owner}/{name}"]
        for line in (await request.body()).splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                repository.commits.append(f"{value['summary']}\n{value['description']}")
            elif entry["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                repository.files[value["path"]] = self._hub.objects[value["oid"]]
        oid = secrets.token_hex(20)
        url = f"{self._hub.url}/{owner}/{name}/commit/{oid}"
        return {"success": True, "commitOid": oid, "commitUrl": url}


def _application(hub: Hub) -> FastAPI:
    app, routes = FastAPI(), _Routes(hub)
    app.middleware("http")(routes.guard)
    repository = "/api/models/{owner}/{name}"
    app.post("/api/repos/create")(routes.create)
    app.get(f"{repository}/tree/{{revision}}")(routes.tree)
    app.post("/api/validate-yaml")(routes.validate_card)
    app.post(f"{repository}/preupload/{{revision}}")(routes.preupload)
    app.post("/{owner}/{name}.git/info/lfs/objects/batch")(routes.batch)
    app.put("/objects/{oid}")(routes.put_object)
    app.post(f"{repository}/commit/{{revision}}")(routes.commit)
    return app
