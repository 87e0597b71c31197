"""Which pools get runners, and who makes room."""

from copy import copy
from types import SimpleNamespace
from typing import Any

import hypothesis
import pytest
from db_rows import Held, a_job, a_runner, claim, held, status
from fake_ray import FakeRay
from hypothesis import given
from hypothesis import strategies as st
from slow_ray import LONGEST_S, SlowRay

from db import events, jobs, runners
from db.jobs import Waiting
from db.settings import Settings
from worker import scheduler
from worker.scheduler import AHEAD_S, Drain, Retire, Start, choose, scale

pytest_plugins = ["databases"]


@pytest.fixture
def ray() -> FakeRay:
    return FakeRay()


def settings(**changes: Any) -> Settings:
    given = {"database_url": "sqlite:///unused", "broker_url": "redis://nowhere", "store": "s3://bucket/place"}
    return Settings(**{**given, "data": "/a:/b", "cache": "/c", "max_runners": 2, **changes})


def running(database, pool: str | None = None) -> list[str]:
    with database.read() as session:
        return [runner.id for runner in runners.running(session, pool)]


def end(database, runner_id: str, reason: str) -> None:
    with database.write() as session:
        assert runners.ended(session, runner_id, reason)


def told(database, job: str, what: str = "runner.failed") -> list[dict]:
    with database.read() as session:
        return [event.data for event in events.after(session, job) if event.type == what]


# ---------------------------------------------------------------------------------- the choice, pure


def waiting(pool: str, jobs: int = 1, priority: int = 0, queued_at: float = 0.0) -> Waiting:
    return Waiting(pool, jobs, priority, queued_at, 0)


def runner(id_: str, pool: str, status: str = "alive", asked_at: float | None = None) -> Any:
    return SimpleNamespace(id=id_, pool=pool, status=status, asked_at=asked_at)


def chosen(queue, there, loads=(), *, most=2, held_back=()):
    """What is chosen, again and again: pools that get runners, runners that leave (-) or do so after their job (~)."""
    there, out = [copy(r) for r in there], []
    while (found := choose(queue, there, dict(loads), set(held_back), most)) is not None:
        match found:
            case Start(w):
                out.append(w.pool)
                there.append(runner(f"new-{len(out)}", w.pool, "starting"))
            case Drain(id_):
                out.append(f"-{id_}")
                leaver = next(r for r in there if r.id == id_)
                leaver.status, leaver.asked_at = "draining", 1.0
            case Retire(id_):
                out.append(f"~{id_}")
                next(r for r in there if r.id == id_).status = "draining"
    return out


