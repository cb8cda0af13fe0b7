"""Settings and clients of the servers, opened once per process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from celery import Celery  # type: ignore[import-untyped]

from app.adapters.artifact_signatures import ArtifactSigner
from app.adapters.database.deployment import DeploymentIdentity
from app.adapters.database.engine import Database
from app.adapters.database.keys import KeyCache
from app.adapters.queue import WakeQueue, make_celery
from app.adapters.rate_limit import RateLimiter
from app.adapters.signed_urls import UrlSigner, kept_signing_key
from app.adapters.storage import ArtifactStore
from app.adapters.webhook_destinations import DestinationGuard
from app.adapters.webhook_sender import WebhookSender
from app.adapters.webhook_signing import WebhookSecrets
from app.adapters.worker_registry import WorkerRegistry
from app.services.rate_limit import FailedAuthenticationLimit
from app.settings import Settings
from app.settings.store_endpoints import own_endpoint, uses_direct_links
from intraslice_core.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Settings, and the clients of database, broker, store and webhook receivers."""

    settings: Settings
    database: Database
    deployment: DeploymentIdentity
    store: ArtifactStore
    celery: Celery
    queue: WakeQueue
    signer: UrlSigner
    limiter: RateLimiter
    workers: WorkerRegistry
    key_cache: KeyCache
    failed_authentications: FailedAuthenticationLimit
    webhook_secrets: WebhookSecrets
    webhook_sender: WebhookSender
    artifact_signer: ArtifactSigner | None = None
    """Set in workers only; the API does not need the private key."""

    @property
    def shared_dir(self) -> Path:
        """Directory of the statistics that a sweep's jobs share on this machine."""
        return self._local("shared")

    @property
    def uploads_dir(self) -> Path:
        """Directory in which this machine's workers keep the uploads that jobs use."""
        return self._local("uploads")

    @property
    def work_dir(self) -> Path:
        """Directory of the running attempts' files."""
        return self._local("work")

    def _local(self, kind: str) -> Path:
        """Return a directory of this deployment: maintenance removes what its rows do not name.

        Another deployment's workers may use the same data directory.
        """
        return self.settings.data_dir / kind / self.deployment.id()

    def close(self) -> None:
        self.limiter.close()
        self.workers.close()
        self.failed_authentications.close()
        self.queue.close()
        self.database.close()


def open_resources(settings: Settings, *, signs: bool = False, jobs_at_once: int = 1) -> Resources:
    """Build the clients without connecting: a server that is down fails requests, not the start.

    Args:
        settings: settings of this process.
        signs: this process signs artifacts.
        jobs_at_once: jobs that it runs at the same time, each with connections of its own.

    Raises:
        ConfigurationError: if a URL or the data directory cannot be used, or this process signs
            artifacts and its key file holds no valid key.
    """
    key_file = settings.artifact_signing_key_file if signs else None
    key = _signing_key(settings)
    former = settings.signing_key_previous
    previous = former.get_secret_value() if former else None
    guard = DestinationGuard(allow_loopback=settings.webhook_allow_loopback)
    celery = make_celery(settings.broker_url)
    database = Database(settings.database_url, pool_size=15 + 2 * jobs_at_once)
    deployment = DeploymentIdentity(database)
    return Resources(
        settings=settings,
        database=database,
        deployment=deployment,
        store=ArtifactStore(
            settings.store_url,
            endpoint=own_endpoint(settings.store_url),
            public_endpoint=settings.store_public_endpoint,
            direct=uses_direct_links(
                settings.store_url, settings.store_public_endpoint, settings.downloads
            ),
        ),
        celery=celery,
        queue=WakeQueue(celery, deployment.known_id),
        limiter=RateLimiter(
            settings.broker_url,
            deployment.known_id,
            per_second=settings.requests_per_second,
            burst=settings.requests_burst,
        ),
        workers=WorkerRegistry(
            settings.broker_url,
            deployment.known_id,
            expiry_seconds=6 * settings.maintenance_seconds,
        ),
        key_cache=KeyCache(settings.key_cache_seconds),
        failed_authentications=FailedAuthenticationLimit(
            RateLimiter(
                settings.broker_url,
                deployment.known_id,
                per_second=settings.wrong_keys_per_minute / 60,
                burst=settings.wrong_keys_burst,
            )
        ),
        signer=UrlSigner(key, previous),
        webhook_secrets=WebhookSecrets(key, previous),
        webhook_sender=WebhookSender(guard, timeout=settings.webhook_timeout_seconds),
        artifact_signer=None if key_file is None else ArtifactSigner(key_file),
    )


def _signing_key(settings: Settings) -> str:
    """Return the key of links and webhooks; create it, and the data directory, if necessary.

    Raises:
        ConfigurationError: if the data directory cannot be written.
    """
    configured = settings.signing_key
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        return configured.get_secret_value() if configured else kept_signing_key(settings.data_dir)
    except OSError as error:
        raise ConfigurationError(
            f"{error.filename or settings.data_dir} cannot be written: {error.strerror}",
            field="INTRASLICE_DATA_DIR",
            hint="name a directory that this user may write to",
        ) from error
