"""Every pair of statuses, through the functions that write them, and the pure tables behind."""

import itertools
from typing import get_args

import pytest
from db_rows import a_job, held, row, state
from sqlalchemy import select, update

from db import attempts, events, jobs
from db.attempts import FencedError
from db.models import Attempt, Job
from db.status import (
    ATTEMPT,
    ENDED,
    FAULTS,
    HELD,
    JOB,
    LIVE,
    TERMINAL,
    AttemptStatus,
    Command,
    IllegalCommand,
    JobStatus,
    action,
    after_attempt,
    command,
    ending,
)

pytest_plugins = ["databases"]


def history(database, job: str) -> list[tuple]:
    """(number, type, data) of all events."""
    with database.read() as session:
        return [(e.seq, e.type, e.data) for e in events.after(session, job)]


def place_job(database, job: str, status: str) -> None:
    """Puts the job where a test needs it, past all rules."""
    with database.write() as session:
        session.execute(update(Job).where(Job.id == job).values(status=status))


def place_attempt(database, job: str, status: str) -> None:
    with database.write() as session:
        session.execute(update(Attempt).where(Attempt.job_id == job).values(status=status))


def attempt_row(database, job: str) -> Attempt:
    with database.read() as session:
        return session.scalars(select(Attempt).where(Attempt.job_id == job)).one()


# ---- jobs


@pytest.mark.parametrize("source", get_args(JobStatus))
def test_a_job_moves_along_the_table_only(database, source):
    """From `source` to every status: a legal one with its event, an illegal one without a trace."""
    for to in get_args(JobStatus):
        job = a_job(database, validated=False)
        place_job(database, job, source)
        before, told = row(database, job), history(database, job)
        with database.write() as session:
            moved = jobs.move(session, job, to, actor="service", reason="user", message="why")
        after, tells = row(database, job), history(database, job)
        assert moved == (to in JOB[source]), to
        if moved:
            assert (after.status, after.reason, after.message) == (to, "user", "why")
            assert tells == [*told, (before.last_seq + 1, "job.status",
                                     {"status": to, "reason": "user", "message": "why"})]  # fmt: skip
            assert (after.finished_at is not None) == (to in TERMINAL)
        else:
            assert (after.status, after.reason, after.last_seq) == (source, None, before.last_seq), to
            assert tells == told


def test_a_move_may_ask_for_less_than_the_table_allows(database):
    """A caller that saw the job validating must not move one that its user has paused meanwhile."""
    job = a_job(database)
    with database.write() as session:
        assert not jobs.move(session, job, "cancelled", actor="service", only_from=["validating"])
        assert jobs.move(session, job, "cancelled", actor="service", only_from=["queued"])


def test_a_job_that_is_not_there_does_not_move(database):
    with database.write() as session:
        assert not jobs.move(session, "ftjob-none", "cancelled", actor="service")


def test_the_table_of_jobs_has_one_way_in_and_three_out():
    assert {s for s, targets in JOB.items() if not targets} == set(TERMINAL)
    assert set(itertools.chain(*JOB.values())) == set(JOB) - {"validating"}
    assert all("cancelled" in targets for s, targets in JOB.items() if s not in TERMINAL)
    assert {s for s, targets in JOB.items() if "succeeded" in targets} == {"finalizing"}
    assert {s for s, targets in JOB.items() if "running" in targets} == {"queued", "pausing"}
    assert all(JOB[status] >= {"finalizing", "queued"} for status in HELD)


# ---- attempts


@pytest.mark.parametrize("source", get_args(AttemptStatus))
def test_an_attempt_moves_forward_only(database, source):
    """From `source` to every status, by whoever writes it: the runner's events and its end, the service's end."""
    for to in get_args(AttemptStatus):
        mine = held(database, pool=to)
        place_attempt(database, mine.job, source)
        if source in ENDED:
            place_job(database, mine.job, "finalizing")
        before, told = attempt_row(database, mine.job), history(database, mine.job)
        moved = True
        try:
            if to in LIVE:
                mine.beat(1, state(to, step=0))
            elif to in ("fenced", "lost"):
                moved = mine.end(to, "stalled")
            else:
                mine.done(to)
        except FencedError:
            moved = False
        after = attempt_row(database, mine.job)
        assert after.status == (to if to in ATTEMPT[source] else source), to
        if source in ENDED:
            # only the very same end is taken for a repetition
            assert moved == (to == source and to not in ("fenced", "lost")), to
            assert (after.lease_expires_at, after.ended_at) == (before.lease_expires_at, before.ended_at)
            assert history(database, mine.job) == told
        elif to in ENDED:
            kinds = [kind for _, kind, _ in history(database, mine.job)[len(told) :]]
            assert kinds == ["attempt.ended", "job.status"]
            assert after.ended_at is not None
        else:
            assert history(database, mine.job)[-1][1] == f"attempt.{to}"


@pytest.mark.parametrize("said", ENDED)
def test_a_state_of_the_trainer_never_ends_an_attempt(database, said):
    """Only `done` and the service do: else the job would be held by nobody."""
    mine = held(database)
    mine.beat(1, state("loading"), state(said))
    assert attempt_row(database, mine.job).status == "loading"
    assert row(database, mine.job).status == "running"


def test_the_end_of_an_attempt_is_one_of_the_five(database):
    mine = held(database)
    with pytest.raises(ValueError, match="cannot become training"), database.write() as session:
        attempts.done(session, mine.job, mine.no, mine.token, 1, [], "training", None)
    assert attempt_row(database, mine.job).status == "claimed"