class TestChoose:
    def test_a_pool_with_jobs_gets_runners_up_to_the_most(self):
        assert chosen([waiting("a", 5)], []) == ["a", "a"]
        assert chosen([waiting("a", 1)], []) == ["a"]
        assert chosen([waiting("a", 1)], [], most=0) == []

    def test_an_idle_or_starting_runner_is_enough_for_a_job(self):
        assert chosen([waiting("a", 1)], [runner("1", "a")]) == []
        assert chosen([waiting("a", 1)], [runner("1", "a", "starting")]) == []
        assert chosen([waiting("a", 2)], [runner("1", "a")]) == ["a"]

    def test_a_busy_or_leaving_one_is_not(self):
        assert chosen([waiting("a", 1)], [runner("1", "a")], {"1": 0}) == ["a"]
        assert chosen([waiting("a", 1)], [runner("1", "a", "draining")]) == ["a"]

    def test_pools_take_turns(self):
        queue = [waiting("a", 9, queued_at=1), waiting("b", 9, queued_at=2)]
        assert chosen(queue, [], most=4) == ["a", "b", "a", "b"]

    def test_the_urgent_come_first_then_those_who_wait_longest(self):
        queue = [waiting("a", queued_at=1), waiting("b", queued_at=3, priority=1), waiting("c", queued_at=2)]
        assert chosen(queue, [], most=3) == ["b", "a", "c"]

    def test_without_room_an_idle_runner_of_another_pool_leaves(self):
        there = [runner("1", "other"), runner("2", "busy")]
        assert chosen([waiting("a")], there, {"2": 5}) == ["-1"]

    def test_one_that_has_jobs_to_do_does_not(self):
        queue = [waiting("a"), waiting("b")]
        assert chosen(queue, [runner("1", "b")], most=1) == []

    def test_no_more_leave_than_are_in_the_way(self):
        there = [runner(str(n), "other") for n in range(4)]
        assert chosen([waiting("a")], there, most=4) == ["-0"]
        assert chosen([waiting("a", 3)], there, most=4) == ["-0", "-1", "-2"]

    def test_a_less_urgent_job_gives_way_the_least_urgent_first(self):
        there = [runner("1", "x"), runner("2", "y")]
        assert chosen([waiting("a", priority=5)], there, {"1": 2, "2": 1}) == ["-2"]

    def test_an_equally_urgent_one_does_not(self):
        assert chosen([waiting("a", priority=5)], [runner("1", "x")], {"1": 5}, most=1) == []

    def test_one_leaves_for_the_urgent_job_not_for_the_others_behind_it(self):
        queue, there = [waiting("a", 1, priority=5), waiting("b", 9)], [runner("1", "x"), runner("2", "x")]
        assert chosen(queue, there, {"1": 0, "2": 0}) == ["-1"]

    def test_for_a_longer_wait_elsewhere_a_runner_leaves_after_its_job(self):
        queue, there = [waiting("a", 3, queued_at=AHEAD_S + 1), waiting("b", queued_at=0)], [runner("1", "a")]
        assert chosen(queue, there, {"1": 0}, most=1) == ["~1"]
        assert chosen(queue, [runner("1", "a", "draining")], {"1": 0}, most=1) == []

    def test_jobs_that_came_about_as_early_go_first_where_their_base_is_warm(self):
        queue = [waiting("a", 3, queued_at=AHEAD_S), waiting("b", queued_at=0)]
        assert chosen(queue, [runner("1", "a")], {"1": 0}, most=1) == []

    def test_what_the_runner_would_take_next_counts_not_what_it_does(self):
        there = [runner("1", "a")]
        assert chosen([waiting("a", priority=0), waiting("b", priority=1)], there, {"1": 1}, most=1) == ["~1"]
        queue = [waiting("a", priority=2, queued_at=AHEAD_S + 1), waiting("b", priority=1)]
        assert chosen(queue, there, {"1": 2}, most=1) == []

    def test_a_runner_that_has_just_loaded_its_base_takes_a_job_first(self):
        queue = [waiting("a", 3, queued_at=AHEAD_S + 1), waiting("b", queued_at=0)]
        assert chosen(queue, [runner("1", "a")], most=1) == []

    def test_one_leaves_per_pool_without_any_of_those_who_have_most(self):
        queue = [waiting("a", 9, queued_at=AHEAD_S + 1), waiting("b", 9), waiting("c", 9, queued_at=AHEAD_S + 1)]
        there, loads = [runner("1", "c"), runner("2", "a"), runner("3", "a")], {"1": 0, "2": 0, "3": 0}
        assert chosen(queue, there, loads, most=3) == ["~2"]

    def test_an_urgent_job_does_not_wait_for_one_that_leaves_after_its_own(self):
        there = [runner("1", "a", "draining")]
        assert chosen([waiting("b", priority=1)], there, {"1": 0}, most=1) == ["-1"]

    def test_a_pool_that_is_held_back_gets_nothing(self):
        assert chosen([waiting("a"), waiting("b")], [], held_back=["a"]) == ["b"]

    def test_more_runners_than_allowed_make_room_first(self):
        there = [runner(str(n), "other") for n in range(3)]
        assert chosen([waiting("a")], there, most=1) == ["-0", "-1", "-2"]

    @hypothesis.settings(deadline=None)
    @given(st.data())
    def test_it_comes_to_an_end_and_never_beyond_the_most(self, data):
        pools, number = st.sampled_from("abc"), st.integers(0, 3)
        most = data.draw(number)
        queued_at = st.sampled_from([0.0, 10.0, 1000.0])
        names = sorted(data.draw(st.sets(pools)))
        queue = [waiting(p, data.draw(number) + 1, data.draw(number), data.draw(queued_at)) for p in names]
        states = st.sampled_from(["starting", "alive", "draining"])
        there = [runner(str(n), data.draw(pools), data.draw(states)) for n in range(data.draw(number))]
        for r in there:
            r.asked_at = data.draw(st.sampled_from([None, 1.0])) if r.status == "draining" else None
        loads = {r.id: data.draw(number) for r in there if r.status != "starting" and data.draw(st.booleans())}
        before = len(there)
        found = chosen(queue, there, loads, most=most)
        started = [step for step in found if not step.startswith("-")]
        assert len(found) <= 8
        assert before + len(started) <= max(before, most)


