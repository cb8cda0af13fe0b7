"""/v1/webhooks: webhooks and their deliveries.

Reading them needs the scope admin too: the URL of a receiver often contains a secret.
"""

from __future__ import annotations

from fastapi import APIRouter, Response

from app.api.dependencies import Admin, CursorQuery, LimitQuery, ResourcesDep
from app.api.documentation import problems
from app.api.webhook_schemas import WebhookChange, WebhookCreate
from app.domain.identifiers import DELIVERY, WEBHOOK
from app.domain.resource import decode_cursor
from app.domain.webhook import Delivery, DeliveryList, Webhook, WebhookList, WebhookWithSecret
from app.services import webhooks

_PATH = "/v1/webhooks"
router = APIRouter(prefix=_PATH, tags=["webhooks"], responses=problems(401, 403, 422, 503))


@router.post("", status_code=201)
def create_webhook(
    body: WebhookCreate, resources: ResourcesDep, principal: Admin, response: Response
) -> WebhookWithSecret:
    """Create a webhook; events are signed with the secret that only this response contains."""
    webhook = webhooks.create_webhook(resources, principal, body.to_domain())
    response.headers["Location"] = f"{_PATH}/{webhook.id}"
    return webhook


@router.get("")
def list_webhooks(
    resources: ResourcesDep,
    principal: Admin,
    limit: LimitQuery = 20,
    after: CursorQuery = None,
) -> WebhookList:
    """List webhooks, newest first."""
    before = decode_cursor(after, WEBHOOK)
    return webhooks.list_webhooks(resources, principal, limit=limit, before=before)


@router.get("/{webhook_id}", responses=problems(404))
def get_webhook(webhook_id: str, resources: ResourcesDep, principal: Admin) -> Webhook:
    """Return a webhook."""
    return webhooks.get_webhook(resources, principal, webhook_id)


@router.patch("/{webhook_id}", responses=problems(404))
def change_webhook(
    webhook_id: str, body: WebhookChange, resources: ResourcesDep, principal: Admin
) -> Webhook:
    """Change the given fields; `enabled: true` also enables a webhook that the service disabled."""
    return webhooks.change_webhook(resources, principal, webhook_id, body.given())


@router.delete("/{webhook_id}", status_code=204, responses=problems(404))
def delete_webhook(webhook_id: str, resources: ResourcesDep, principal: Admin) -> None:
    """Delete a webhook and its deliveries."""
    webhooks.delete_webhook(resources, principal, webhook_id)


@router.post("/{webhook_id}/rotate", responses=problems(404))
def rotate_secret(webhook_id: str, resources: ResourcesDep, principal: Admin) -> WebhookWithSecret:
    """Create a new secret; for 24 hours requests also carry a signature by the old one."""
    return webhooks.rotate_secret(resources, principal, webhook_id)


@router.post("/{webhook_id}/test", status_code=202, responses=problems(404, 409))
def send_test(webhook_id: str, resources: ResourcesDep, principal: Admin) -> Delivery:
    """Send an event of the type `webhook.test`."""
    return webhooks.send_test(resources, principal, webhook_id)


@router.get("/{webhook_id}/deliveries", responses=problems(404))
def list_deliveries(
    webhook_id: str,
    resources: ResourcesDep,
    principal: Admin,
    limit: LimitQuery = 20,
    after: CursorQuery = None,
) -> DeliveryList:
    """List pending and settled deliveries, newest first."""
    before = decode_cursor(after, DELIVERY)
    return webhooks.list_deliveries(resources, principal, webhook_id, limit=limit, before=before)


@router.post(
    "/{webhook_id}/deliveries/{delivery_id}/redeliver",
    status_code=202,
    responses=problems(404, 409),
)
def redeliver(
    webhook_id: str, delivery_id: str, resources: ResourcesDep, principal: Admin
) -> Delivery:
    """Send a settled delivery again, with the same `webhook-id`."""
    return webhooks.redeliver(resources, principal, webhook_id, delivery_id)
