"""The Celery application, and the only message it carries: "look at this job"."""

from __future__ import annotations

from collections.abc import Callable

from celery import Celery  # type: ignore[import-untyped]

from app.adapters.valkey import broker_errors, described

WAKE_TASK = "intraslice.wake"
_BROKER_SECONDS = 3.0


def make_celery(broker_url: str) -> Celery:
    """Build the application. Messages are hints, PostgreSQL is the truth: losing one is harmless.

    So messages are acknowledged when they are received. Acknowledging late would make the broker
    deliver a long job's message again after `visibility_timeout`, in parallel to the job.
    """
    celery = Celery("intraslice", broker=broker_url, set_as_current=False)
    celery.conf.update(
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        # A busy worker leaves hints in the queue, where an idle one finds them.
        worker_disable_prefetch=True,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_send_task_events=False,
        worker_enable_remote_control=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # Received but not yet acknowledged messages of a killed worker come back soon.
        broker_transport_options={
            "visibility_timeout": 60,
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
            "socket_connect_timeout": _BROKER_SECONDS,
            "socket_timeout": _BROKER_SECONDS,
            "health_check_interval": 10,
        },
    )
    return celery


def queue_name(deployment_id: str) -> str:
    """Return the queue of a deployment: others on the same broker have their own."""
    return f"intraslice.{deployment_id}"


class WakeQueue:
    """Producer of the messages that wake workers.

    Args:
        celery: the application.
        deployment_id: returns the id of the deployment whose workers are woken, empty if unknown.
    """

    def __init__(self, celery: Celery, deployment_id: Callable[[], str]) -> None:
        self._celery = celery
        self._deployment_id = deployment_id
        self._url = str(celery.conf.broker_url)
        self.address = described(self._url)

    def wake(self, job_id: str) -> None:
        """Send a message that wakes a worker for a job.

        Raises:
            BrokerUnavailableError: if the broker does not take the message now.
        """
        # No retry here: the message's outbox row stays and is sent by the next maintenance.
        with broker_errors(self._url):
            self._celery.send_task(
                WAKE_TASK,
                args=(job_id,),
                queue=queue_name(self._deployment_id()),
                retry=False,
                ignore_result=True,
            )

    def check(self) -> None:
        """Connect to the broker.

        Raises:
            BrokerUnavailableError: if the broker does not answer.
        """
        with broker_errors(self._url), self._celery.connection_for_write() as connection:
            connection.ensure_connection(max_retries=0, timeout=_BROKER_SECONDS)
            connection.default_channel.client.ping()

    def close(self) -> None:
        self._celery.close()
