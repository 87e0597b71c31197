"""What the service ends by itself, with a clock that the test moves."""

import pytest
from db_rows import a_runner, held, reclaimed, row, state, status, step

from db import attempts, jobs, runners
from db.attempts import GRACE_S, LEASE_S, LOADING_S, STALLED_S

pytest_plugins = ["databases"]


def late(database) -> list[tuple[str, str, str]]:
    """(job, to, reason) of what is overdue."""
    with database.read() as session:
        return [(o.job_id, o.to, o.reason) for o in attempts.overdue(session)]


def reconcile(database) -> None:
    """Ends what is overdue."""
    with database.read() as session:
        found = attempts.overdue(session)
    for o in found:
        with database.write() as session:
            assert attempts.end(session, o.job_id, o.no, o.to, o.reason, o.message)


def order(database, job: str, asked) -> None:
    with database.write() as session:
        jobs.order(session, jobs.find(session, job), asked, "user:key-1")


def wait(mine, clock, seconds: float, beat_s: float = LEASE_S - 1) -> None:
    """Time passes; the attempt beats on but does nothing."""
    end = clock.at + seconds
    while clock.at < end:
        clock.at = min(end, clock.at + beat_s)
        mine.beat()


def test_a_lease_runs_out(simulated, clock):
    mine = held(simulated)
    clock.at += LEASE_S
    assert late(simulated) == []
    clock.at += 1
    assert late(simulated) == [(mine.job, "lost", "lost_heartbeat")]
    reconcile(simulated)
    assert late(simulated) == []
    assert (status(simulated, mine.job), row(simulated, mine.job).faults) == ("queued", 1)


def test_beats_keep_a_lease(simulated, clock):
    mine = held(simulated)
    mine.beat(1, state("training", 0))
    for _ in range(6):
        clock.at += LEASE_S - 1
        assert late(simulated) == []
        mine.beat()


def test_a_long_evaluation_that_gets_on_is_no_stall(simulated, clock):
    """Every word on how far it is counts, and none of them fills the job's history."""
    mine = held(simulated)
    mine.beat(1, state("training", 9), state("evaluating"))
    told = row(simulated, mine.job).last_seq
    for n in range(1, 4):
        wait(mine, clock, LOADING_S - 60)
        mine.beat(2 + n, {"kind": "progress", "modality": "speech", "done": n, "of": 9, "at": clock.at})
    assert late(simulated) == []
    found = row(simulated, mine.job)
    assert (found.last_seq, found.summary["progress"]["done"]) == (told, 3)
    wait(mine, clock, LOADING_S + 1)
    assert late(simulated) == [(mine.job, "fenced", "stalled")]


def test_asked_to_cancel_it_has_a_minute(simulated, clock):
    mine = held(simulated)
    order(simulated, mine.job, "cancel")
    wait(mine, clock, GRACE_S)
    assert late(simulated) == []
    wait(mine, clock, 1)
    assert late(simulated) == [(mine.job, "fenced", "user")]
    reconcile(simulated)
    with simulated.write() as session:
        assert jobs.finish(session, mine.job)
    assert status(simulated, mine.job) == "cancelled"


def test_asked_to_pause_and_not_gone_the_job_is_paused_all_the_same(simulated, clock):
    """A runner that is slow to stop costs the steps since its last checkpoint, never the job."""
    runner = a_runner(simulated)
    mine = held(simulated, runner, retries=0)
    order(simulated, mine.job, "pause")
    wait(mine, clock, GRACE_S + 1)
    reconcile(simulated)
    paused = row(simulated, mine.job)
    assert (paused.status, paused.wanted_at, paused.faults) == ("paused", None, 0)
    order(simulated, mine.job, "resume")
    again = reclaimed(simulated, runner, mine.job)
    wait(again, clock, GRACE_S + 1)
    assert late(simulated) == []  # an earlier pause's minute is not this attempt's


