"""Webhooks and their deliveries; every method requires scope `admin`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from intraslice_client import _bodies as bodies
from intraslice_client._async.transport import AsyncTransport
from intraslice_client._requests import without_none


class AsyncWebhooks:
    """Methods of `/v1/webhooks`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(
        self, url: str, events: Sequence[str] | None = None, *, description: str = ""
    ) -> bodies.WebhookWithSecret:
        """Create a webhook; its secret is returned only here.

        Args:
            url: public HTTPS address that receives the events.
            events: event types, such as `job.failed`; None: succeeded, failed and cancelled jobs.
            description: free text.
        """
        body = {"url": url, "description": description}
        body |= without_none(events=events and [*events])
        return await self._transport.fetch(
            bodies.WebhookWithSecret, "POST", "/v1/webhooks", json=body
        )

    async def get(self, webhook_id: str) -> bodies.Webhook:
        """Return a webhook without its secret."""
        return await self._transport.fetch(bodies.Webhook, "GET", f"/v1/webhooks/{webhook_id}")

    async def list(self) -> AsyncIterator[bodies.Webhook]:
        """Yield the webhooks of the project, newest first."""
        async for page in self._transport.pages(bodies.WebhookList, "/v1/webhooks"):
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
    ) -> bodies.Webhook:
        """Change the given fields."""
        body = without_none(url=url, description=description, enabled=enabled)
        body |= {} if events is None else {"events": [*events]}
        path = f"/v1/webhooks/{webhook_id}"
        return await self._transport.fetch(
            bodies.Webhook, "PATCH", path, json=body, idempotent=True
        )

    async def delete(self, webhook_id: str) -> None:
        """Delete a webhook."""
        await self._transport.send("DELETE", f"/v1/webhooks/{webhook_id}", idempotent=False)

    async def rotate(self, webhook_id: str) -> bodies.WebhookWithSecret:
        """Return a new secret; the previous one stays valid for 24 hours."""
        path = f"/v1/webhooks/{webhook_id}/rotate"
        return await self._transport.fetch(bodies.WebhookWithSecret, "POST", path)

    async def test(self, webhook_id: str) -> bodies.Delivery:
        """Send a test event."""
        path = f"/v1/webhooks/{webhook_id}/test"
        return await self._transport.fetch(bodies.Delivery, "POST", path)

    async def deliveries(self, webhook_id: str) -> AsyncIterator[bodies.Delivery]:
        """Yield the deliveries of a webhook with their responses, newest first."""
        path = f"/v1/webhooks/{webhook_id}/deliveries"
        async for page in self._transport.pages(bodies.DeliveryList, path):
            for delivery in page.data:
                yield delivery

    async def redeliver(self, webhook_id: str, delivery_id: str) -> bodies.Delivery:
        """Send a delivery again under the same id."""
        path = f"/v1/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver"
        return await self._transport.fetch(bodies.Delivery, "POST", path)
