"""OpenTelemetry traces, off unless an endpoint is set; nothing of it is imported until then.

A trace begins with a request, or with the caller's `traceparent`. The job's row and the child's
request carry it on, so that one trace tells of HTTP, queue, worker and engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.trace import Span

_INSTRUMENTATION = "intraslice"
_TRACEPARENT = "traceparent"
_EXPORT_SECONDS = 3.0

_provider: TracerProvider | None = None


def configure_tracing(url: str, service: str) -> None:
    """Send this process's spans to an OTLP collector; an empty URL sends nothing.

    Args:
        url: where spans are posted, as OTLP over HTTP.
        service: the name of this process; `OTEL_SERVICE_NAME` wins.
    """
    if not url:
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    exporter = OTLPSpanExporter(endpoint=url, timeout=_EXPORT_SECONDS)
    install_processor(BatchSpanProcessor(exporter), service)


def install_processor(processor: SpanProcessor, service: str) -> None:
    """Begin to record spans."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider

    global _provider
    stop_tracing()
    # What OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME say comes last, and so wins.
    resource = Resource({"service.name": service}).merge(OTELResourceDetector().detect())
    _provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    _provider.add_span_processor(processor)


def stop_tracing() -> None:
    """Send what is recorded and record no more."""
    global _provider
    if _provider is not None:
        _provider.shutdown()
        _provider = None


@contextmanager
def span(
    name: str,
    *,
    parent: str | None = None,
    attributes: Mapping[str, str | int] | None = None,
) -> Iterator[Span | None]:
    """Record what the block does; without tracing, only run it.

    Args:
        name: of the span.
        parent: a W3C traceparent from elsewhere; else the span around this one.
        attributes: facts about the span.
    """
    if _provider is None:
        yield None
        return
    tracer = _provider.get_tracer(_INSTRUMENTATION)
    with tracer.start_as_current_span(name, context=_context(parent), attributes=attributes) as one:
        yield one


def current_traceparent() -> str | None:
    """The running span, as others can continue it; None without tracing."""
    if _provider is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get(_TRACEPARENT)


def current_trace_id() -> str | None:
    traceparent = current_traceparent()
    return traceparent.split("-")[1] if traceparent else None


def _context(parent: str | None) -> Context | None:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    if parent is None:
        return None
    return TraceContextTextMapPropagator().extract({_TRACEPARENT: parent})
