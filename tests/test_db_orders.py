"""A user's cancel, pause and resume in every status: done at once where nobody runs, told to the attempt where one
does, refused where it makes no sense, and the same twice is once."""

from collections.abc import Callable

import pytest
from db_rows import a_job, a_runner, at_once, claim, held, order, placed, reclaimed, row, state, status, step
from db_watch import rows
from sqlalchemy import func, select

from db import attempts, events, jobs, metrics
from db.models import Metric, Outbox
from db.status import IllegalCommand

pytest_plugins = ["databases"]


OUTCOMES = {
    # where: after (cancel, pause, resume); None: refused
    "validating": ("cancelled", "validating", "validating"),
    "queued": ("cancelled", "paused", "queued"),
    "running": ("running", "pausing", "running"),
    "pausing": ("pausing", "pausing", "running"),
    "paused": ("cancelled", "paused", "queued"),
    "finalizing": ("cancelled", None, None),
    "succeeded": (None, None, None),
    "failed": (None, None, None),
    "cancelled": ("cancelled", None, None),
}


@pytest.mark.parametrize("where", OUTCOMES)
@pytest.mark.parametrize(("n", "asked"), list(enumerate(("cancel", "pause", "resume"))))
def test_every_command_in_every_status_twice(database, where, n, asked):
    job, expected = placed(database, where), OUTCOMES[where][n]
    before = row(database, job)
    if expected is None:
        with pytest.raises(IllegalCommand, match=where):
            order(database, job, asked)
        after = row(database, job)
        assert (after.status, after.last_seq) == (where, before.last_seq)
        return
    assert order(database, job, asked) == expected
    once = row(database, job)
    assert once.wanted == {"cancel": "cancel", "pause": "pause", "resume": "run"}[asked]
    assert (once.wanted_at is not None) == (expected in ("running", "pausing") and once.wanted != "run")
    assert order(database, job, asked) == expected
    twice = row(database, job)
    assert (twice.wanted, twice.wanted_at, twice.last_seq) == (once.wanted, once.wanted_at, once.last_seq)
    with database.read() as session:
        told = [(e.type, e.actor) for e in events.after(session, job, before.last_seq)]
    heard = [f"job.{asked}"] * (before.wanted != once.wanted) + ["job.status"] * (before.status != once.status)
    assert told == [(kind, "user:key-1") for kind in heard]


WRITERS: dict[str, tuple[Callable, dict[str, str]]] = {
    # what it is called with, and where it takes a job that is not elsewhere
    "validated": (lambda s, job: jobs.validated(s, job, {}, "0" * 64, "pool"), {"validating": "queued"}),
    "refuse": (lambda s, job: jobs.refuse(s, job, "invalid_data", "row 3"), {"validating": "failed"}),
    "validating": (lambda s, job: jobs.validating(s, job), {"validating": "validating"}),
    "finish": (lambda s, job: jobs.finish(s, job), {"finalizing": "succeeded"}),
    "end": (lambda s, job: attempts.end(s, job, 1, "lost", "stalled", ""), {"running": "queued", "pausing": "paused"}),
}  # fmt: skip


@pytest.mark.parametrize("where", OUTCOMES)
@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_of_the_service_in_every_status(database, where, writer):
    """Whatever comes late, by a slow worker or a repeated message, finds its job elsewhere and leaves it alone."""
    job, (call, targets) = placed(database, where), WRITERS[writer]
    before = rows(database)
    with database.write() as session:
        done = call(session, job)
    assert bool(done) == (where in targets)
    assert status(database, job) == targets.get(where, where)
    if where not in targets:
        assert rows(database) == before


@pytest.mark.parametrize("where", OUTCOMES)
def test_only_a_queued_job_is_claimed(database, where):
    job = placed(database, where)
    before = rows(database).job
    found = claim(database, a_runner(database))
    assert (found.job.id if found else None) == (job if where == "queued" else None)
    assert (rows(database).job == before) == (where != "queued")


def test_the_grace_period_counts_from_the_first_time(simulated, clock):
    """Asking again does not give the attempt another minute."""
    mine = held(simulated)
    order(simulated, mine.job, "pause")
    first = row(simulated, mine.job).wanted_at
    clock.at += 30
    order(simulated, mine.job, "pause")
    assert row(simulated, mine.job).wanted_at == first
    order(simulated, mine.job, "cancel")
    assert row(simulated, mine.job).wanted_at == clock.at


def test_paused_while_validating_it_is_never_queued_for_anybody(database):
    job = a_job(database, validated=False)
    order(database, job, "pause")
    with database.write() as session:
        assert jobs.validated(session, job, {}, "0" * 64, "pool")
    assert status(database, job) == "paused"
    assert claim(database, a_runner(database)) is None
    with database.read() as session:
        assert [w.topic for w in session.scalars(select(Outbox).where(Outbox.topic != "record"))] == ["validate"]
    assert order(database, job, "resume") == "queued"
    assert claim(database, a_runner(database)) is not None


