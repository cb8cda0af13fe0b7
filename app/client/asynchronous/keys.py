"""API keys; all of it needs the scope `admin`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime

from app.client.asynchronous.transport import AsyncTransport
from app.client.bodies import present
from app.domain.api_key import ApiKey, IssuedKey, KeyList
from app.domain.principal import Scope


class AsyncKeys:
    """`/v1/keys`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(
        self,
        name: str,
        scope: Scope = Scope.WRITE,
        *,
        project: str | None = None,
        expires_at: datetime | None = None,
    ) -> IssuedKey:
        """Keep its secret: it is not shown again."""
        until = expires_at.isoformat() if expires_at else None
        body = {"name": name, "scope": scope.value}
        body |= present(project=project, expires_at=until)
        return await self._transport.ask(IssuedKey, "POST", "/v1/keys", json=body)

    async def get(self, key_id: str) -> ApiKey:
        """One of them, without its secret."""
        return await self._transport.ask(ApiKey, "GET", f"/v1/keys/{key_id}")

    async def list(self, *, project: str | None = None) -> AsyncIterator[ApiKey]:
        """All of the project's, newest first."""
        async for page in self._transport.pages(KeyList, "/v1/keys", present(project=project)):
            for key in page.data:
                yield key

    async def revoke(self, key_id: str) -> None:
        """It opens nothing any more."""
        await self._transport.send("DELETE", f"/v1/keys/{key_id}")
