"""The database: one place for what differs between Postgres and SQLite.

SQLite: WAL, a busy timeout, and `BEGIN IMMEDIATE` for whatever writes, so that a transaction never fails half-way for
want of the lock. Times are unix seconds as doubles and come from the database.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event, literal, make_url, select
from sqlalchemy.exc import ArgumentError, ProgrammingError, SQLAlchemyError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.expression import ColumnElement
from sqlalchemy.types import Double

BUSY_MS = 30_000
"""How long a writer waits for SQLite's lock."""


class Now(ColumnElement[float]):
    """The database's clock in unix seconds; moves on within a transaction."""

    inherit_cache = True
    type = Double()


@compiles(Now, "sqlite")
def _sqlite_now(element, compiler, **kw) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(Now, "postgresql")
def _postgres_now(element, compiler, **kw) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


def now(session: Session) -> ColumnElement[float]:
    """The time for a query: the database's, or that of `Database(clock=…)` in a simulation."""
    clock = session.info.get("clock")
    return Now() if clock is None else literal(clock(), Double())


def clock(session: Session) -> float:
    """What `now` is, in unix seconds."""
    return session.execute(select(now(session))).scalar_one()


DRIVERS = ("postgresql+psycopg", "postgresql", "sqlite", "sqlite+pysqlite")


def database_url(text: str) -> URL:
    """The address; ValueError where it is none, or of another kind, which repeats no more than that: where a password
    is not escaped, any part of the address may be a part of it."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError("is no address of a database (in a password, @ : / % are written %40 %3A %2F %25)") from None
    if url.drivername not in DRIVERS:
        raise ValueError(f"{url.drivername} is not supported; use {DRIVERS[0]} or sqlite")
    return url


def trouble(error: SQLAlchemyError) -> str:
    """One line on a database that cannot be used. What the driver says may hold the query, never the password."""
    said = str(getattr(error, "orig", None) or error).splitlines()[0]
    behind = isinstance(error, ProgrammingError) or "no such table" in said
    remedy = "bring it up to date: python -m db migrate" if behind else "is this its address, and does it run?"
    return f"ATTUNE_DATABASE_URL: the database cannot be used ({type(error).__name__}: {said}); {remedy}"


class Database:
    """Sessions on one database. `clock` replaces the database's in simulations."""

    def __init__(self, url: str, clock: Callable[[], float] | None = None, **options: Any):
        try:
            self.url = database_url(url)
        except ValueError as error:
            raise ValueError(f"ATTUNE_DATABASE_URL: {error}") from None
        self.sqlite = self.url.get_backend_name() == "sqlite"
        if self.sqlite:
            options = {"connect_args": {"check_same_thread": False}, **options}
        else:
            options = {"pool_pre_ping": True, **options}
        self.engine: Engine = create_engine(self.url, **options)
        self._writing = self.engine.execution_options(attune_writes=True)
        # SQLite reads one state anyway; Postgres takes another with every query unless told otherwise
        one_state = {} if self.sqlite else {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        self._reading = self.engine.execution_options(**one_state)
        self._info = {} if clock is None else {"clock": clock}
        if self.sqlite:
            event.listen(self.engine, "connect", _configure)
            event.listen(self.engine, "begin", _begin)

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that commits at the end, or leaves nothing behind. No I/O but the database's inside."""
        with Session(self._writing, info=dict(self._info), expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that sees one state of the database and changes nothing."""
        with Session(self._reading, info=dict(self._info), expire_on_commit=False) as session:
            yield session  # closing ends the transaction; a rollback would take the rows' values with it

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def _configure(connection, _record) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself; `_begin` does
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", f"busy_timeout={BUSY_MS}"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection) -> None:
    writes = connection.get_execution_options().get("attune_writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
