"""/v1/webhooks: who is told about jobs, and what became of it.

For admins only, reading too: the URL of a receiver often holds a secret of its own.
"""

from __future__ import annotations

from fastapi import APIRouter, Response

from app.api.dependencies import Admin, CursorQuery, LimitQuery, ResourcesDep
from app.api.documentation import problems
from app.api.pagination import decode_cursor
from app.api.webhook_schemas import (
    DeliveryList,
    DeliveryOut,
    WebhookChange,
    WebhookCreate,
    WebhookList,
    WebhookOut,
    WebhookSecretOut,
)
from app.domain.identifiers import DELIVERY, WEBHOOK
from app.services import webhooks

_PATH = "/v1/webhooks"
router = APIRouter(prefix=_PATH, tags=["webhooks"], responses=problems(401, 403, 422, 503))


@router.post("", status_code=201)
def create_webhook(
    body: WebhookCreate, resources: ResourcesDep, principal: Admin, response: Response
) -> WebhookSecretOut:
    """Have events posted to a URL, signed with the secret that only this answer shows."""
    made = webhooks.create_webhook(resources, principal, body.to_domain())
    response.headers["Location"] = f"{_PATH}/{made.webhook.id}"
    return WebhookSecretOut.of_new(made)


@router.get("")
def list_webhooks(
    resources: ResourcesDep,
    principal: Admin,
    limit: LimitQuery = 20,
    after: CursorQuery = None,
) -> WebhookList:
    """List webhooks, newest first."""
    before = decode_cursor(after, WEBHOOK)
    found = webhooks.list_webhooks(resources, principal, limit=limit + 1, before=before)
    return WebhookList.of(found, limit)


@router.get("/{webhook_id}", responses=problems(404))
def get_webhook(webhook_id: str, resources: ResourcesDep, principal: Admin) -> WebhookOut:
    """Show a webhook."""
    return WebhookOut.of(webhooks.get_webhook(resources, principal, webhook_id))


@router.patch("/{webhook_id}", responses=problems(404))
def change_webhook(
    webhook_id: str, body: WebhookChange, resources: ResourcesDep, principal: Admin
) -> WebhookOut:
    """Change the given fields; `enabled: true` takes up one that was disabled for its failures."""
    changed = webhooks.change_webhook(resources, principal, webhook_id, body.given())
    return WebhookOut.of(changed)


@router.delete("/{webhook_id}", status_code=204, responses=problems(404))
def delete_webhook(webhook_id: str, resources: ResourcesDep, principal: Admin) -> None:
    """Forget a webhook and its deliveries."""
    webhooks.delete_webhook(resources, principal, webhook_id)


@router.post("/{webhook_id}/rotate", responses=problems(404))
def rotate_secret(webhook_id: str, resources: ResourcesDep, principal: Admin) -> WebhookSecretOut:
    """Make a new secret; for 24 hours requests carry a second signature by the old one."""
    return WebhookSecretOut.of_new(webhooks.rotate_secret(resources, principal, webhook_id))


@router.post("/{webhook_id}/test", status_code=202, responses=problems(404, 409))
def send_test(webhook_id: str, resources: ResourcesDep, principal: Admin) -> DeliveryOut:
    """Send an event of the type `webhook.test`."""
    return DeliveryOut.of(webhooks.send_test(resources, principal, webhook_id))


@router.get("/{webhook_id}/deliveries", responses=problems(404))
def list_deliveries(
    webhook_id: str,
    resources: ResourcesDep,
    principal: Admin,
    limit: LimitQuery = 20,
    after: CursorQuery = None,
) -> DeliveryList:
    """List what was sent and what waits, newest first."""
    before = decode_cursor(after, DELIVERY)
    found = webhooks.list_deliveries(
        resources, principal, webhook_id, limit=limit + 1, before=before
    )
    return DeliveryList.of(found, limit)


@router.post(
    "/{webhook_id}/deliveries/{delivery_id}/redeliver",
    status_code=202,
    responses=problems(404, 409),
)
def redeliver(
    webhook_id: str, delivery_id: str, resources: ResourcesDep, principal: Admin
) -> DeliveryOut:
    """Send a settled delivery again, with the same `webhook-id`."""
    return DeliveryOut.of(webhooks.redeliver(resources, principal, webhook_id, delivery_id))
