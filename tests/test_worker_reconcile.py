"""What was lost is found again: attempts, runners, Ray jobs, wake-ups; and what nobody needs is forgotten."""

import threading

import pytest
from api_server import until
from db_rows import a_job, a_runner, held, row, state, status
from fake_ray import FakeRay
from slow_ray import LONGEST_S, SlowRay
from sqlalchemy import func, select, text

from db import attempts, jobs, leases, outbox, runners
from db.attempts import GRACE_S, LEASE_S, STALLED_S, FencedError
from db.models import Lease, Outbox, Runner
from db.settings import Settings
from worker import reconcile as reconciler
from worker.collect import RECORD_S, collect
from worker.reconcile import SILENT_S, START_S, SUBMIT_S, WAKE_S, WATCH_S, end_overdue, reconcile
from worker.scheduler import scale

pytest_plugins = ["databases"]


@pytest.fixture
def ray() -> FakeRay:
    return FakeRay()


@pytest.fixture
def service(simulated, clock, ray) -> "Service":
    return Service(simulated, clock, ray)


class Service:
    """A reconciler and an API that is there unless told otherwise, in simulated time."""

    def __init__(self, database, clock, ray: FakeRay):
        self.database, self.clock, self.ray = database, clock, ray

    def passes(self, seconds: float, *, api: bool = True, rounds: bool = True, beats=()) -> None:
        """Time, in which the API renews its lease, the reconciler does its rounds, and runners send heartbeats."""
        end = self.clock.at + seconds
        while self.clock.at < end:
            self.clock.at = min(end, self.clock.at + 5)
            if api:
                with self.database.write() as session:
                    leases.take(session, leases.API_ALIVE, "api", 15)
                for attempt in beats:
                    attempt.beat()
            if rounds:
                reconcile(self.database, self.ray)  # type: ignore[arg-type]

    def settled(self) -> "Service":
        """After the first minute, in which nobody is judged."""
        self.passes(LEASE_S + 10)
        return self

    def started(self, pool: str = "pool") -> str:
        """A runner that Ray has, pending; its job waits in the queue."""
        a_job(self.database, pool=pool)
        settings = Settings(database_url="sqlite:///unused", broker_url="redis://nowhere", store="/s", max_runners=9)
        assert scale(self.database, settings, self.ray) == 1  # type: ignore[arg-type]
        return list(self.ray.jobs)[-1]

    def registered(self, pool: str = "pool") -> str:
        """A runner that Ray runs and that has reported."""
        runner_id = self.started(pool)
        self.ray.run(runner_id)
        with self.database.write() as session:
            code = self.ray.submitted[runner_id].env["ATTUNE_BOOTSTRAP_CODE"]
            assert runners.register(session, runner_id, code) is not None
        return runner_id

    def runner(self, runner_id: str) -> Runner:
        with self.database.read() as session:
            return session.get_one(Runner, runner_id)


def held_on_ray(service: Service, **job):
    """A claimed attempt whose runner is a running Ray job."""
    mine = held(service.database, **job)
    service.ray.submit(mine.runner, "", env={})
    service.ray.run(mine.runner)
    return mine


def wakes(database, topic: str) -> list[str]:
    """Keys of the wake-ups that wait, now sent."""
    sent = []
    outbox.relay(database, sent.append)
    return [wake.key for wake in sent if wake.topic == topic]


