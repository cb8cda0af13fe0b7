"""Webhooks and what was delivered to them; all of it needs the scope `admin`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from app.client.asynchronous.transport import AsyncTransport
from app.client.bodies import present
from app.domain.webhook import (
    Delivery,
    DeliveryList,
    Webhook,
    WebhookList,
    WebhookWithSecret,
)


class AsyncWebhooks:
    """`/v1/webhooks`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(
        self, url: str, events: Sequence[str] | None = None, *, description: str = ""
    ) -> WebhookWithSecret:
        """Keep the secret: it is not shown again. Without `events`, the ends of jobs are sent."""
        chosen = {} if events is None else {"events": [*events]}
        body = {"url": url, "description": description, **chosen}
        return await self._transport.ask(WebhookWithSecret, "POST", "/v1/webhooks", json=body)

    async def get(self, webhook_id: str) -> Webhook:
        """One of them, without its secret."""
        return await self._transport.ask(Webhook, "GET", f"/v1/webhooks/{webhook_id}")

    async def list(self) -> AsyncIterator[Webhook]:
        """All of the project's, newest first, page by page."""
        async for page in self._transport.pages(WebhookList, "/v1/webhooks"):
            for webhook in page.data:
                yield webhook

    async def update(
        self,
        webhook_id: str,
        *,
        url: str | None = None,
        events: Sequence[str] | None = None,
        description: str | None = None,
        enabled: bool | None = None,
    ) -> Webhook:
        """Change what is given."""
        body = present(url=url, description=description, enabled=enabled)
        body |= {} if events is None else {"events": [*events]}
        path = f"/v1/webhooks/{webhook_id}"
        return await self._transport.ask(Webhook, "PATCH", path, json=body, repeatable=True)

    async def delete(self, webhook_id: str) -> None:
        """Nothing is sent to it any more."""
        await self._transport.send("DELETE", f"/v1/webhooks/{webhook_id}", repeatable=False)

    async def rotate(self, webhook_id: str) -> WebhookWithSecret:
        """A new secret; the one before signs beside it for a day."""
        path = f"/v1/webhooks/{webhook_id}/rotate"
        return await self._transport.ask(WebhookWithSecret, "POST", path)

    async def test(self, webhook_id: str) -> Delivery:
        """Send a trial."""
        path = f"/v1/webhooks/{webhook_id}/test"
        return await self._transport.ask(Delivery, "POST", path)

    async def deliveries(self, webhook_id: str) -> AsyncIterator[Delivery]:
        """What was sent and how it was answered, newest first, page by page."""
        path = f"/v1/webhooks/{webhook_id}/deliveries"
        async for page in self._transport.pages(DeliveryList, path):
            for delivery in page.data:
                yield delivery

    async def redeliver(self, webhook_id: str, delivery_id: str) -> Delivery:
        """Send one again, under its id."""
        path = f"/v1/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver"
        return await self._transport.ask(Delivery, "POST", path)
