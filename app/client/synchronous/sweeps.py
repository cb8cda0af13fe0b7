"""Sweeps: one model at several ratios."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from app.client.bodies import job_body, once
from app.client.synchronous.transport import Transport
from app.domain.model_source import ModelSource
from app.domain.sweep import Sweep, SweepDetails, SweepList
from intraslice_core.config import CompressionSettings, EvaluationConfig


class Sweeps:
    """`/v1/sweeps`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
        self,
        model: ModelSource,
        ratios: Sequence[float],
        compression: CompressionSettings | None = None,
        *,
        evaluation: EvaluationConfig | None = None,
        labels: Mapping[str, str] | None = None,
        priority: int | None = None,
        idempotency_key: str | None = None,
    ) -> SweepDetails:
        """A job for each ratio; those on one machine share what does not depend on it."""
        more = {"ratios": [*ratios], "priority": priority}
        body = job_body(model, compression or CompressionSettings(), evaluation, labels, more)
        return self._transport.ask(
            SweepDetails,
            "POST",
            "/v1/sweeps",
            json=body,
            headers=once(idempotency_key),
            repeatable=True,
        )

    def get(self, sweep_id: str) -> SweepDetails:
        """The sweep with its jobs, and which of its points are dominated."""
        return self._transport.ask(SweepDetails, "GET", f"/v1/sweeps/{sweep_id}")

    def list(self) -> Iterator[Sweep]:
        """All of them, newest first, page by page."""
        for page in self._transport.pages(SweepList, "/v1/sweeps"):
            yield from page.data

    def cancel(self, sweep_id: str) -> SweepDetails:
        """Cancel all of its jobs that have not ended."""
        path = f"/v1/sweeps/{sweep_id}/cancel"
        return self._transport.ask(SweepDetails, "POST", path, repeatable=True)
