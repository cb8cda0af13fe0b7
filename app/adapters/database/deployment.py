"""The row of `deployment`, created by whichever process reads it first."""

from __future__ import annotations

import time

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert

from app.adapters.database.engine import Database, Transaction
from app.adapters.database.tables import deployment
from app.domain.deployment import Deployment
from app.domain.errors import DatabaseUnavailableError
from app.domain.identifiers import DEPLOYMENT, new_id

_PAUSE_SECONDS = 5.0


def current(transaction: Transaction) -> Deployment:
    """Return the database's deployment."""
    existing = _read(transaction)
    if existing is not None:
        return existing
    row = insert(deployment).values(id=new_id(DEPLOYMENT))
    transaction.execute(row.on_conflict_do_nothing())
    created = _read(transaction)
    if created is None:
        raise DatabaseUnavailableError("The deployment's row vanished while it was created")
    return created


def mark_store_claimed(transaction: Transaction) -> None:
    """Record that the store's marker names this deployment."""
    transaction.execute(
        update(deployment)
        .where(deployment.c.store_claimed_at.is_(None))
        .values(store_claimed_at=func.now())
    )


def _read(transaction: Transaction) -> Deployment | None:
    row = transaction.execute(select(deployment)).one_or_none()
    if row is None:
        return None
    return Deployment(id=row.id, store_claimed=row.store_claimed_at is not None)


class DeploymentIdentity:
    """The deployment's id for names in the broker, which several deployments may share."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._id = ""
        self._read_again_at = 0.0
        self._problem: str | None = ""

    def changed(self, problem: str | None) -> bool:
        """Return true if the store's problem differs from that of the last call."""
        before, self._problem = self._problem, problem
        return problem != before

    def read(self) -> Deployment:
        """Return the deployment as the database has it now.

        Raises:
            DatabaseUnavailableError: if the database does not answer.
        """
        with self._database.transaction() as transaction:
            present = current(transaction)
        self._id = present.id
        return present

    def id(self) -> str:
        """Return the id read last; read it if that has not succeeded yet.

        Raises:
            DatabaseUnavailableError: if the database does not answer.
        """
        return self._id or self.read().id

    def known_id(self) -> str:
        """Return the id read last; empty while the database has not answered yet."""
        if not self._id and time.monotonic() >= self._read_again_at:
            # Requests must not wait again and again for a database that is away.
            self._read_again_at = time.monotonic() + _PAUSE_SECONDS
            try:
                self.read()
            except DatabaseUnavailableError:
                return ""
        return self._id
