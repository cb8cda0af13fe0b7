"""Migrations, run from the installed `migrations` package; no alembic.ini needed."""

from __future__ import annotations

from importlib.resources import files

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from app.settings import Settings


def upgrade(settings: Settings, revision: str = "head") -> None:
    """Bring the database to a revision; safe to run from several processes at once."""
    command.upgrade(alembic_config(settings.database_url), revision)


def downgrade(settings: Settings, revision: str) -> None:
    command.downgrade(alembic_config(settings.database_url), revision)


def head_revision() -> str | None:
    """The schema this code expects."""
    return ScriptDirectory.from_config(alembic_config("")).get_current_head()


def alembic_config(database_url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(files("migrations")).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    # Not an option: a URL may hold percent signs, which the ini reader would interpret.
    config.attributes["database_url"] = database_url
    return config
