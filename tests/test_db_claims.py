"""Claims: each queued job once, whoever asks at the same time, and in a fair order."""

import pytest
from db_rows import Held, a_job, a_runner, at_once, claim, held, row, state
from sqlalchemy import select

from db import jobs, runners
from db.attempts import LEASE_S, Claim, FencedError, digest
from db.models import Attempt, Runner

pytest_plugins = ["databases"]

THREADS = 16


@pytest.mark.parametrize("count", [1, 5, 20])
def test_each_job_is_claimed_once(database, count):
    """By whichever of 16 runners that ask at once."""
    made = {a_job(database) for _ in range(count)}
    crowd = [a_runner(database) for _ in range(THREADS)]
    found = at_once([lambda r=r: claim(database, r) for r in crowd])
    claims = [c for c in found if c is not None]
    assert all(isinstance(c, Claim) for c in claims), found
    assert len(claims) == min(count, THREADS)
    assert len({c.job.id for c in claims}) == len(claims)
    assert {c.job.id for c in claims} <= made
    assert len({c.token for c in claims}) == len(claims)
    with database.read() as session:
        attempts = session.scalars(select(Attempt)).all()
        assert sorted(a.job_id for a in attempts) == sorted(c.job.id for c in claims)
        assert {(a.no, a.status) for a in attempts} == {(1, "claimed")}
        assert sum(session.scalars(select(Runner.claims))) == len(claims)
    assert {row(database, c.job.id).status for c in claims} == {"running"}


def test_a_claim_races_with_its_users_commands(database):
    """Whoever is first: a job that was cancelled while queued is never run."""
    made = [a_job(database) for _ in range(8)]
    crowd = [a_runner(database) for _ in made]

    def cancel(job: str) -> None:
        with database.write() as session:
            jobs.order(session, jobs.find(session, job), "cancel", "user:key-1")

    results = at_once([lambda j=j: cancel(j) for j in made] + [lambda r=r: claim(database, r) for r in crowd])
    assert not [r for r in results if isinstance(r, Exception)], results
    claimed = {c.job.id for c in results if c is not None}
    for job in made:
        found = row(database, job)
        assert (found.status, found.wanted) == ("running" if job in claimed else "cancelled", "cancel")
        with database.read() as session:
            assert len(jobs.attempts(session, job)) == (job in claimed)


def test_a_claim_whose_answer_was_lost_is_answered_again(simulated, clock):
    """The same attempt, under a new lease: nothing stands about until a lease runs out, and no fault is counted."""
    runner, first = a_runner(simulated), a_job(simulated)
    clock.at += 1
    second = a_job(simulated)
    lost = claim(simulated, runner)
    clock.at += LEASE_S - 1
    again = claim(simulated, runner)
    assert (again.job.id, again.no, again.token) == (lost.job.id, 1, lost.token) == (first, 1, lost.token)
    with simulated.read() as session:
        kept = session.get_one(Attempt, (first, 1))
        assert (kept.lease_expires_at, kept.used_runner) == (clock.at + LEASE_S, False)
        assert kept.token_sha256 == digest(again.token)
        assert session.get_one(Runner, runner.id).claims == 1
    mine = Held(simulated, first, 1, again.token, runner.id)
    mine.beat(1, state("loading"))
    assert claim(simulated, runner).token == again.token  # the lost call comes late: it takes no other job
    assert row(simulated, second).status == "queued"
    mine.done("succeeded", first_seq=2)
    assert row(simulated, first).faults == 0
    assert claim(simulated, runner).job.id == second


def test_the_same_claim_at_once_is_one_attempt(database):
    """A client that asks again while its first request still runs."""
    for _ in range(3):
        a_job(database)
    runner = a_runner(database)
    found = at_once([lambda: claim(database, runner)] * 6)
    assert len({(c.job.id, c.no, c.token) for c in found}) == 1
    with database.read() as session:
        assert [a.no for a in session.scalars(select(Attempt))] == [1]


def test_a_runner_that_is_to_leave_gets_what_it_has_and_nothing_else(database):
    """So that it gives the attempt back itself, at no charge."""
    runner, job = a_runner(database), a_job(database)
    lost = claim(database, runner)
    a_job(database)
    with database.write() as session:
        runners.drain(session, runner.id)
    again = claim(database, runner)
    assert (again.job.id, again.token) == (job, lost.token)
    mine = Held(database, job, 1, again.token, runner.id)
    assert mine.beat() == (0, "checkpoint_and_exit")
    mine.done("yielded", "yielded")
    assert (row(database, job).status, row(database, job).faults) == ("queued", 0)
    assert claim(database, runner) is None


def test_every_attempt_and_every_runner_has_its_own_token(database):
    """Also the same job on the same runner; what ended is not told again."""
    runner, job = a_runner(database), a_job(database)
    first = claim(database, runner)
    Held(database, job, 1, first.token, runner.id).end("lost")
    second = claim(database, runner)
    Held(database, job, 2, second.token, runner.id).end("lost")
    third = claim(database, a_runner(database))
    assert [c.no for c in (first, second, third)] == [1, 2, 3]
    assert len({c.token for c in (first, second, third)} | {runner.token}) == 4
    for token in (first.token, second.token, runner.token):
        with pytest.raises(FencedError):
            Held(database, job, 3, token, runner.id).beat()


