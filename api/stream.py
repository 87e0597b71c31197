"""Live events of jobs for any number of listeners, from one reader of the database per process.

A listener first gets what is stored after its `Last-Event-ID`, then what comes. No connection to the database is held
by a stream. `progress` messages (no id) carry the job's summary as it changes, and
the number of the last event, for those who do not listen to every kind; a client that reconnects loses none of
the numbered ones.
"""

import asyncio
import json
import logging
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

from fastapi.concurrency import run_in_threadpool
from sqlalchemy import select

from api import shapes
from db import events
from db.models import Job
from db.session import Database
from db.status import TERMINAL

_log = logging.getLogger("attune.api")

LOOK_S = 0.5
QUIET_S = 15.0
"""A comment is sent after so long a silence, so that proxies keep the connection open."""


class Tailer:
    """Follows the jobs that somebody listens to."""

    def __init__(self, database: Database):
        self.database = database
        self._woken: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._versions: dict[str, tuple] = {}

    async def run(self) -> None:
        """Looks at the jobs that are listened to until cancelled; wakes the listeners of those that changed."""
        while True:
            await asyncio.sleep(LOOK_S)
            if self._woken:
                try:
                    changed = await run_in_threadpool(self._changed, list(self._woken))
                except Exception:  # a database that restarts: the next look finds it again
                    _log.exception("could not look for new events")
                    continue
                for job_id in changed:
                    for woken in self._woken.get(job_id, ()):
                        woken.set()

    def _changed(self, job_ids: list[str]) -> list[str]:
        with self.database.read() as session:
            rows = session.execute(select(Job.id, Job.last_seq, Job.summary).where(Job.id.in_(job_ids))).all()
        now = {row.id: (row.last_seq, json.dumps(row.summary, sort_keys=True)) for row in rows}
        changed = [job_id for job_id, version in now.items() if self._versions.get(job_id) != version]
        self._versions = now
        return changed

    async def follow(self, job_id: str, seq: int) -> AsyncIterator[str]:
        """Server-sent events of a job after number `seq`, until it has ended and all is told."""
        woken = asyncio.Event()
        woken.set()
        self._woken[job_id].add(woken)
        try:
            shown: Any = None  # what the last `progress` said
            while True:
                try:
                    await asyncio.wait_for(woken.wait(), QUIET_S)
                except TimeoutError:
                    yield ": quiet\n\n"
                    continue
                woken.clear()
                while True:
                    job, rows = await run_in_threadpool(self._read, job_id, seq)
                    for row in rows:
                        seq = row["seq"]
                        yield message(row["type"], row, f"{job_id}:{seq}")
                    if not rows:
                        break
                if job is None:
                    return
                if (job["status"], job["progress"], seq) != shown:
                    shown = (job["status"], job["progress"], seq)
                    yield message("progress", {**job, "seq": seq})
                if job["status"] in TERMINAL:
                    return
        finally:
            self._woken[job_id].discard(woken)
            if not self._woken[job_id]:
                del self._woken[job_id]

    def _read(self, job_id: str, seq: int) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
        with self.database.read() as session:
            job = session.get(Job, job_id)
            rows = events.after(session, job_id, seq)
            return (None if job is None else shapes.job(job)), [shapes.event(row) for row in rows]


def message(kind: str, data: Any, id_: str | None = None) -> str:
    """One server-sent event."""
    head = f"id: {id_}\n" if id_ else ""
    return f"{head}event: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"