def test_a_command_taken_back_is_no_reason(simulated, clock):
    mine = held(simulated)
    order(simulated, mine.job, "pause")
    wait(mine, clock, GRACE_S - 1)
    order(simulated, mine.job, "resume")
    wait(mine, clock, 30)
    assert late(simulated) == []


def test_asked_to_make_room_it_has_a_minute_and_its_job_is_queued_again_at_no_charge(simulated, clock):
    mine = held(simulated, retries=0)
    with simulated.write() as session:
        runners.drain(session, mine.runner)
    wait(mine, clock, GRACE_S - 10)
    with simulated.write() as session:
        runners.drain(session, mine.runner)  # a repetition is no new minute
    wait(mine, clock, 10)
    assert late(simulated) == []
    wait(mine, clock, 1)
    assert late(simulated) == [(mine.job, "fenced", "yielded")]
    reconcile(simulated)
    found = row(simulated, mine.job)
    assert (found.status, found.faults) == ("queued", 0)


def test_one_that_leaves_after_its_job_has_all_its_time(simulated, clock):
    mine = held(simulated)
    with simulated.write() as session:
        runners.retire(session, mine.runner)
    assert mine.beat()[1] == "continue"
    wait(mine, clock, 5 * GRACE_S)
    assert late(simulated) == []
    with simulated.write() as session:  # now it is urgent
        runners.drain(session, mine.runner)
    assert mine.beat()[1] == "checkpoint_and_exit"
    wait(mine, clock, GRACE_S + 1)
    assert late(simulated) == [(mine.job, "fenced", "yielded")]


@pytest.mark.parametrize(("seconds_of_a_step", "patience"), [(0.5, STALLED_S), (60.0, 1200.0)])
def test_training_without_steps_is_a_stall(simulated, clock, seconds_of_a_step, patience):
    """Slow steps are given more time: twenty of them."""
    mine = held(simulated)
    steps = [step(n, seconds=seconds_of_a_step) for n in (1, 2, 3)]
    mine.beat(1, state("loading"), state("training", 0), *steps)
    wait(mine, clock, patience)
    assert late(simulated) == []
    wait(mine, clock, 1)
    assert late(simulated) == [(mine.job, "fenced", "stalled")]
    mine.beat(6, step(4))
    assert late(simulated) == []


def test_loading_has_its_own_deadline(simulated, clock):
    mine = held(simulated)
    mine.beat(1, state("loading"))
    wait(mine, clock, LOADING_S)
    assert late(simulated) == []
    wait(mine, clock, 1)
    assert late(simulated) == [(mine.job, "fenced", "stalled")]


def test_evaluating_has_time(simulated, clock):
    """No steps are reported there."""
    mine = held(simulated)
    mine.beat(1, state("training", 0), step(1), state("evaluating"))
    wait(mine, clock, STALLED_S + 1)
    assert late(simulated) == []


def test_a_new_state_is_progress(simulated, clock):
    mine = held(simulated)
    wait(mine, clock, LOADING_S - 10)
    mine.beat(1, state("loading"))
    wait(mine, clock, LOADING_S - 10)
    mine.beat(2, state("training", 0))
    wait(mine, clock, STALLED_S - 10)
    assert late(simulated) == []


def test_an_ended_attempt_is_never_late(simulated, clock):
    held(simulated).done("succeeded")
    mine = held(simulated)
    mine.end()
    clock.at += 1e6
    assert late(simulated) == []


def test_the_database_has_a_clock_of_its_own(database):
    """Without a simulation leases count in the database's unix seconds."""
    import time

    before = time.time()
    mine = held(database)
    with database.read() as session:
        claimed = jobs.attempts(session, mine.job)[0]
    assert before - 1 < claimed.claimed_at < time.time() + 1
    assert claimed.lease_expires_at - claimed.claimed_at == pytest.approx(LEASE_S, abs=1)
    assert late(database) == []
