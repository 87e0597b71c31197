"""The reconciler: what the database says and what is so are brought together, whatever message or process was lost.

It works from state alone. Each round may be cut off anywhere, and repeated; every write is guarded.
"""

import logging
import time
from collections.abc import Mapping

from db import attempts, datasets, jobs, leases, outbox, runners
from db.attempts import LEASE_S
from db.models import Runner
from db.session import Database, clock
from db.turn import turn
from worker.ray_jobs import TICK_S, RayError, RayJob, RayJobs

TURN_S = 60.0
WORKER_S = 60.0
"""For so long after its last round a worker counts as there."""
WATCH_S, WATCHED, PARDON = 45.0, "api-watched", "attempts-pardoned"
"""The API is known to have been there all the time if no two looks were further apart."""
SUBMIT_S = 60.0
"""A submission to Ray may be under way for so long."""
START_S = 600.0
"""From its submission until a runner reports; also waits for the cluster's resources."""
SILENT_S = 120.0
"""A runner without an attempt asks for work at least every 20 s."""
WAKE_S = 30.0
"""How long a wake-up may take before it is given up for lost."""
LOOK_BACK_S = 86_400.0
"""Runners that ended within this time may have left a Ray job that still runs."""
TAIL = 500
"""Characters of Ray's last words that are kept."""

_log = logging.getLogger("attune.worker")


def reconcile(database: Database, ray: RayJobs) -> None:
    """One round. Where Ray gives no answer the rest is done all the same."""
    with turn(database, "reconcile", TURN_S) as mine:
        if not mine:
            return
        leases_count = judges(database)
        if leases_count:
            end_overdue(database)
        listed = _listed(database, ray)
        end_runners(database, listed, leases_count)
        if listed is not None:
            stop_leftovers(database, ray, listed)
        wake(database)
        with database.write() as session:
            leases.take(session, leases.WORKER_ALIVE, "worker", WORKER_S)


def judges(database: Database) -> bool:
    """Whether leases count now. They do not while no heartbeat could arrive: while the API is away, and for a whole
    lease after it came back, or after nobody looked whether it was there."""
    with database.write() as session:
        there, watched = leases.held(session, leases.API_ALIVE), leases.held(session, WATCHED)
        if not (there and watched):
            leases.take(session, PARDON, "reconcile", LEASE_S)
        if there:
            leases.take(session, WATCHED, "reconcile", WATCH_S)
        else:
            leases.give_back(session, WATCHED, "reconcile")
        return not leases.held(session, PARDON)


def end_overdue(database: Database) -> int:
    """End the attempts that are overdue, and their runners with them; how many."""
    with database.read() as session:
        silent = {late.runner_id for late in attempts.overdue(session)}
    ended = 0
    for runner_id in sorted(silent):
        with database.write() as session:
            runners.lock(session, runner_id)
            for late in attempts.overdue(session, runner_id):  # again: a heartbeat may have come in between
                runners.ended(session, runner_id, late.message)
                ended += attempts.end(session, late.job_id, late.no, late.to, late.reason, late.message)
    return ended


def _listed(database: Database, ray: RayJobs) -> dict[str, RayJob] | None:
    """Our jobs that Ray knows; None where it gives no answer, or where there is nothing to compare them with."""
    with database.read() as session:
        if not runners.running(session) and not runners.ended_within(session, LOOK_BACK_S):
            return None
    try:
        return {job.submission_id: job for job in ray.list()}
    except RayError as error:
        _log.warning("%s", error)
        return None


def end_runners(database: Database, listed: Mapping[str, RayJob] | None, leases_count: bool) -> list[str]:
    """End the runners that are no more, or never came to be, and their attempts; which ones."""
    with database.read() as session:
        at, holding = clock(session), runners.busy(session)
        gone = {
            runner.id: why
            for runner in runners.running(session)
            if (why := _gone(runner, at, runner.id in holding, listed, leases_count))
        }
    for runner_id, why in gone.items():
        with database.write() as session:
            runners.ended(session, runner_id, why)  # first: from here on it claims nothing more
            for attempt in runners.live_attempts(session, runner_id):
                message = f"its runner is no more: {why}"
                attempts.end(session, attempt.job_id, attempt.no, "lost", "infrastructure", message)
    return list(gone)


def _gone(runner: Runner, at: float, busy: bool, listed: Mapping[str, RayJob] | None, leases_count: bool) -> str:
    """Why a runner counts as ended; empty where it does not."""
    age, silent = at - runner.created_at, at - (runner.last_seen or runner.created_at)
    job = None if listed is None else listed.get(runner.id)
    if job is not None and job.ended:
        return runners.LEFT if job.status == "SUCCEEDED" else f"{job.status.lower()}: {job.message[-TAIL:]}"
    if runner.status == "starting":
        if listed is not None and job is None and age > SUBMIT_S:
            return runners.NEVER_SENT
        if age > START_S:
            pending = job is not None and job.status == "PENDING"
            return f"{'Ray did not start it' if pending else 'it did not report'} within {START_S:.0f} s"
        return ""
    if listed is not None and job is None and silent > LEASE_S and leases_count:
        return "Ray does not have it any more"
    if not busy and silent > SILENT_S and leases_count:
        return f"it has not asked for work for {silent:.0f} s"
    return ""


def stop_leftovers(database: Database, ray: RayJobs, listed: Mapping[str, RayJob]) -> list[str]:
    """Stop the Ray jobs of runners that ended; which ones. Jobs that are not in the database are somebody else's.

    A job that Ray has not started yet cannot be stopped for good: it is asked again with every round, until it starts
    and dies of it.
    """
    running = [job.submission_id for job in listed.values() if not job.ended]
    with database.read() as session:
        left = sorted(runners.known_ended(session, running))
    end, stopped = time.monotonic() + TICK_S, []
    for runner_id in left:
        if time.monotonic() > end:
            break
        try:
            ray.stop(runner_id)
        except RayError as error:
            _log.warning("%s", error)
            break
        stopped.append(runner_id)
    return stopped


def wake(database: Database) -> None:
    """Ask again for what nobody has come to."""
    with database.read() as session:
        late = [("validate", job_id) for job_id in jobs.unvalidated(session, 1)]
        late += [("finalize", job_id) for job_id in jobs.finalizing(session)]
        late += [("dataset", dataset_id) for dataset_id in datasets.unvalidated(session, 1)]
    if late:
        with database.write() as session:
            for topic, key in late:
                outbox.again(session, topic, key, WAKE_S)
