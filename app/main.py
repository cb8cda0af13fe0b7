"""The HTTP application."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from app.api.auth import Authentication
from app.api.documentation import DescribedApi
from app.api.measurement import Measurement
from app.api.problems import install_problem_handlers
from app.api.request_context import BodyLimit, RequestContext
from app.api.routes import comparisons, downloads, health, home, jobs, metrics, sweeps
from app.services.health import HealthProbe
from app.services.resources import open_resources
from app.settings import Settings, get_settings
from app.telemetry import configure_logging, get_logger
from app.telemetry.traces import configure_tracing
from intraslice_core import __version__

_log = get_logger(__name__)


def create_app(settings: Settings) -> FastAPI:
    """Build the application; nothing is connected to before it starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.resources = open_resources(settings)
        app.state.health = HealthProbe(app.state.resources)
        if settings.auth == "on" and settings.api_key is None:
            _log.warning("no_api_key", effect="every request is refused; set INTRASLICE_API_KEY")
        try:
            yield
        finally:
            app.state.health.close()
            app.state.resources.close()

    app = DescribedApi(
        title="IntraSlice",
        summary="Structured compression of large language models.",
        version=__version__,
        lifespan=lifespan,
    )
    app.state.draining = threading.Event()
    install_problem_handlers(app)
    for routes in (home, health, metrics, jobs, sweeps, comparisons, downloads):
        app.include_router(routes.router)
    # Outermost last: a request gets its id first, is then let in, and then read.
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes)
    app.add_middleware(Authentication, settings=settings)
    app.add_middleware(RequestContext)
    app.add_middleware(Measurement)
    return app


def app_factory() -> FastAPI:
    """For uvicorn: `uvicorn --factory app.main:app_factory`."""
    settings = get_settings()
    configure_logging(
        settings.log_level,
        settings.log_style,
        secrets=settings.secrets,
        fixed={"process": "api"},
    )
    configure_tracing(settings.traces_url, "intraslice-api")
    return create_app(settings)
