"""The fixtures `database`, `database_url`, `blank_url`, `simulated` and `clock`: a fresh database per test, once on
SQLite, once on Postgres, migrated unless blank.

A test module has them after `pytest_plugins = ["databases"]`. The Postgres is a real server, started once per session.
"""

import contextlib
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from db_rows import Clock
from postgres_start import Postgres, started_postgres

from db.migrations import migrate
from db.session import Database

TEMPLATE = "migrated"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The session's server, with one migrated database to copy."""
    with started_postgres() as server:
        server.run(f"CREATE DATABASE {TEMPLATE}")
        made = Database(server.url(TEMPLATE))
        migrate(made)
        made.close()
        yield server


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory) -> Path:
    """An SQLite file to copy."""
    path = tmp_path_factory.mktemp("migrated") / "attune.db"
    made = Database(f"sqlite:///{path}")
    migrate(made)
    made.close()
    return path


_numbers = itertools.count(1)


@contextlib.contextmanager
def fresh(request, engine: str, template: str | None = TEMPLATE) -> Iterator[str]:
    """Address of a new database on `sqlite` or `postgres`; one without tables where no template is given."""
    if engine == "sqlite":
        path = request.getfixturevalue("tmp_path") / "attune.db"
        if template:
            shutil.copyfile(request.getfixturevalue("migrated_file"), path)
        yield f"sqlite:///{path}"
        return
    server, name = request.getfixturevalue("postgres"), f"test_{next(_numbers)}"
    server.run(f"CREATE DATABASE {name} TEMPLATE {template or 'template0'} STRATEGY FILE_COPY")  # the fast one here
    yield server.url(name)
    server.run(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request) -> Iterator[str]:
    """Address of a migrated database of the test's own."""
    with fresh(request, request.param) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def blank_url(request) -> Iterator[str]:
    """Address of a database without tables."""
    with fresh(request, request.param, template=None) as url:
        yield url


@pytest.fixture
def database(database_url) -> Iterator[Database]:
    """A migrated database of the test's own."""
    opened = Database(database_url)
    yield opened
    opened.close()


@pytest.fixture
def clock() -> Clock:
    """Stands still until a test moves it."""
    return Clock()


@pytest.fixture
def simulated(database_url, clock) -> Iterator[Database]:
    """As `database`, with `clock` instead of the database's own."""
    opened = Database(database_url, clock=clock)
    yield opened
    opened.close()