# ---------------------------------------------------------------------------------- with rows and Ray


def test_a_queued_job_gets_a_runner_that_knows_all_it_needs(database, ray):
    a_job(database, pool="p1")
    assert scale(database, settings(), ray) == 1
    (runner_id,) = running(database, "p1")
    sent = ray.submitted[runner_id]
    assert sent.entrypoint == "exec python -m trainer.runner"
    assert sent.metadata["pool"] == "p1"
    code = sent.env.pop("ATTUNE_BOOTSTRAP_CODE")
    assert sent.env == {
        "ATTUNE_RUNNER_ID": runner_id, "ATTUNE_API_URL": "http://127.0.0.1:8321", "ATTUNE_STORE": "s3://bucket/place",
        "ATTUNE_POOL": "p1", "ATTUNE_CODE": settings().code, "ATTUNE_DATA": "/a:/b",
        "ATTUNE_WORLD_SIZE": "1",
    }  # fmt: skip
    with database.write() as session:
        assert runners.register(session, runner_id, code) is not None


def test_scaling_again_changes_nothing(database, ray):
    a_job(database)
    assert [scale(database, settings(), ray) for _ in range(3)] == [1, 0, 0]
    assert len(ray.jobs) == 1


def test_nothing_queued_costs_nothing(database, ray):
    held(database)
    a_job(database, validated=False)
    assert scale(database, settings(), ray) == 0
    assert ray.calls == []


def test_an_idle_runner_is_asked_to_leave_for_another_pool(database, ray):
    idle = a_runner(database, "old")
    a_job(database, pool="new")
    assert scale(database, settings(max_runners=1), ray) == 0
    with database.read() as session:
        assert runners.running(session)[0].status == "draining"
    end(database, idle.id, runners.LEFT)
    assert scale(database, settings(max_runners=1), ray) == 1
    assert len(running(database, "new")) == 1


def test_an_urgent_job_takes_the_place_of_another(database, ray):
    mine = held(database, pool="old", priority=1)
    a_job(database, pool="new", priority=2)
    assert scale(database, settings(max_runners=1), ray) == 0
    assert mine.beat()[1] == "checkpoint_and_exit"


def test_steady_arrivals_for_a_warm_base_do_not_starve_another(simulated, clock, ray):
    """One runner. Every minute it ends a job, and another project sends one more for its base; nothing is cut off."""
    one = settings(max_runners=1)
    warm = a_runner(simulated, "warm")
    for _ in range(3):
        a_job(simulated, pool="warm", project="busy")
    other, minutes = a_job(simulated, pool="other"), 0
    while (mine := claim(simulated, warm)) is not None:
        scale(simulated, one, ray)
        attempt = Held(simulated, mine.job.id, mine.no, mine.token, warm.id)
        assert attempt.beat()[1] == "continue"
        clock.at, minutes = clock.at + 60, minutes + 1
        assert minutes < 60
        a_job(simulated, pool="warm", project="busy")
        scale(simulated, one, ray)
        attempt.done("succeeded")
    assert minutes > AHEAD_S / 60  # a load is worth some patience
    assert status(simulated, other) == "queued"
    end(simulated, warm.id, runners.LEFT)
    assert scale(simulated, one, ray) == 1
    assert len(running(simulated, "other")) == 1


