"""The Celery tasks: each calls one function, may come twice or late, and is over within half a minute.

What wakes them is only ever a hint; what there is to do stands in the database.
"""

from collections.abc import Callable
from typing import NamedTuple

from celery import Celery
from sqlalchemy.orm import Session

from db import outbox, records
from db.outbox import Wake
from db.session import Database
from db.settings import Settings
from db.turn import turn
from trainer.store import Store
from worker import dataset
from worker import validate as validation
from worker.collect import collect
from worker.finalize import finalize
from worker.ray_jobs import RayJobs
from worker.reconcile import reconcile
from worker.scheduler import scale

EVERY_S = {"relay": 1.0, "record": 2.0, "scale": 5.0, "reconcile": 5.0, "collect": 300.0}
"""Seconds between the ticks that come by themselves."""


class Parts(NamedTuple):
    """What ticks work with; shared by the threads of a process."""

    database: Database
    settings: Settings
    ray: RayJobs
    store: Store
    send: Callable[[Wake], None]


def relay(parts: Parts) -> None:
    """Send the wake-ups that wait."""
    _where(parts, outbox.waits, "relay", lambda: outbox.relay(parts.database, parts.send))


def record(parts: Parts) -> None:
    """Write down in the store what only the database knows."""
    _where(parts, records.wait, "record", lambda: records.write(parts.database, parts.store))


def _where(parts: Parts, waits: Callable[[Session], bool], name: str, work: Callable[[], object]) -> None:
    """Work in turn, where something waits: most rounds find nothing, and must not take SQLite's one writer's place."""
    with parts.database.read() as session:
        if not waits(session):
            return
    with turn(parts.database, name) as mine:
        if mine:
            work()


def install(app: Celery, parts: Parts) -> None:
    """Make the ticks tasks of the app."""

    def tick(name: str, work: Callable[[str], object]) -> None:
        def run(key: str = "") -> None:
            work(key)
            relay(parts)  # what it has set going need not wait for the next round

        app.task(name=f"attune.{name}")(run)

    tick("validate", lambda key: validation.tick(parts.database, parts.settings, parts.store))
    tick("dataset", lambda key: dataset.tick(parts.database, parts.store, parts.settings))
    tick("scale", lambda key: scale(parts.database, parts.settings, parts.ray))
    tick("finalize", lambda job_id: finalize(parts.database, parts.store, job_id))
    tick("reconcile", lambda key: reconcile(parts.database, parts.ray))
    tick("collect", lambda key: collect(parts.database, parts.ray))
    tick("record", lambda key: record(parts))
    tick("relay", lambda key: None)
