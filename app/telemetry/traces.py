"""OpenTelemetry traces; without an endpoint they are off and OpenTelemetry is not imported.

A trace starts with a request, or continues the caller's `traceparent`. The job's row and the
child's request propagate it, so one trace covers HTTP, queue, worker and engine.
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
        url: OTLP/HTTP endpoint that spans are posted to.
        service: name of this process; `OTEL_SERVICE_NAME` takes precedence.
    """
    if not url:
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    exporter = OTLPSpanExporter(endpoint=url, timeout=_EXPORT_SECONDS)
    install_processor(BatchSpanProcessor(exporter), service)


def install_processor(processor: SpanProcessor, service: str) -> None:
    """Start to record spans and pass them to the processor."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider

    global _provider
    stop_tracing()
    # OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME are merged last and take precedence.
    resource = Resource({"service.name": service}).merge(OTELResourceDetector().detect())
    _provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    _provider.add_span_processor(processor)


def stop_tracing() -> None:
    """Send the recorded spans and stop recording."""
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
    """Record the block as a span; without tracing, only run it.

    Args:
        name: name of the span.
        parent: W3C traceparent of the parent; by default the enclosing span.
        attributes: attributes of the span.
    """
    if _provider is None:
        yield None
        return
    tracer = _provider.get_tracer(_INSTRUMENTATION)
    context = _context(parent)
    with tracer.start_as_current_span(name, context=context, attributes=attributes) as current:
        yield current


def current_traceparent() -> str | None:
    """Return the current span as a W3C traceparent; None without tracing."""
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