def test_a_pools_turn_is_that_of_its_most_urgent_jobs(simulated, clock):
    """An old job that is never next does not speak for those which are."""
    a_job(simulated, pool="a")
    clock.at += 100
    a_job(simulated, pool="a", priority=1)
    clock.at += 100
    a_job(simulated, pool="a", priority=1)
    with simulated.read() as session:
        assert jobs.queue(session) == [Waiting("a", 3, 1, clock.at - 100, 0)]


def test_while_ray_is_away_nothing_is_started_and_the_jobs_are_told_once(simulated, clock, ray):
    job = a_job(simulated)
    ray.away = True
    for _ in range(12):
        assert scale(simulated, settings(), ray) == 0
        clock.at += 300
    assert running(simulated) == []
    assert len(told(simulated, job, "runner.delayed")) == 1
    ray.away = False
    assert scale(simulated, settings(), ray) == 1


def test_a_tick_is_over_in_time_though_ray_is_slow(database, monkeypatch):
    slow: Any = SlowRay()
    monkeypatch.setattr(scheduler, "time", slow)
    for n in range(9):
        a_job(database, pool=f"p{n}")
    started = scale(database, settings(max_runners=9), slow)
    assert 1 <= started < 9
    assert slow.at <= LONGEST_S


def test_a_lost_answer_of_ray_is_no_second_runner(database, ray):
    job = a_job(database)
    ray.lost_answers = True
    assert scale(database, settings(), ray) == 0
    assert scale(database, settings(), ray) == 0
    assert running(database) == list(ray.jobs)
    assert status(database, job) == "queued"


def test_ray_that_refuses_is_told_to_the_jobs_that_wait(database, ray):
    job = a_job(database)
    ray.refuses = "wrong token"
    assert [scale(database, settings(), ray) for _ in range(4)] == [0] * 4
    assert running(database) == []
    assert ray.calls == ["version", "submit"] * 3
    (said,) = told(database, job)
    assert said["failures"] == 3
    assert "3 runners in a row ended before they took a job" in said["message"]
    assert "wrong token" in said["message"]


def _fails(database, ray, reason: str = "failed: no such module") -> int:
    """A runner that is started and ends before it reports; how many were started."""
    started = scale(database, settings(max_runners=1), ray)
    for runner_id in running(database):
        end(database, runner_id, reason)
    return started


def test_failed_starts_are_repeated_less_and_less_often(simulated, clock, ray):
    job = a_job(simulated)
    for _ in range(3):
        assert _fails(simulated, ray) == 1
        clock.at += 1
    assert _fails(simulated, ray) == 0
    clock.at += 30
    assert _fails(simulated, ray) == 1
    clock.at += 59
    assert _fails(simulated, ray) == 0
    late = a_job(simulated)
    clock.at += 2
    assert _fails(simulated, ray) == 1
    for waits in (120, 240, 480, 960, 1800, 1800):
        clock.at += waits - 1
        assert _fails(simulated, ray) == 0
        clock.at += 1
        assert _fails(simulated, ray) == 1
    assert [said["failures"] for said in told(simulated, job)] == [3, 4, 5, 6, 7, 8, 9, 10]
    assert told(simulated, late)[0]["failures"] == 4
    assert status(simulated, job) == "queued"


def test_a_runner_that_worked_or_left_by_itself_clears_the_pool(simulated, clock, ray):
    job = a_job(simulated)
    for _ in range(2):
        _fails(simulated, ray)
        clock.at += 1
    worked = a_runner(simulated)
    assert claim(simulated, worked) is not None
    end(simulated, worked.id, "failed: out of memory")
    a_job(simulated)
    for reason in ("failed", "failed", runners.LEFT, "failed", "failed"):
        clock.at += 1
        assert _fails(simulated, ray, reason) == 1
    assert told(simulated, job) == []


def test_other_pools_go_on_while_one_is_held_back(simulated, clock, ray):
    a_job(simulated, pool="bad")
    for _ in range(3):
        _fails(simulated, ray)
        clock.at += 1
    a_job(simulated, pool="good")
    assert scale(simulated, settings(), ray) == 1
    assert running(simulated, "bad") == []
    assert len(running(simulated, "good")) == 1
