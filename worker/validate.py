"""Validation: from a spec as it was sent to a job that can run, or to the reason why it cannot.

Reading a large data set takes minutes, mostly for the hash of every recording (which the process remembers). A tick
may not: it looks on for `TICK_S`, then the validation goes on beside it. What keeps a second worker off the job is its
turn, renewed while the work goes on; what bounds the work is that turn's end and the number of tries.
"""

import logging
import threading

from db import bases, datasets, events, jobs
from db.events import New
from db.pools import pool_of
from db.session import Database
from db.settings import Settings
from db.turn import LONG, turn
from trainer.fields import problem
from trainer.resolve import Resolved, read_and_resolve
from trainer.result import reason_of
from trainer.spec import parse_job
from trainer.store import Store

TRIES = 5
"""Validations that may fail, or die with their worker, before the job does."""
TICK_S = 25.0
AT_ONCE = 2
"""Validations at a time in one process: each holds its data set's rows in memory."""

_log = logging.getLogger("attune.worker")
_slots = threading.BoundedSemaphore(AT_ONCE)


def tick(database: Database, settings: Settings, store: Store, within_s: float = TICK_S) -> None:
    """Validate what waits; returns after `within_s` at the latest. Nothing happens where this process is busy with as
    many as it may: those who are at it go on until nothing waits."""
    if not _slots.acquire(blocking=False):
        return

    def work() -> None:
        try:
            validate_waiting(database, settings, store)
        except Exception:  # the thread's boundary: whatever waits is found again by the reconciler
            _log.exception("validation")
        finally:
            _slots.release()

    thread = threading.Thread(target=work, name="validate", daemon=True)
    thread.start()
    thread.join(within_s)


def validate_waiting(database: Database, settings: Settings, store: Store) -> int:
    """Validate jobs, oldest first, until none waits; how many were settled."""
    settled = 0
    while True:
        with database.read() as session:
            waiting = jobs.unvalidated(session, 1)
        if not waiting:
            return settled
        settled += validate(database, settings, store, waiting[0])


def validate(database: Database, settings: Settings, store: Store, job_id: str) -> bool:
    """Validate one job; whether this call settled it. A repeated one does nothing."""
    with turn(database, f"validate:{job_id}", *LONG) as mine:
        if not mine:
            return False
        with database.write() as session:
            tries = jobs.validating(session, job_id)
            job = jobs.find(session, job_id)
            if job is None or tries is None:
                return False
            if tries > TRIES:
                message = f"its validation was begun {TRIES} times and never came to an end; see the worker's log"
                return jobs.refuse(session, job_id, "infrastructure", message)
        try:
            spec = parse_job(job.spec)
            datasets.bring(database, store, settings, job.project_id, job.spec)
            with database.read() as session:
                jobs.refuse_start(session, job.project_id, spec.init_from)
            # one that had begun before the database was made anew goes on as what it began as
            begun = Resolved.model_validate(job.resolved) if job.resolved else None
            resolved = begun or read_and_resolve(spec, settings.roots, jobs.home(store, job.project_id))[0]
            _allowed(database, job.project_id, resolved)
        except Exception as error:
            return _failed(database, job_id, error, tries)
        pinned, pool = resolved.model_dump(mode="json", by_alias=True), pool_of(resolved, settings.code, job=job_id)
        with database.write() as session:
            return jobs.validated(session, job_id, pinned, resolved.hash, pool)


def _allowed(database: Database, project_id: str, resolved: Resolved) -> None:
    """SpecError where the base is not among those that the project's jobs may use."""
    with database.read() as session:
        refusal = bases.refusal(session, project_id, resolved.spec.base, resolved.base_revision)
    if refusal is not None:
        raise problem("base", refusal, resolved.spec.base)


def _failed(database: Database, job_id: str, error: Exception, tries: int) -> bool:
    """What the user can do something about ends the job; anything else is tried again, `TRIES` times in all."""
    reason, message = reason_of(error), str(error)
    if reason is None:
        reason, message = "infrastructure", f"{type(error).__name__}: {error}"
        _log.warning("validation of %s failed, try %d", job_id, tries, exc_info=error)
    with database.write() as session:
        if reason == "infrastructure" and tries < TRIES:
            said = New("validation.failed", {"try": tries, "of": TRIES, "message": message})
            events.append(session, job_id, [said], actor="service")
            return False
        return jobs.refuse(session, job_id, reason, message)
