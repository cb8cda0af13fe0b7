"""The HTTP application."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.routing import BaseRoute, Route

from app.api.audit_trail import AuditTrail
from app.api.auth import Authentication
from app.api.documentation import DescribedApi, operation_id
from app.api.event_stream import install_end_of_stream
from app.api.head_requests import HeadRequests
from app.api.measurement import Measurement
from app.api.problems import install_problem_handlers
from app.api.rate_limit import RateLimit
from app.api.request_context import BodyLimit, RequestContext
from app.api.routes import (
    archives,
    audit,
    comparisons,
    downloads,
    event_stream,
    generations,
    health,
    home,
    job_logs,
    jobs,
    keys,
    metrics,
    models,
    reference,
    registry_hand_offs,
    report_links,
    server_paths,
    service,
    sweeps,
    uploads,
    validations,
    webhooks,
)
from app.environment import log_advice
from app.services.health import HealthProbe
from app.services.resources import open_resources
from app.services.watching import Watching
from app.settings import Settings, get_settings
from app.telemetry import configure_logging, get_logger
from app.telemetry.traces import configure_tracing
from intraslice_core import __version__

_ROUTERS = tuple(
    module.router
    for module in (
        home,
        reference,
        health,
        metrics,
        jobs,
        job_logs,
        registry_hand_offs,
        report_links,
        event_stream,
        generations,
        validations,
        sweeps,
        comparisons,
        archives,
        downloads,
        uploads,
        models,
        server_paths,
        service,
        keys,
        audit,
        webhooks,
    )
)
_log = get_logger(__name__)


def create_app(settings: Settings) -> FastAPI:
    """Build the application; it opens no connection before it starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.resources = open_resources(settings)
        app.state.health = HealthProbe(app.state.resources)
        if settings.auth == "on" and settings.api_key is None:
            _log.warning(
                "no_api_key",
                effect="only keys made by `intraslice keys create NAME` open anything; set"
                " INTRASLICE_API_KEY for an operator key",
            )
        try:
            async with Watching(app.state.resources) as app.state.watching:
                yield
        finally:
            app.state.health.close()
            app.state.resources.close()

    app = DescribedApi(
        title="IntraSlice",
        summary="Structured compression of large language models.",
        version=__version__,
        docs_url=None,  # `routes.reference` serves it, without files of other servers
        redoc_url=None,
        lifespan=lifespan,
        generate_unique_id_function=operation_id,
    )
    app.state.draining = threading.Event()
    install_problem_handlers(app)
    install_end_of_stream(app)
    app.router.routes.extend(_routes())
    # The outermost middleware comes last. A request gets its id first, is then authenticated, and
    # only then read; its outcome is recorded on the way back, rejections included.
    app.add_middleware(HeadRequests)
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes)
    if settings.auth == "on":
        app.add_middleware(RateLimit)
    app.add_middleware(Authentication, settings=settings)
    app.add_middleware(AuditTrail, templates=_templates())
    app.add_middleware(RequestContext)
    app.add_middleware(Measurement)
    return app


@functools.cache
def _routes() -> tuple[BaseRoute, ...]:
    """Return all routes, which no setting changes: the applications of a process share them.

    FastAPI resolves the parameters of a route at its first request, 40 ms for all routes.
    """
    api = FastAPI(openapi_url=None, generate_unique_id_function=operation_id)
    for router in _ROUTERS:
        api.include_router(router)
    return tuple(api.router.routes)


def _templates() -> list[tuple[str, re.Pattern[str]]]:
    """Return the path and the pattern of every route."""
    routes = [route for router in _ROUTERS for route in router.routes]
    return [(route.path, route.path_regex) for route in routes if isinstance(route, Route)]


def app_factory() -> FastAPI:
    """Configure logging and tracing and build the application, for `uvicorn --factory`."""
    settings = get_settings()
    configure_logging(
        settings.log_level,
        settings.log_style,
        secrets=settings.secrets,
        fixed={"process": "api"},
    )
    log_advice(settings)
    configure_tracing(settings.traces_url, "intraslice-api")
    return create_app(settings)
