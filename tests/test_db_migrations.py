"""Migrations make exactly the tables of the models, on both engines."""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from db import bases
from db.migrations import migrate, run
from db.models import Base
from db.session import Database

pytest_plugins = ["databases"]
ROOT = Path(__file__).parent.parent


@pytest.fixture
def empty(blank_url):
    """A database without tables."""
    with contextlib.closing(Database(blank_url)) as database:
        yield database


def differences(database: Database) -> list:
    """What Alembic would still have to do."""
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "render_as_batch": True})
        return compare_metadata(context, Base.metadata)


def tables(database: Database) -> set[str]:
    return set(inspect(database.engine).get_table_names())


def test_upgrading_an_empty_database_gives_the_models(empty):
    migrate(empty)
    assert differences(empty) == []
    assert tables(empty) == {*Base.metadata.tables, "alembic_version"}


def test_partial_indexes_are_there_with_their_conditions(empty):
    """compare_metadata does not look at conditions, and `one live attempt per job` is one."""
    migrate(empty)
    found = {i["name"]: i for i in inspect(empty.engine).get_indexes("attempt")}
    option = f"{empty.engine.dialect.name}_where"
    condition = str(found["uq_attempt_live"]["dialect_options"][option])
    assert found["uq_attempt_live"]["unique"]
    assert all(status in condition for status in ("claimed", "loading", "training", "evaluating"))
    assert "fenced" not in condition


def test_migrating_again_changes_nothing(empty):
    migrate(empty)
    migrate(empty)
    assert differences(empty) == []


def test_downgrading_to_the_start_leaves_no_table(empty):
    """And the way back up is free."""
    migrate(empty)
    migrate(empty, "base")
    assert tables(empty) <= {"alembic_version"}
    migrate(empty)
    assert differences(empty) == []


def test_a_list_of_bases_becomes_every_projects(empty):
    """And, downgraded, one list again."""
    migrate(empty, "0002")
    with empty.write() as session:
        session.execute(text("INSERT INTO project VALUES ('proj-1', 'one', 1.5), ('proj-2', 'two', 1.5)"))
        session.execute(text("INSERT INTO base_model VALUES ('a', NULL, 'MIT', 2.5), ('b', 'r', 'MIT', 3.5)"))
    migrate(empty)
    with empty.read() as session:
        for project in ("proj-1", "proj-2"):
            found = [(b.uri, b.revision, b.licence, b.created_at) for b in bases.listed(session, project)]
            assert found == [("a", None, "MIT", 2.5), ("b", "r", "MIT", 3.5)]
    assert differences(empty) == []
    migrate(empty, "0002")
    with empty.read() as session:
        assert session.scalars(text("SELECT uri FROM base_model ORDER BY uri")).all() == ["a", "b"]


def test_a_migration_that_fails_leaves_nothing(empty):
    """One transaction: a database is at a revision or at the one before, never between."""
    with contextlib.suppress(RuntimeError), empty.write() as session:
        run(session.connection(), "head")
        raise RuntimeError("the plug is pulled")
    assert tables(empty) == set()


def test_replicas_may_migrate_at_once(empty, blank_url):
    """Those that start together all come up."""
    code = "import sys; from db import migrations, session; migrations.migrate(session.Database(sys.argv[1]))"
    replicas = [subprocess.Popen([sys.executable, "-c", code, blank_url], cwd=ROOT) for _ in range(3)]
    assert [replica.wait() for replica in replicas] == [0, 0, 0]
    assert differences(empty) == []