def waits_for_a_lock(database) -> bool:
    """Whether a transaction on this Postgres waits for another."""
    with database.read() as session:
        return session.scalar(text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")) > 0


# ---------------------------------------------------------------------------------- attempts


def test_a_lost_attempt_is_repeated_and_its_runner_stopped(service):
    mine = held_on_ray(service.settled())
    service.passes(LEASE_S)
    assert status(service.database, mine.job) == "running"
    service.passes(10)
    assert status(service.database, mine.job) == "queued"
    assert row(service.database, mine.job).faults == 1
    assert service.runner(mine.runner).status == "ended"
    assert service.ray.jobs[mine.runner].status == "STOPPED"
    with pytest.raises(FencedError):
        mine.beat()


def test_a_beating_attempt_is_left_alone(service):
    mine = held_on_ray(service.settled())
    service.passes(5 * LEASE_S, beats=[mine])
    assert status(service.database, mine.job) == "running"
    assert service.ray.jobs[mine.runner].status == "RUNNING"


def test_one_that_does_not_stop_when_asked_is_fenced_after_the_grace(service):
    mine = held_on_ray(service.settled())
    with service.database.write() as session:
        jobs.order(session, jobs.find(session, mine.job), "cancel", "user:key-1")  # type: ignore[arg-type]
    service.passes(GRACE_S - 5, beats=[mine])
    assert status(service.database, mine.job) == "running"
    for _ in range(3):
        service.passes(5)
    assert status(service.database, mine.job) == "finalizing"
    assert service.ray.jobs[mine.runner].status == "STOPPED"


def test_a_claim_that_comes_as_its_runner_is_given_up_is_lost_with_it(service):
    """Whichever is first: no runner that has ended holds an attempt."""
    runner = a_runner(service.database)
    service.ray.submit(runner.id, "", env={})
    service.ray.end(runner.id, "FAILED")
    a_job(service.database)
    with service.database.write() as session:
        claimed = attempts.claim(session, runners.seen(session, runner.id, runner.token), runner.token)
        assert claimed is not None
        giving_up = threading.Thread(target=reconcile, args=(service.database, service.ray))
        giving_up.start()
        if not service.database.sqlite:  # there it waits for the claim before it begins
            until(lambda: waits_for_a_lock(service.database))
    giving_up.join()
    assert service.runner(runner.id).status == "ended"
    assert status(service.database, claimed.job.id) == "queued"


def test_a_heartbeat_that_comes_as_its_runner_is_given_up_is_refused(service):
    """And neither waits for the other for ever: both lock the runner first."""
    mine, heard = held(service.database), []

    def beat() -> None:
        try:
            heard.append(mine.beat())
        except Exception as error:
            heard.append(error)

    beating = threading.Thread(target=beat)
    with service.database.write() as session:  # as `end_runners` does
        assert runners.ended(session, mine.runner, "test")
        beating.start()
        if not service.database.sqlite:
            until(lambda: waits_for_a_lock(service.database))
        assert attempts.end(session, mine.job, mine.no, "lost", "infrastructure", "test")
    beating.join()
    assert [type(answer) for answer in heard] == [FencedError]
    assert status(service.database, mine.job) == "queued"


def test_a_word_that_comes_as_its_attempt_is_judged_saves_it(service):
    """Here the runner's claim, told again: it has the runner's row before the reconciler, which looks again."""
    runner = a_runner(service.database)
    mine, ended = held(service.database, runner), []
    service.clock.at += LEASE_S + 1
    judging = threading.Thread(target=lambda: ended.append(end_overdue(service.database)))
    with service.database.write() as session:
        row = runners.seen(session, runner.id, runner.token)
        judging.start()
        if not service.database.sqlite:
            until(lambda: waits_for_a_lock(service.database))
        assert attempts.held(session, row, runner.token) is not None  # type: ignore[arg-type]
    judging.join()
    assert (ended, status(service.database, mine.job)) == ([0], "running")


# ---------------------------------------------------------------------------------- the API away


def test_no_lease_runs_out_while_the_api_is_away_nor_for_a_lease_after(service):
    mine = held_on_ray(service.settled())
    service.passes(5 * LEASE_S, api=False)
    assert status(service.database, mine.job) == "running"
    service.passes(LEASE_S - 5)
    assert status(service.database, mine.job) == "running"
    mine.beat()
    service.passes(LEASE_S - 5)
    assert status(service.database, mine.job) == "running"


def test_who_does_not_come_back_with_the_api_is_lost_a_lease_later(service):
    mine = held_on_ray(service.settled())
    service.passes(5 * LEASE_S, api=False)
    service.passes(LEASE_S + 10)
    assert status(service.database, mine.job) == "queued"


def test_nobody_is_judged_after_nobody_looked(service):
    """API, worker and database were down together; runners trained on."""
    mine = held_on_ray(service.settled())
    service.passes(5 * LEASE_S, api=False, rounds=False)
    service.passes(LEASE_S - 5)
    assert status(service.database, mine.job) == "running"


def test_a_short_absence_of_the_reconciler_alone_pardons_nobody(service):
    mine = held_on_ray(service.settled())
    service.passes(LEASE_S - 5)
    service.passes(WATCH_S - 10, rounds=False)
    service.passes(5)
    assert status(service.database, mine.job) == "queued"


def test_neither_stalls_nor_orders_count_while_the_api_is_away(service):
    """What the runner did meanwhile, and what it was asked, is only heard of with its next heartbeat."""
    mine = held_on_ray(service.settled())
    mine.beat(1, state("training", 0))
    with service.database.write() as session:
        jobs.order(session, jobs.find(session, mine.job), "pause", "user:key-1")  # type: ignore[arg-type]
    service.passes(STALLED_S + GRACE_S, api=False)
    service.passes(30)
    assert status(service.database, mine.job) == "pausing"


# ---------------------------------------------------------------------------------- runners


def test_an_ended_ray_job_ends_its_runner_and_loses_its_attempt_at_once(service):
    mine = held_on_ray(service)
    service.ray.end(mine.runner, "FAILED", "x" * 1000 + "killed by the kernel")
    service.passes(5, api=False)
    assert status(service.database, mine.job) == "queued"
    ended = service.runner(mine.runner)
    assert ended.status == "ended"
    assert (ended.reason or "").endswith("killed by the kernel")
    assert len(ended.reason or "") < 600


def test_a_runner_that_left_by_itself_is_noted_as_such(service):
    runner_id = service.registered()
    service.ray.end(runner_id)
    service.passes(5)
    assert service.runner(runner_id).reason == runners.LEFT


def test_a_runner_that_ray_no_longer_knows_is_lost_once_it_is_silent(service):
    mine = held_on_ray(service.settled())
    del service.ray.jobs[mine.runner]
    service.passes(2 * LEASE_S, beats=[mine])  # it lives, whatever Ray says
    assert status(service.database, mine.job) == "running"
    service.passes(LEASE_S + 10)
    assert status(service.database, mine.job) == "queued"
    assert service.runner(mine.runner).status == "ended"


def test_a_submission_that_never_reached_ray_is_given_up_after_a_minute(service):
    runner_id = service.started()
    del service.ray.jobs[runner_id]
    service.passes(SUBMIT_S)
    assert service.runner(runner_id).status == "starting"
    service.passes(10)
    assert service.runner(runner_id).reason == runners.NEVER_SENT


def test_a_submission_whose_answer_was_lost_is_a_runner_like_any_other(service):
    service.ray.lost_answers = True
    a_job(service.database)
    settings = Settings(database_url="sqlite:///unused", broker_url="redis://nowhere", store="/s")
    scale(service.database, settings, service.ray)
    service.ray.lost_answers = False
    (runner_id,) = service.ray.jobs
    service.passes(2 * SUBMIT_S)
    assert service.runner(runner_id).status == "starting"


def test_a_pending_runner_is_given_up_and_stopped_for_good_when_it_starts(service):
    runner_id = service.started()
    service.passes(START_S)
    assert service.runner(runner_id).status == "starting"
    service.passes(10)
    assert service.runner(runner_id).reason == f"Ray did not start it within {START_S:.0f} s"
    assert service.ray.jobs[runner_id].status == "PENDING"
    service.ray.run(runner_id)
    assert service.ray.jobs[runner_id].status == "STOPPED"


def test_a_runner_that_runs_but_does_not_report_is_stopped(service):
    runner_id = service.started()
    service.ray.run(runner_id)
    service.passes(START_S + 10)
    assert service.ray.jobs[runner_id].status == "STOPPED"


def test_a_silent_runner_without_work_is_stopped(service):
    runner_id = service.settled().registered()
    service.passes(SILENT_S)
    assert service.runner(runner_id).status == "alive"
    service.passes(10)
    assert service.ray.jobs[runner_id].status == "STOPPED"


def test_jobs_on_ray_that_are_not_in_the_database_are_somebody_elses(service):
    service.started()
    service.ray.submit("run-of-another-service", "", env={})
    service.ray.run("run-of-another-service")
    service.passes(100)
    assert service.ray.jobs["run-of-another-service"].status == "RUNNING"


def test_a_stop_that_ray_did_not_hear_is_repeated(service):
    runner_id = service.registered()
    service.ray.away = True
    with service.database.write() as session:
        runners.ended(session, runner_id, "test")
    service.passes(20)
    service.ray.away = False
    service.passes(5)
    assert service.ray.jobs[runner_id].status == "STOPPED"


def test_a_round_is_over_in_time_though_ray_is_slow(simulated, monkeypatch):
    slow = SlowRay()
    for _ in range(9):
        runner = a_runner(simulated)
        slow.submit(runner.id, "", env={})
        slow.run(runner.id)
        with simulated.write() as session:
            runners.ended(session, runner.id, "test")
    monkeypatch.setattr(reconciler, "time", slow)
    slow.at, slow.calls = 0.0, []
    reconcile(simulated, slow)  # type: ignore[arg-type]
    assert 1 <= slow.calls.count("stop") < 9
    assert slow.at <= LONGEST_S


def test_without_ray_the_rest_goes_on(service):
    mine = held_on_ray(service.settled())
    service.ray.away = True
    service.passes(LEASE_S + 10)
    assert status(service.database, mine.job) == "queued"


def test_without_runners_ray_is_not_asked(service):
    service.passes(100)
    assert service.ray.calls == []


def test_rounds_take_turns(service):
    a_runner(service.database)
    with service.database.write() as session:
        leases.take(session, "reconcile", "another worker", 1000)
    service.passes(100)
    assert service.ray.calls == []


def test_a_worker_is_seen_by_its_rounds(service):
    service.passes(5)
    with service.database.read() as session:
        assert leases.held(session, leases.WORKER_ALIVE)
    service.passes(100, rounds=False)
    with service.database.read() as session:
        assert not leases.held(session, leases.WORKER_ALIVE)


# ---------------------------------------------------------------------------------- wake-ups


def test_a_lost_wake_up_of_a_validation_is_repeated(service):
    first = a_job(service.database, validated=False)
    a_job(service.database, validated=False)
    assert first in wakes(service.database, "validate")  # and then its message is lost
    service.passes(WAKE_S - 5)
    assert wakes(service.database, "validate") == []
    service.passes(10)
    assert wakes(service.database, "validate") == [first]


def test_a_lost_wake_up_of_a_finalization_is_repeated(service):
    mine = held(service.database)
    mine.done("failed", "invalid_data")
    assert wakes(service.database, "finalize") == [mine.job]
    service.passes(3 * WAKE_S + 5)
    assert wakes(service.database, "finalize") == [mine.job] * 3


# ---------------------------------------------------------------------------------- garbage


def test_what_nobody_needs_is_forgotten(service):
    runner_id, other = service.registered(), service.registered("other")
    service.ray.end(runner_id)
    service.passes(5)
    outbox.relay(service.database, lambda wake: None)
    with service.database.write() as session:
        for name in ("validate:ftjob-1", "scale"):
            leases.take(session, name, "worker", 10)
    assert collect(service.database, service.ray) == 0
    service.clock.at += RECORD_S + 60
    assert collect(service.database, service.ray) == 1
    assert list(service.ray.jobs) == [other]
    with service.database.read() as session:
        assert session.scalar(select(func.count()).where(Outbox.topic != "record")) == 0
        names = set(session.scalars(select(Lease.name)))
    assert "scale" in names
    assert "validate:ftjob-1" not in names
    assert service.runner(runner_id).status == "ended"
