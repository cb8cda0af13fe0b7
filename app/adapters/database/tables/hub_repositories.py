"""Repositories of the Hub and the projects that may push to them."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, Table, Text, func

from app.adapters.database.tables.base import TIMESTAMP, metadata

hub_repositories = Table(
    "hub_repositories",
    metadata,
    Column("repository", Text, primary_key=True),
    Column("project_id", Text, nullable=False),
    Column("created_at", TIMESTAMP, nullable=False, server_default=func.now()),
    CheckConstraint("repository = lower(repository)", name="lower_case"),
)
"""Rows outlive jobs and hand-offs: the files stay in the repository when those are deleted."""