def test_cancelled_while_validating_it_stays_so(database):
    """The validation ends after the cancel, either way."""
    job = a_job(database, validated=False)
    order(database, job, "cancel")
    with database.write() as session:
        assert not jobs.validated(session, job, {}, "0" * 64, "pool")
        assert not jobs.refuse(session, job, "invalid_data", "row 3: …")
    assert (status(database, job), row(database, job).reason) == ("cancelled", "user")


def test_pause_and_resume_across_attempts(database):
    """The paused job holds nothing; resumed, it goes on as its next attempt."""
    runner = a_runner(database)
    mine = held(database, runner)
    mine.beat(1, state("training", 0))
    assert order(database, mine.job, "pause") == "pausing"
    mine.done("yielded", "yielded", first_seq=2)
    assert status(database, mine.job) == "paused"
    assert claim(database, runner) is None
    assert order(database, mine.job, "resume") == "queued"
    assert reclaimed(database, runner, mine.job).no == 2


def test_resumed_while_pausing_it_goes_on(database):
    """The attempt that was told to stop may yield all the same: its job is queued again, not left paused."""
    mine = held(database)
    order(database, mine.job, "pause")
    assert mine.beat() == (0, "checkpoint_and_exit")
    assert order(database, mine.job, "resume") == "running"
    assert mine.beat() == (0, "continue")
    mine.done("yielded", "yielded")
    assert status(database, mine.job) == "queued"


@pytest.mark.parametrize(("outcome", "reason"), [("failed", "user"), ("yielded", "yielded"), ("failed", "diverged")])
def test_a_cancelled_attempt_ends_its_job(database, outcome, reason):
    mine = held(database)
    assert order(database, mine.job, "cancel") == "running"
    assert mine.beat() == (0, "abort")
    mine.done(outcome, reason)
    with database.write() as session:
        assert jobs.finish(session, mine.job)
    ended = row(database, mine.job)
    assert (ended.status, ended.reason) == ("cancelled", "user")


def test_a_cancel_that_comes_too_late_wastes_nothing(database):
    """The attempt had come to its end before it heard of it."""
    mine = held(database)
    order(database, mine.job, "cancel")
    mine.done("succeeded")
    with database.write() as session:
        assert jobs.finish(session, mine.job, {"metric": "accuracy", "scores": [{"value": 0.9}]})
    ended = row(database, mine.job)
    assert (ended.status, ended.reason, ended.summary["metric"]) == ("succeeded", None, "accuracy")


def test_cancelled_while_finalizing_it_is_not_finished_again(database):
    mine = held(database)
    mine.done("succeeded")
    assert order(database, mine.job, "cancel") == "cancelled"
    with database.write() as session:
        assert not jobs.finish(session, mine.job)
    assert status(database, mine.job) == "cancelled"


@pytest.mark.parametrize("where", ["queued", "paused", "finalizing"])
def test_a_job_that_is_cancelled_after_it_trained_leaves_its_curve(database, where):
    """Rows of steps are for jobs that run; whoever ends one folds them."""
    mine = held(database)
    mine.beat(1, state("training", 0), step(1), step(2))
    if where == "paused":
        order(database, mine.job, "pause")
    mine.done(*(("failed", "diverged") if where == "finalizing" else ("yielded", "yielded")), first_seq=4)
    assert status(database, mine.job) == where
    assert order(database, mine.job, "cancel") == "cancelled"
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Metric)) == 0
        steps, losses = metrics.series(session, mine.job)["loss"]
    assert (steps.tolist(), losses.tolist()) == ([1, 2], [1.0, 0.5])


def test_commands_that_come_at_once_leave_one_answer(database):
    """Each is carried out whole, one after the other."""
    mine = held(database)
    results = at_once([lambda a=a: order(database, mine.job, a) for a in ("pause", "resume", "cancel") * 3])
    assert not [r for r in results if isinstance(r, Exception)], results
    last = row(database, mine.job)
    assert (last.status, last.wanted) in {("running", "run"), ("running", "cancel"), ("pausing", "pause"),
                                          ("pausing", "cancel")}  # fmt: skip
    with database.read() as session:
        told = [e.seq for e in events.after(session, mine.job)]
    assert told == list(range(1, last.last_seq + 1))


def test_other_projects_jobs_are_not_found(database):
    job = a_job(database, project="mine")
    with database.read() as session:
        owner = jobs.find(session, job)
        assert owner is not None
        assert jobs.find(session, job, owner.project_id) is not None
        assert jobs.find(session, job, "proj-other") is None
        assert jobs.find(session, "ftjob-none") is None