def order(database, count: int, pool: str = "pool") -> list[str]:
    """The jobs in the order in which runners get them."""
    found = [claim(database, a_runner(database, pool)) for _ in range(count)]
    return [c.job.id for c in found if c is not None]


def test_the_highest_priority_first_then_the_oldest(simulated, clock):
    made = {}
    for priority in (0, 5, -1, 5, 0):
        clock.at += 1
        made.setdefault(priority, []).append(a_job(simulated, priority=priority))
    assert order(simulated, 6) == [*made[5], *made[0], *made[-1]]


def test_projects_take_turns(simulated, clock):
    """A project with a hundred jobs does not keep another one waiting."""
    many = []
    for _ in range(4):
        clock.at += 1
        many.append(a_job(simulated, project="many"))
    clock.at += 1
    few = [a_job(simulated, project="few"), a_job(simulated, project="few")]
    assert order(simulated, 6) == [many[0], few[0], many[1], few[1], many[2], many[3]]


def test_what_a_project_has_running_elsewhere_counts(simulated, clock):
    """Fair share is over all pools; a job that is being paused still holds its place."""
    busy = held(simulated, project="many", pool="other")
    with simulated.write() as session:
        jobs.order(session, jobs.find(session, busy.job), "pause", "user:key-1")
    clock.at += 1
    late = a_job(simulated, project="many")
    clock.at += 1
    later = a_job(simulated, project="few")
    assert order(simulated, 2) == [later, late]


def test_priority_stands_above_fairness(simulated, clock):
    first = a_job(simulated, project="many", priority=1)
    clock.at += 1
    second = a_job(simulated, project="many", priority=1)
    clock.at += 1
    third = a_job(simulated, project="few")
    assert order(simulated, 3) == [first, second, third]


def test_other_pools_are_left_alone(database):
    """A runner has one base loaded, and takes nothing else."""
    other = a_job(database, pool="other", priority=9)
    assert claim(database, a_runner(database)) is None
    mine = a_job(database)
    assert order(database, 2) == [mine]
    assert row(database, other).status == "queued"


def test_only_queued_jobs_are_claimed(database):
    runner = a_runner(database)
    a_job(database, validated=False)
    paused = a_job(database)
    with database.write() as session:
        jobs.order(session, jobs.find(session, paused), "pause", "user:key-1")
    assert claim(database, runner) is None
    with database.write() as session:
        jobs.order(session, jobs.find(session, paused), "resume", "user:key-1")
    assert order(database, 1) == [paused]


def test_a_runner_is_used_after_its_first_claim(database):
    """An out-of-memory on a used one is not the job's fault."""
    runner = a_runner(database)
    first = held(database, runner)
    first.done("succeeded")
    second = held(database, runner)
    with database.read() as session:
        assert [session.get_one(Attempt, (h.job, h.no)).used_runner for h in (first, second)] == [False, True]


def test_a_runner_holds_one_attempt(database):
    """It asks again where the answer to its claim was lost, by many requests at once too."""
    runner = a_runner(database)
    mine = held(database, runner)
    for _ in range(3):
        a_job(database)
    told = at_once([lambda: claim(database, runner)] * 6)
    assert {(c.job.id, c.no, c.token) for c in told if c is not None} == {(mine.job, mine.no, mine.token)}
    mine.done("succeeded")
    told = at_once([lambda: claim(database, runner)] * 6)
    assert len({(c.job.id, c.no) for c in told if c is not None}) == 1


def test_the_code_is_good_once_and_the_token_until_the_end(database):
    """Every user of the cluster sees the code in the Ray job's environment."""
    with database.write() as session:
        made = runners.start(session, "pool", "code", 1, 0)
    with database.write() as session:
        assert runners.register(session, made.id, "forged") is None
        assert runners.register(session, "run-none", made.bootstrap) is None

    def register() -> str | None:
        with database.write() as session:
            return runners.register(session, made.id, made.bootstrap)

    tokens = [t for t in at_once([register] * 6) if t is not None]
    assert len(tokens) == 1
    with database.write() as session:
        assert runners.seen(session, made.id, tokens[0]) is not None
        assert runners.seen(session, made.id, "forged") is None
        runners.drain(session, made.id)
        assert runners.seen(session, made.id, tokens[0]).status == "draining"
        assert runners.ended(session, made.id, "idle")
        assert not runners.ended(session, made.id, "again")
        assert runners.seen(session, made.id, tokens[0]) is None


def test_a_runner_that_ended_before_it_registered_never_does(database):
    """A Ray job that starts late must find its place taken."""
    with database.write() as session:
        made = runners.start(session, "pool", "code", 1, 0)
        runners.ended(session, made.id, "stopped while pending")
        assert runners.register(session, made.id, made.bootstrap) is None
        assert runners.running(session) == []


def test_who_is_busy(database):
    runner, idle = a_runner(database), a_runner(database, "other")
    mine = held(database, runner)
    with database.read() as session:
        assert runners.busy(session) == {runner.id: 1}
        assert [a.job_id for a in runners.live_attempts(session, runner.id)] == [mine.job]
        assert {r.id for r in runners.running(session)} == {runner.id, idle.id}
        assert [r.id for r in runners.running(session, "other")] == [idle.id]
    mine.done("succeeded")
    with database.read() as session:
        assert runners.busy(session) == {}
