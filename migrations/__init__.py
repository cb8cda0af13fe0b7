"""Alembic migrations; `app.adapters.database.migrate` runs them."""
