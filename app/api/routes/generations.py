"""/v1/jobs/{id}/generate and /generations: the playground, prompts to the models of a job."""

from __future__ import annotations

from fastapi import APIRouter, BackgroundTasks, Response

from app.api.dependencies import CursorQuery, LimitQuery, Reader, ResourcesDep, Writer
from app.api.documentation import problems
from app.api.generation_schemas import GenerationCreate
from app.domain.generation import GENERATION, Generation, GenerationList
from app.domain.resource import decode_cursor
from app.services import generations, outbox

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=problems(401, 403, 404, 422, 503))


@router.post("/{job_id}/generate", status_code=202, responses=problems(409, 410, 429))
def create_generation(
    job_id: str,
    body: GenerationCreate,
    resources: ResourcesDep,
    principal: Writer,
    background: BackgroundTasks,
    response: Response,
) -> Generation:
    """Send a prompt to the original and the compressed model, on a worker that has no job to run.

    The playground is off unless the deployment switches it on; `GET /v1/service` has its limits.
    """
    generation = generations.create_generation(resources, principal, job_id, body.to_domain())
    background.add_task(outbox.dispatch_soon, resources)
    response.headers["Location"] = f"/v1/jobs/{job_id}/generations/{generation.id}"
    return generation


@router.get("/{job_id}/generations")
def list_generations(
    job_id: str,
    resources: ResourcesDep,
    principal: Reader,
    limit: LimitQuery = 20,
    after: CursorQuery = None,
) -> GenerationList:
    """List the generations of a job, newest first."""
    before = decode_cursor(after, GENERATION)
    return generations.list_generations(resources, principal, job_id, limit=limit, before=before)


@router.get("/{job_id}/generations/{generation_id}")
def get_generation(
    job_id: str, generation_id: str, resources: ResourcesDep, principal: Reader
) -> Generation:
    """Return a generation; `answers` has what is ready, also while it runs."""
    return generations.get_generation(resources, principal, job_id, generation_id)


@router.post(
    "/{job_id}/generations/{generation_id}/cancel", status_code=202, responses=problems(409)
)
def cancel_generation(
    job_id: str, generation_id: str, resources: ResourcesDep, principal: Writer
) -> Generation:
    """Cancel a generation that has not ended, at once."""
    return generations.cancel_generation(resources, principal, job_id, generation_id)


@router.delete("/{job_id}/generations/{generation_id}", status_code=204, responses=problems(409))
def delete_generation(
    job_id: str, generation_id: str, resources: ResourcesDep, principal: Writer
) -> None:
    """Delete the prompt and the answers of a generation that has ended."""
    generations.delete_generation(resources, principal, job_id, generation_id)
