"""API keys; every method requires scope `admin`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime

from app.domain.principal import Scope
from intraslice_client import _bodies as bodies
from intraslice_client._async.transport import AsyncTransport
from intraslice_client._requests import without_none


class AsyncKeys:
    """Methods of `/v1/keys`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(
        self,
        name: str,
        scope: Scope = Scope.WRITE,
        *,
        project: str | None = None,
        expires_at: datetime | None = None,
    ) -> bodies.IssuedKey:
        """Create an API key; its secret is returned only here."""
        body = {"name": name, "scope": scope.value}
        body |= without_none(
            project=project, expires_at=expires_at.isoformat() if expires_at else None
        )
        return await self._transport.fetch(bodies.IssuedKey, "POST", "/v1/keys", json=body)

    async def get(self, key_id: str) -> bodies.ApiKey:
        """Return an API key without its secret."""
        return await self._transport.fetch(bodies.ApiKey, "GET", f"/v1/keys/{key_id}")

    async def list(self, *, project: str | None = None) -> AsyncIterator[bodies.ApiKey]:
        """Yield the API keys of the project, newest first."""
        async for page in self._transport.pages(
            bodies.KeyList, "/v1/keys", without_none(project=project)
        ):
            for key in page.data:
                yield key

    async def revoke(self, key_id: str) -> None:
        """Revoke an API key."""
        await self._transport.send("DELETE", f"/v1/keys/{key_id}")
