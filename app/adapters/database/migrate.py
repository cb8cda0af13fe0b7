"""Migrations, run from the installed `migrations` package; no alembic.ini needed.

Alembic is imported where it is used: it takes a sixth of the API's whole start.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING

from app.settings import Settings

if TYPE_CHECKING:
    from alembic.config import Config


def upgrade(settings: Settings, revision: str = "head") -> None:
    """Migrate the database to a revision; safe to run from several processes at once."""
    from alembic import command

    command.upgrade(alembic_config(settings.database_url), revision)


def downgrade(settings: Settings, revision: str) -> None:
    from alembic import command

    command.downgrade(alembic_config(settings.database_url), revision)


@lru_cache(maxsize=1)
def head_revision() -> str | None:
    """Return the revision of the schema that this code expects."""
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(alembic_config("")).get_current_head()


def alembic_config(database_url: str) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(files("migrations")).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    # Not an option: a URL may hold percent signs, which the ini reader would interpret.
    config.attributes["database_url"] = database_url
    return config
