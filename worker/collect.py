"""Collecting what nobody needs any more. That it is done, or not, changes nothing else."""

import logging
import time

from db import datasets, idempotency, leases, outbox, runners
from db.session import Database
from db.turn import turn
from worker.ray_jobs import TICK_S, RayError, RayJobs

RECORD_S = 3600.0
"""How long Ray keeps what it knows of an ended runner, its log among it."""
LOOK_BACK_S = 7 * 86_400.0
"""Ray is not asked where no runner ended within this time."""

_log = logging.getLogger("attune.worker")


def collect(database: Database, ray: RayJobs) -> int:
    """Forget wake-ups, idempotency keys and leases of old, uploads that were given up, and Ray's records of ended
    runners; how many of those."""
    with turn(database, "collect") as mine:
        if not mine:
            return 0
        with database.write() as session:
            for part in (outbox, idempotency, leases, datasets):
                part.sweep(session)
        return _forget_runners(database, ray)


def _forget_runners(database: Database, ray: RayJobs) -> int:
    with database.read() as session:
        if not runners.ended_within(session, LOOK_BACK_S):
            return 0
    end, gone = time.monotonic() + TICK_S, 0
    try:
        ended = [job.submission_id for job in ray.list() if job.ended]
        with database.read() as session:
            old = sorted(runners.known_ended(session, ended, RECORD_S))
        for runner_id in old:
            if time.monotonic() > end:
                break
            gone += ray.delete(runner_id)
    except RayError as error:
        _log.warning("%s", error)
    return gone
