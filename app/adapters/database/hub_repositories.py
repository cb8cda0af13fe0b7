"""Rows of `hub_repositories`: the project that owns each repository of the Hub."""

from __future__ import annotations

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert

from app.adapters.database.engine import Transaction
from app.adapters.database.tables import hub_repositories


def own_repository(transaction: Transaction, project_id: str, repository: str) -> bool:
    """Reserve a repository for a project; return False if it is another project's.

    A concurrent reservation of the same repository makes this one wait for its end, up to the
    lock timeout.

    Args:
        transaction: the transaction.
        project_id: the project that is to push.
        repository: `namespace/name` in any case; the Hub ignores the case of names.
    """
    lower = repository.lower()
    row = insert(hub_repositories).values(repository=lower, project_id=project_id)
    transaction.execute(row.on_conflict_do_nothing())
    owner = select(hub_repositories.c.project_id).where(hub_repositories.c.repository == lower)
    return transaction.scalar(owner) == project_id


def free_repository(transaction: Transaction, project_id: str, repository: str) -> None:
    """Delete a project's reservation of a repository to which it has pushed nothing."""
    transaction.execute(
        delete(hub_repositories).where(
            hub_repositories.c.repository == repository.lower(),
            hub_repositories.c.project_id == project_id,
        )
    )
