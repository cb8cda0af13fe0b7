"""/livez and /readyz."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from app.api.documentation import problems
from app.api.problems import Problem, problem_response
from app.services.health import HealthProbe

router = APIRouter(tags=["health"])


@router.get("/livez")
def livez() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "ok"}


@router.get("/readyz", responses=problems(503))
def readyz(request: Request) -> Response:
    """Check database, broker and store; a process that is about to end is not ready."""
    if request.app.state.draining.is_set():
        return problem_response(request.scope, Problem(503, "draining", "This process is ending"))
    probe: HealthProbe = request.app.state.health
    checks = probe.check_all()
    described = {
        check.name: {"ok": check.problem is None, "problem": check.problem} for check in checks
    }
    failing = [one.name for one in checks if one.problem is not None]
    if not failing:
        return JSONResponse({"status": "ok", "checks": described})
    detail = f"Not ready: {', '.join(failing)}"
    return problem_response(
        request.scope, Problem(503, "not_ready", detail, extension={"checks": described})
    )
