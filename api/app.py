"""The application: routes, and the few things that run beside them."""

import asyncio
import contextlib
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable

from fastapi import Depends, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from kombu.connection import Connection

from api import errors
from api.bodies import BodyLimit
from api.deps import known_query
from api.routes import artifacts, compare, dashboard, datasets, health, internal, jobs, keys, live, predictions, studies
from api.schema import ErrorBody
from api.stream import Tailer
from db import leases, outbox
from db.leases import API_ALIVE
from db.migrations import migrate
from db.session import Database
from db.settings import Settings
from trainer.store import FolderStore, S3Store, open_store

_log = logging.getLogger("attune.api")

ALIVE_S, RENEW_S = 15.0, 5.0
"""Of the lease `API_ALIVE`: while nobody holds it, no attempt's lease runs out."""


class SecondReplicaError(RuntimeError):
    """Another API process uses this SQLite file."""


def create_app(settings: Settings, database: Database | None = None) -> FastAPI:
    """The app on its settings. `database`: an open one, for tests."""
    database = database or Database(settings.database_url)
    store = open_store(settings.store)
    assert isinstance(store, FolderStore | S3Store)
    holder = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}" if database.sqlite else "api"

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        beside = [asyncio.create_task(work) for work in (app.state.tailer.run(), _stay_alive(database, holder))]
        try:
            yield
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            if database.sqlite:
                with database.write() as session:
                    leases.give_back(session, API_ALIVE, holder)
            database.close()

    app = FastAPI(
        title="Attune",
        version=settings.code,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses={"default": {"model": ErrorBody, "description": "What is wrong, and what to do."}},
    )
    app.state.settings, app.state.database, app.state.store = settings, database, store
    app.state.links = open_store(settings.store, endpoint_url=settings.s3_public_url)
    app.state.tailer, app.state.holder = Tailer(database), holder
    app.state.nudge, app.state.ping_broker = _relaying(database, settings.broker_url)
    errors.install(app)
    app.add_middleware(BodyLimit)

    @app.middleware("http")
    async def request_id(request: Request, go_on: Callable) -> object:
        response = await go_on(request)
        response.headers["x-request-id"] = request.headers.get("x-request-id") or uuid.uuid4().hex
        return response

    for part in (jobs, live, artifacts, keys, studies, compare, predictions, datasets):
        app.include_router(part.router, dependencies=[Depends(known_query)])
    for part in (internal, health, dashboard):
        app.include_router(part.router)
    return app


def be_the_one(app: FastAPI) -> None:
    """Take the lease that this app renews while it serves. On SQLite only one process may: two would not know of each
    other's listeners. Waits until what a killed predecessor left has run out; SecondReplicaError where it goes on."""
    database: Database = app.state.database
    if database.sqlite:  # in production migrations are a step of their own
        migrate(database)
    end = time.monotonic() + ALIVE_S + 2
    while True:
        with database.write() as session:
            if leases.take(session, API_ALIVE, app.state.holder, ALIVE_S) is not None:
                return
        if time.monotonic() > end:
            raise SecondReplicaError(
                f"another API process is using {database.url.database}; SQLite serves one. Stop it, or use Postgres"
            )
        time.sleep(0.5)


async def _stay_alive(database: Database, holder: str) -> None:
    def renew() -> None:
        with database.write() as session:
            if leases.take(session, API_ALIVE, holder, ALIVE_S) is None:
                _log.error("another API process has taken over this database")

    while True:
        await asyncio.sleep(RENEW_S)
        try:
            await run_in_threadpool(renew)
        except Exception:  # a database that restarts: the next round finds it again
            _log.exception("could not renew the lease %s", API_ALIVE)


def _relaying(database: Database, url: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """`nudge`: send waiting wake-ups now, in the background; and a check of the broker. Where the broker is away the
    workers' own relay sends them later."""
    wanted = threading.Event()
    started = threading.Lock()

    def send_waiting() -> None:
        from db.broker import sender

        while True:
            wanted.wait()
            wanted.clear()
            try:
                outbox.relay(database, sender(url))
            except Exception as error:
                _log.warning("wake-ups wait for the worker's relay: %s", error)

    def nudge() -> None:
        if started.acquire(blocking=False):
            threading.Thread(target=send_waiting, name="relay", daemon=True).start()
        wanted.set()

    def ping() -> None:
        with Connection(url, transport_options={"socket_timeout": 2, "socket_connect_timeout": 2}) as connection:
            connection.ensure_connection(max_retries=1, timeout=2)

    return nudge, ping
