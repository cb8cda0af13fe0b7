"""Sweeps: one model compressed at several ratios, by one or several methods."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence

from app.domain.model_source import ModelSource
from intraslice_client import _bodies as bodies
from intraslice_client._async.transport import AsyncTransport
from intraslice_client._requests import idempotency_header, job_body
from intraslice_core.config import CompressionSettings, EvaluationConfig, MethodChoice


class AsyncSweeps:
    """Methods of `/v1/sweeps`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(  # noqa: PLR0913 (one argument for each field of the request)
        self,
        model: ModelSource,
        ratios: Sequence[float],
        compression: CompressionSettings | None = None,
        *,
        methods: Sequence[MethodChoice] | None = None,
        evaluation: EvaluationConfig | None = None,
        labels: Mapping[str, str] | None = None,
        priority: int | None = None,
        idempotency_key: str | None = None,
    ) -> bodies.SweepDetails:
        """Queue one job per method and ratio.

        Jobs on the same machine share calibration statistics. The request carries an idempotency
        key, so retries do not create a second sweep.

        Args:
            model: the model to compress.
            ratios: fractions of the parameters to remove, each in [0, 1).
            compression: settings of all jobs; None: the defaults.
            methods: methods to compare, which replace that of the settings; None uses it alone.
            evaluation: settings of the evaluation; None skips it.
            labels: labels of the jobs.
            priority: 0 to 9; higher runs first.
            idempotency_key: a later call with the same key returns the same sweep; None generates
                one.
        """
        optional = {
            "ratios": [*ratios],
            "methods": None if methods is None else [*methods],
            "priority": priority,
        }
        body = job_body(model, compression or CompressionSettings(), evaluation, labels, optional)
        return await self._transport.fetch(
            bodies.SweepDetails,
            "POST",
            "/v1/sweeps",
            json=body,
            headers=idempotency_header(idempotency_key),
            idempotent=True,
        )

    async def get(self, sweep_id: str) -> bodies.SweepDetails:
        """Return a sweep with its jobs and its Pareto front."""
        return await self._transport.fetch(bodies.SweepDetails, "GET", f"/v1/sweeps/{sweep_id}")

    async def list(self) -> AsyncIterator[bodies.Sweep]:
        """Yield the sweeps of the project, newest first."""
        async for page in self._transport.pages(bodies.SweepList, "/v1/sweeps"):
            for sweep in page.data:
                yield sweep

    async def add_ratios(self, sweep_id: str, ratios: Sequence[float]) -> bodies.SweepDetails:
        """Queue jobs for more ratios with a sweep's settings; jobs that it has are skipped.

        A job that was deleted is queued again.
        """
        path = f"/v1/sweeps/{sweep_id}/ratios"
        return await self._transport.fetch(
            bodies.SweepDetails, "POST", path, json={"ratios": [*ratios]}, idempotent=True
        )

    async def cancel(self, sweep_id: str) -> bodies.SweepDetails:
        """Cancel all unfinished jobs of a sweep."""
        path = f"/v1/sweeps/{sweep_id}/cancel"
        return await self._transport.fetch(bodies.SweepDetails, "POST", path, idempotent=True)
