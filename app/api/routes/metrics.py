"""/metrics, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import REGISTRY, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.api.dependencies import Reader, ResourcesDep
from app.api.documentation import problems
from app.domain.errors import ServiceError
from app.services.monitoring import Backlog, measure_backlog
from app.services.resources import Resources
from app.telemetry import metrics

router = APIRouter(tags=["health"])
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@router.get("/metrics", response_class=PlainTextResponse, responses=problems(401, 403))
def show_metrics(resources: ResourcesDep, _principal: Reader) -> PlainTextResponse:
    """Show this process's metrics, and the backlog of the whole deployment."""
    fresh = CollectorRegistry()
    fresh.register(_BacklogCollector(resources))
    text = generate_latest(REGISTRY) + generate_latest(fresh)
    return PlainTextResponse(text, media_type=MEDIA_TYPE)


class _BacklogCollector(Collector):
    """Asks the database once; without it the other metrics are still there."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    def describe(self) -> list[Metric]:
        """Nothing, lest registering ask the database."""
        return []

    def collect(self) -> Iterator[Metric]:
        try:
            backlog = measure_backlog(self._resources)
        except ServiceError:
            yield GaugeMetricFamily(metrics.DATABASE_UP, _DATABASE_UP, value=0)
            return
        yield GaugeMetricFamily(metrics.DATABASE_UP, _DATABASE_UP, value=1)
        yield from _families(backlog)


_DATABASE_UP = "Whether the database answered this scrape."


def _families(backlog: Backlog) -> Iterator[Metric]:
    yield _labelled(metrics.JOBS, "Jobs that have not ended, by state.", "state", backlog.jobs)
    yield _labelled(
        metrics.JOBS_WAITING,
        "Queued jobs that no registered worker can run, by reason.",
        "reason",
        backlog.waiting,
    )
    yield _labelled(
        metrics.DEVICES, "Devices of the registered workers, by kind.", "kind", backlog.devices
    )
    yield _labelled(
        metrics.GENERATIONS_LIVE,
        "Generations of the playground that have not ended, by state.",
        "state",
        backlog.generations,
    )
    yield GaugeMetricFamily(
        metrics.OUTBOX_MESSAGES, "Messages the broker has not taken yet.", value=backlog.messages
    )
    yield GaugeMetricFamily(
        metrics.OUTBOX_OLDEST_SECONDS,
        "Age of the oldest such message.",
        value=backlog.oldest_message_seconds,
    )
    yield GaugeMetricFamily(
        metrics.JOBS_MISSING_ARTIFACTS,
        "Succeeded jobs whose artifacts the store does not hold.",
        value=backlog.jobs_missing_artifacts,
    )
    if backlog.webhooks_on_previous_key is not None:
        yield GaugeMetricFamily(
            metrics.WEBHOOKS_ON_PREVIOUS_KEY,
            "Enabled webhooks whose secret needs the previous signing key.",
            value=backlog.webhooks_on_previous_key,
        )


def _labelled(name: str, text: str, label: str, values: Mapping[Any, int]) -> Metric:
    """Return a gauge with one sample for each value of its label."""
    gauge = GaugeMetricFamily(name, text, labels=[label])
    for value, number in values.items():
        gauge.add_metric([value], number)
    return gauge
