"""/livez and /readyz."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from app.api.documentation import problems
from app.api.problems import Problem, problem_response
from app.services.health import Check, HealthProbe

router = APIRouter(tags=["health"])
_ALIVE = {"status": "ok"}
_CHECKS = {
    "database": {"ok": True, "problem": None, "schema": "0014"},
    "broker": {"ok": True, "problem": None},
    "store": {"ok": True, "problem": None},
    "deployment": {"ok": True, "problem": None},
}
_READY: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": {"example": {"status": "ok", "checks": _CHECKS}}}}
}


@router.get("/livez", responses={200: {"content": {"application/json": {"example": _ALIVE}}}})
async def livez() -> dict[str, str]:
    """Return 200 while the process is alive."""
    return _ALIVE


@router.get("/readyz", responses=problems(503) | _READY)
def readyz(request: Request) -> Response:
    """Check database, broker and store, and that the store is this deployment's own.

    A process that is shutting down is not ready.
    """
    if request.app.state.draining.is_set():
        return problem_response(request.scope, Problem(503, "draining", "This process is ending"))
    probe: HealthProbe = request.app.state.health
    checks = probe.check_all()
    described = {check.name: _described(check) for check in checks}
    failing = [check.name for check in checks if check.problem is not None]
    if not failing:
        return JSONResponse({"status": "ok", "checks": described})
    detail = f"Not ready: {', '.join(failing)}"
    return problem_response(
        request.scope, Problem(503, "not_ready", detail, extension={"checks": described})
    )


def _described(check: Check) -> dict[str, Any]:
    described = {"ok": check.problem is None, "problem": check.problem}
    return described if check.schema is None else described | {"schema": check.schema}
