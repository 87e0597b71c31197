"""The rows that database tests begin with, and what they do to them."""

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from db import attempts, jobs, keys, runners
from db.session import Database


class Clock:
    """The time in a simulation, in seconds."""

    def __init__(self) -> None:
        self.at = 1_000_000.0

    def __call__(self) -> float:
        return self.at


# ---- rows


def a_project(database: Database, name: str = "default") -> str:
    """Id of the project of that name."""
    with database.write() as session:
        return keys.project(session, name).id


def a_job(database: Database, *, project: str = "default", pool: str = "pool", priority: int = 0, retries: int = 2,
          validated: bool = True) -> str:  # fmt: skip
    """Id of a new job, queued unless told otherwise."""
    with database.write() as session:
        owner = keys.project(session, project).id
        job = jobs.create(session, owner, {}, name="t", priority=priority, retries=retries, actor="user:key-1")
        if validated:
            assert jobs.validated(session, job.id, {"spec": {}}, "0" * 64, pool)
        return job.id


class ARunner(NamedTuple):
    """A registered runner."""

    id: str
    token: str


def a_runner(database: Database, pool: str = "pool") -> ARunner:
    """A runner that is alive."""
    with database.write() as session:
        made = runners.start(session, pool, "code", 1, 0)
        token = runners.register(session, made.id, made.bootstrap)
        assert token is not None
        return ARunner(made.id, token)


def claim(database: Database, runner: ARunner) -> attempts.Claim | None:
    """What the API does for a runner that asks."""
    with database.write() as session:
        row = runners.seen(session, runner.id, runner.token)
        assert row is not None
        return attempts.claim(session, row, runner.token)


class Held(NamedTuple):
    """A claimed attempt, as its runner knows it."""

    database: Database
    job: str
    no: int
    token: str
    runner: str

    def beat(self, first_seq: int = 1, *events: dict[str, Any], token: str | None = None) -> tuple[int, str]:
        """A heartbeat: (acked, action)."""
        with self.database.write() as session:
            return attempts.beat(session, self.job, self.no, token or self.token, first_seq, events)

    def done(self, outcome: Any, reason: str | None = None, *events: dict[str, Any], first_seq: int = 1,
             token: str | None = None) -> int:  # fmt: skip
        """The attempt's end: acked."""
        with self.database.write() as session:
            return attempts.done(session, self.job, self.no, token or self.token, first_seq, events, outcome, reason)

    def end(self, to: Any = "lost", reason: str = "lost_heartbeat") -> bool:
        """The service ends it."""
        with self.database.write() as session:
            return attempts.end(session, self.job, self.no, to, reason, "")


def held(database: Database, runner: ARunner | None = None, **job: Any) -> Held:
    """A new job, claimed."""
    made = a_job(database, **job)
    return reclaimed(database, runner or a_runner(database, job.get("pool", "pool")), made)


def reclaimed(database: Database, runner: ARunner, job: str) -> Held:
    """The next attempt at a job that is the only one queued."""
    found = claim(database, runner)
    assert found is not None
    assert found.job.id == job
    return Held(database, job, found.no, found.token, runner.id)


def state(name: str, step: int | None = None) -> dict[str, Any]:
    """The trainer's event of a new state."""
    return {"kind": "state", "state": name, **({} if step is None else {"step": step, "steps": 1000})}


def step(number: int, **values: Any) -> dict[str, Any]:
    """The trainer's event of a step."""
    return {"kind": "step", "step": number, "loss": 1 / number, "seconds": 0.5, **values}


def order(database: Database, job: str, asked: Any) -> str:
    """Gives a user's command; the status that its user is shown."""
    with database.write() as session:
        found = jobs.find(session, job)
        assert found is not None
        return jobs.order(session, found, asked, "user:key-1").status


WANTED = {"pausing": "pause", "paused": "pause", "cancelled": "cancel"}
"""What the user of a job in these wants, unless told otherwise."""


def placed(database: Database, where: str, wanted: str = "", pool: str = "pool") -> str:
    """A job that came to a status by the ordinary way, and what its user wants by now."""
    wanted = wanted or WANTED.get(where, "run")
    if where in ("validating", "queued", "paused", "cancelled"):
        job = a_job(database, pool=pool, validated=where != "validating")
    else:
        mine = held(database, pool=pool)
        job = mine.job
        if where == "pausing":
            order(database, job, "pause")
    if wanted != "run":
        order(database, job, wanted)
    if where in ("finalizing", "succeeded", "failed"):
        mine.done("failed" if where == "failed" else "succeeded", "diverged" if where == "failed" else None)
    if where in ("succeeded", "failed"):
        with database.write() as session:
            assert jobs.finish(session, job)
    found = row(database, job)
    assert (found.status, found.wanted) == (where, wanted)
    return job


def status(database: Database, job: str) -> str:
    """Where the job is."""
    return row(database, job).status


def row(database: Database, job: str) -> Any:
    """The job."""
    with database.read() as session:
        found = jobs.find(session, job)
        assert found is not None
        return found


# ---- at the same time


def at_once(work: Sequence[Callable[[], Any]]) -> list[Any]:
    """Results of calls that begin together, each in a thread; an exception is a result."""
    results: list[Any] = [None] * len(work)
    start = threading.Barrier(len(work))

    def run(n: int) -> None:
        start.wait()
        try:
            results[n] = work[n]()
        except Exception as error:
            results[n] = error

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
