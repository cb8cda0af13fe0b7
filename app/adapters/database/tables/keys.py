"""API keys."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, Index, Table, Text, func

from app.adapters.database.tables.base import TIMESTAMP, metadata
from app.domain.principal import Scope

_SCOPES = ", ".join(sorted(f"'{scope}'" for scope in Scope))

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("scope", Text, nullable=False),
    Column("secret_digest", Text, nullable=False),
    Column("hint", Text, nullable=False),
    Column("created_at", TIMESTAMP, nullable=False, server_default=func.now()),
    Column("created_by", Text),
    Column("expires_at", TIMESTAMP),
    Column("revoked_at", TIMESTAMP),
    Column("last_used_at", TIMESTAMP),
    CheckConstraint(f"scope IN ({_SCOPES})", name="scope_known"),
    Index("ix_api_keys_secret_digest", "secret_digest", unique=True),
    Index("ix_api_keys_project_id", "project_id", "id"),
)
