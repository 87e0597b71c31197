"""Alembic's migrations, run by `migrate`: SQLite and Postgres alike."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, func, select

from db.session import Database

_MIGRATING = 0x6174_7475_6E65
"""Number of the lock that migrations hold on Postgres."""


def migrate(database: Database, revision: str = "head") -> None:
    """Bring the database to a revision, in one transaction; of several processes that try, one does it."""
    with database.write() as session:
        if not database.sqlite:  # whose writers wait for each other anyway
            session.execute(select(func.pg_advisory_xact_lock(_MIGRATING)))
        run(session.connection(), revision)


def run(connection: Connection, revision: str) -> None:
    """Upgrade (or, for an earlier revision, downgrade) on an open connection."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    at = MigrationContext.configure(connection).get_current_revision()
    behind = ScriptDirectory.from_config(config).iterate_revisions(at, "base") if at else ()
    earlier = {"base", *(script.revision for script in behind)} - {at}
    (command.downgrade if revision in earlier else command.upgrade)(config, revision)