def test_the_table_of_attempts_goes_forward():
    order = {status: n for n, status in enumerate(LIVE)}
    assert set(ATTEMPT) == {*LIVE, *ENDED} == set(get_args(AttemptStatus))
    for source, targets in ATTEMPT.items():
        assert targets == (set() if source in ENDED else {s for s in LIVE if order[s] > order[source]} | set(ENDED))


# ---- the pure tables

COMMANDS = {
    # status: (cancel, pause, resume) as (wanted, status); None: it makes no sense
    "validating": (("cancel", "cancelled"), ("pause", "validating"), ("run", "validating")),
    "queued": (("cancel", "cancelled"), ("pause", "paused"), ("run", "queued")),
    "running": (("cancel", "running"), ("pause", "pausing"), ("run", "running")),
    "pausing": (("cancel", "pausing"), ("pause", "pausing"), ("run", "running")),
    "paused": (("cancel", "cancelled"), ("pause", "paused"), ("run", "queued")),
    "finalizing": (("cancel", "cancelled"), None, None),
    "succeeded": (None, None, None),
    "failed": (None, None, None),
    "cancelled": (("cancel", "cancelled"), None, None),
}


@pytest.mark.parametrize("status", get_args(JobStatus))
@pytest.mark.parametrize(("n", "asked"), list(enumerate(get_args(Command))))
def test_what_a_command_makes_of_a_job(status, n, asked):
    expected = COMMANDS[status][n]
    if expected is None:
        with pytest.raises(IllegalCommand, match=status):
            command(asked, status)
        return
    assert command(asked, status) == expected
    # the way there is legal, and the same command again is harmless
    assert expected[1] == status or expected[1] in JOB[status]
    assert command(asked, expected[1]) == expected


@pytest.mark.parametrize(
    ("wanted", "yielding", "expected"),
    [
        ("run", False, "continue"), ("pause", False, "checkpoint_and_exit"), ("cancel", False, "abort"),
        ("run", True, "checkpoint_and_exit"), ("pause", True, "checkpoint_and_exit"), ("cancel", True, "abort"),
    ],
)  # fmt: skip
def test_what_a_runner_is_told(wanted, yielding, expected):
    assert action(wanted, yielding) == expected


AFTER = [
    # ended, reason, wanted, faults, retries, used runner -> the job
    *[("succeeded", None, wanted, 0, 0, False, "finalizing") for wanted in ("run", "pause", "cancel")],
    *[(ended, None, "cancel", 0, 9, True, "finalizing") for ended in ENDED],
    ("yielded", "yielded", "run", 0, 0, False, "queued"),
    ("yielded", "yielded", "pause", 0, 0, False, "paused"),
    ("yielded", "timeout", "run", 0, 9, False, "finalizing"),
    ("yielded", "timeout", "pause", 0, 9, False, "finalizing"),
    *[("lost", fault, "run", 2, 2, False, "queued") for fault in FAULTS],
    *[("lost", fault, "run", 3, 2, False, "finalizing") for fault in FAULTS],
    *[("failed", fault, "pause", 1, 2, False, "paused") for fault in FAULTS],
    ("failed", "infrastructure", "run", 1, 0, False, "finalizing"),
    *[("failed", reason, wanted, 0, 9, True, "finalizing") for reason in ("invalid_data", "invalid_spec", "diverged")
      for wanted in ("run", "pause")],
    ("failed", "out_of_memory", "run", 0, 0, True, "queued"),
    ("failed", "out_of_memory", "pause", 0, 0, True, "paused"),
    ("failed", "out_of_memory", "run", 0, 9, False, "finalizing"),
    # asked to pause, it did not leave in time: the pause still holds, and no work but the last steps is lost
    ("fenced", "user", "pause", 0, 0, False, "paused"),
    # asked to make room, it did not leave in time
    ("fenced", "yielded", "run", 0, 0, False, "queued"),
    ("fenced", "yielded", "pause", 0, 0, False, "paused"),
    # aborted for a cancel that its user has taken back since
    ("failed", "user", "run", 0, 0, False, "queued"),
    ("failed", "user", "cancel", 0, 0, False, "finalizing"),
]  # fmt: skip


@pytest.mark.parametrize(("ended", "reason", "wanted", "faults", "retries", "used", "expected"), AFTER)
def test_where_the_end_of_an_attempt_takes_its_job(ended, reason, wanted, faults, retries, used, expected):
    assert after_attempt(ended, reason, wanted, faults, retries, used) == expected


@pytest.mark.parametrize("wanted", ["run", "pause", "cancel"])
@pytest.mark.parametrize("ended", ENDED)
def test_every_end_takes_the_job_where_it_may_go(ended, wanted):
    """Whatever the reason: a legal change of a held job, so that none is left running without an attempt."""
    source = "pausing" if wanted == "pause" else "running"
    reasons = (None, *FAULTS, "out_of_memory", "diverged", "invalid_data", "timeout", "user", "yielded")
    for reason, faults, used in itertools.product(reasons, (0, 1, 5), (False, True)):
        assert after_attempt(ended, reason, wanted, faults, 1, used) in JOB[source]


@pytest.mark.parametrize("wanted", ["run", "pause", "cancel"])
@pytest.mark.parametrize("ended", ENDED)
def test_what_a_finalizing_job_becomes(ended, wanted):
    """Work that came to its end counts, also where a cancel came too late."""
    expected = "succeeded" if ended == "succeeded" else "cancelled" if wanted == "cancel" else "failed"
    assert ending(ended, wanted) == expected
