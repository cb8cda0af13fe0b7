"""Playground: prompts to the original and the compressed model of a job."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from intraslice_client import _bodies as bodies
from intraslice_client._requests import without_none
from intraslice_client._sync.transport import Transport
from intraslice_client.errors import GenerationNotDoneError

_POLL_SECONDS = 0.5
_ENDED = ("succeeded", "failed", "cancelled")


class Generations:
    """Methods of `/v1/jobs/{id}/generations`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
        self,
        job_id: str,
        prompt: str,
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        models: Sequence[Literal["dense", "compressed"]] | None = None,
    ) -> bodies.Generation:
        """Queue a prompt for a worker that has no job to run.

        Args:
            job_id: id of a succeeded job.
            prompt: text to continue.
            max_new_tokens: largest number of tokens of each answer; None: 64.
            temperature: temperature of sampling; None takes the most likely token each time.
            seed: seed of sampling; None: 0.
            models: models to ask; None asks both.
        """
        body = without_none(
            prompt=prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            models=None if models is None else [*models],
        )
        return self._transport.fetch(
            bodies.Generation, "POST", f"/v1/jobs/{job_id}/generate", json=body
        )

    def get(self, job_id: str, generation_id: str) -> bodies.Generation:
        """Return a generation, with the answers that are ready."""
        path = f"/v1/jobs/{job_id}/generations/{generation_id}"
        return self._transport.fetch(bodies.Generation, "GET", path)

    def list(self, job_id: str) -> Iterator[bodies.Generation]:
        """Yield the generations of a job, newest first."""
        path = f"/v1/jobs/{job_id}/generations"
        for page in self._transport.pages(bodies.GenerationList, path):
            yield from page.data

    def cancel(self, job_id: str, generation_id: str) -> bodies.Generation:
        """Cancel a generation at once."""
        path = f"/v1/jobs/{job_id}/generations/{generation_id}/cancel"
        return self._transport.fetch(bodies.Generation, "POST", path, idempotent=True)

    def delete(self, job_id: str, generation_id: str) -> None:
        """Delete the prompt and the answers of a generation that has ended."""
        path = f"/v1/jobs/{job_id}/generations/{generation_id}"
        self._transport.send("DELETE", path, idempotent=False)

    def wait(
        self,
        job_id: str,
        generation_id: str,
        *,
        timeout: float | None = None,
        on_answer: Callable[[bodies.Answer], None] | None = None,
    ) -> bodies.Generation:
        """Wait until every model has answered, by polling, and return the generation.

        Args:
            job_id: id of the job.
            generation_id: id of the generation.
            timeout: limit in seconds; None waits without limit.
            on_answer: called once with each answer, as soon as it is there.

        Raises:
            GenerationNotDoneError: if the generation failed or was cancelled.
            TimeoutError: if it has not ended after `timeout` seconds.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        answered = 0
        while True:
            generation = self.get(job_id, generation_id)
            for answer in generation.answers[answered:]:
                if on_answer is not None:
                    on_answer(answer)
            # A worker that was lost takes its answers with it.
            answered = max(answered, len(generation.answers))
            if generation.state == "succeeded":
                return generation
            if generation.state in _ENDED:
                raise GenerationNotDoneError(generation)
            if time.monotonic() >= deadline:
                raise TimeoutError(
                    f"generation {generation_id} is still {generation.state} after {timeout} s"
                )
            time.sleep(_POLL_SECONDS)
