"""Uploads and the files they are to hold."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, Column, Index, Table, Text, func, text

from app.adapters.database.tables.base import JSON, TIMESTAMP, metadata
from app.domain.upload import UploadKind, UploadState


def _quoted(values: type[UploadKind] | type[UploadState]) -> str:
    return ", ".join(f"'{value}'" for value in sorted(values))


uploads = Table(
    "uploads",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("files", JSON, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("part_bytes", BigInteger, nullable=False),
    Column("name", Text),
    Column("error", JSON),
    Column("created_at", TIMESTAMP, nullable=False, server_default=func.now()),
    Column("checked_at", TIMESTAMP),
    Column("expires_at", TIMESTAMP),
    Column("store_prefix", Text, nullable=False, server_default=text("''")),
    Column("text_columns", JSON),
    CheckConstraint(f"kind IN ({_quoted(UploadKind)})", name="kind_known"),
    CheckConstraint(f"state IN ({_quoted(UploadState)})", name="state_known"),
    Index("ix_uploads_project_id", "project_id", "id"),
    Index("ix_uploads_expires_at", "expires_at"),
)
