"""Heartbeats: whatever is repeated, overlaps, is lost or comes late, each event is taken once and in order."""

import random

import pytest
from db_rows import a_runner, at_once, claim, held, reclaimed, row, state, status, step
from sqlalchemy import select

from db import attempts, events, jobs, metrics, runners
from db.attempts import LEASE_S, FencedError, GapError
from db.models import Attempt, Metric, Outbox

pytest_plugins = ["databases"]


def the_attempt(mine) -> Attempt:
    with mine.database.read() as session:
        return session.get_one(Attempt, (mine.job, mine.no))


def steps_of(mine) -> list[int]:
    """Rows of the attempt, each once by their key."""
    with mine.database.read() as session:
        chosen = select(Metric.step).where(Metric.job_id == mine.job, Metric.attempt_no == mine.no)
        return list(session.scalars(chosen.order_by(Metric.step)))


def notes_of(mine) -> list[int]:
    with mine.database.read() as session:
        told = events.after(session, mine.job, limit=10_000)
        return [e.data["n"] for e in told if e.type == "note" and e.attempt_no == mine.no]


def trained(steps: int, start: int = 0) -> list[dict]:
    """What a trainer says in so many steps: its states, a note after every third step."""
    said = [state("loading"), state("training", step=start)]
    for n in range(start + 1, start + steps + 1):
        said.append(step(n))
        if n % 3 == 0:
            said.append({"kind": "note", "level": "info", "message": "…", "n": n})
    return said


@pytest.mark.parametrize("seed", range(4))
def test_batches_in_any_order_lose_and_double_nothing(database, seed):
    """Windows of the stream at random places: one that leaves a gap is refused whole, one that overlaps is cut."""
    chance, said, mine = random.Random(seed), trained(30), held(database)
    acked = 0
    for _ in range(40):
        first = chance.randint(max(1, acked - 8), min(acked + 4, len(said)))
        sent = said[first - 1 : first - 1 + chance.randint(0, 8)]
        if first > acked + 1:
            with pytest.raises(GapError) as gap:
                mine.beat(first, *sent)
            assert gap.value.acked == acked
        else:
            acked = max(acked, first - 1 + len(sent))
            assert mine.beat(first, *sent) == (acked, "continue")
        assert steps_of(mine) == [e["step"] for e in said[:acked] if e["kind"] == "step"]
    assert mine.done("succeeded", None, *said[acked // 2 :], first_seq=acked // 2 + 1) == len(said)
    assert steps_of(mine) == list(range(1, 31))
    assert notes_of(mine) == list(range(3, 31, 3))


def test_the_same_batch_at_once_counts_once(database):
    """A client that retries while its first request still runs."""
    mine, said = held(database), trained(6)
    assert at_once([lambda: mine.beat(1, *said)] * 6) == [(len(said), "continue")] * 6
    assert steps_of(mine) == [1, 2, 3, 4, 5, 6]
    assert notes_of(mine) == [3, 6]


def test_a_refused_batch_leaves_nothing(database):
    mine = held(database)
    lease = the_attempt(mine).lease_expires_at
    with pytest.raises(GapError, match="send from 1"):
        mine.beat(2, *trained(3))
    assert steps_of(mine) == []
    assert the_attempt(mine).lease_expires_at == lease


def test_a_beat_renews_the_lease_and_says_the_runner_is_there(simulated, clock):
    mine = held(simulated)
    clock.at += 50
    mine.beat()
    assert the_attempt(mine).lease_expires_at == clock.at + LEASE_S
    with simulated.read() as session:
        assert runners.running(session)[0].last_seen == clock.at


def test_what_lists_show_of_a_running_job(database):
    mine = held(database)
    mine.beat(1, *trained(2), step(3, stage="second", loss=0.25))
    shown = row(database, mine.job).summary
    assert {k: shown[k] for k in ("state", "step", "steps", "stage", "loss")} == {
        "state": "training", "step": 3, "steps": 1000, "stage": "second", "loss": 0.25
    }  # fmt: skip
    assert shown["tags"] == {}
    told = the_attempt(mine)
    assert (told.status, told.step, told.start_step, told.step_seconds) == ("training", 3, 0, 0.5)


# ---- who may


def test_wrong_late_and_forged_tokens_are_refused(database):
    """And change nothing: neither a lease nor a row."""
    runner = a_runner(database)
    old = held(database, runner)
    other = held(database)
    assert old.end("lost")
    new = reclaimed(database, runner, old.job)
    before = (row(database, old.job).last_seq, the_attempt(new).lease_expires_at)
    for late in (old, new._replace(token=other.token), new._replace(token=old.token), new._replace(token="forged"),
                 new._replace(no=3), new._replace(job=other.job), new._replace(token=runner.token)):  # fmt: skip
        with pytest.raises(FencedError):
            late.beat(1, *trained(3))
        with pytest.raises(FencedError):
            late.done("succeeded", None, *trained(3))
    assert (row(database, old.job).last_seq, the_attempt(new).lease_expires_at) == before
    assert steps_of(old) == steps_of(new) == steps_of(other) == []
    assert new.beat(1, *trained(1)) == (3, "continue")


def test_a_lease_that_ran_out_is_the_runners_until_the_service_ends_it(simulated, clock):
    """While the API was down nobody could renew; whoever is back first goes on."""
    mine = held(simulated)
    clock.at += 10 * LEASE_S
    assert mine.beat(1, *trained(1)) == (3, "continue")
    assert the_attempt(mine).lease_expires_at == clock.at + LEASE_S


def test_only_the_hash_of_a_token_is_kept(database):
    mine = held(database)
    assert the_attempt(mine).token_sha256 == attempts.digest(mine.token) != mine.token


def test_one_end_wins(database):
    """The service gives an attempt up just when it comes to its end: either counts, whole."""
    mine = held(database)
    results = at_once([lambda: mine.done("succeeded", None, *trained(2)), lambda: mine.end("lost")])
    ended = the_attempt(mine)
    if ended.status == "succeeded":
        assert results == [4, False]
        assert status(database, mine.job) == "finalizing"
        assert steps_of(mine) == [1, 2]
    else:
        assert isinstance(results[0], FencedError)
        assert results[1] is True
        assert status(database, mine.job) == "queued"
        assert steps_of(mine) == []


# ---- what it is told


def test_an_attempt_is_told_what_its_user_wants(database):
    mine = held(database)
    for asked, action in (("pause", "checkpoint_and_exit"), ("resume", "continue"), ("cancel", "abort")):
        with database.write() as session:
            jobs.order(session, jobs.find(session, mine.job), asked, "user:key-1")
        assert mine.beat() == (0, action)


@pytest.mark.parametrize("how", [runners.drain, lambda session, run: runners.ended(session, run, "gone")])
def test_an_attempt_of_a_leaving_runner_is_told_to_make_room(database, how):
    mine = held(database)
    with database.write() as session:
        how(session, mine.runner)
    assert mine.beat() == (0, "checkpoint_and_exit")
    mine.done("yielded", "yielded")
    assert status(database, mine.job) == "queued"
    with database.write() as session:
        jobs.order(session, jobs.find(session, mine.job), "cancel", "user:key-1")


# ---- the end


def test_done_twice_is_done_once(database):
    """The answer to the first was lost on the way."""
    mine, said = held(database), trained(4)
    assert mine.done("succeeded", None, *said) == len(said)
    before = row(database, mine.job).last_seq
    assert mine.done("succeeded", None, *said) == len(said)
    assert row(database, mine.job).last_seq == before
    with pytest.raises(FencedError):
        mine.done("failed", "user", *said)
    with pytest.raises(FencedError):
        mine.done("succeeded", None, *said, token="forged")
    with pytest.raises(FencedError):
        mine.beat(1, *said)


def test_done_still_counts_after_the_job_went_on(database):
    """The repetition may come when another attempt runs already; that one is not touched."""
    runner = a_runner(database)
    mine = held(database, runner)
    mine.done("yielded", "yielded", *trained(2))
    new = reclaimed(database, runner, mine.job)
    assert mine.done("yielded", "yielded", *trained(2)) == 4
    assert status(database, mine.job) == "running"
    assert new.beat() == (0, "continue")


def test_the_end_wakes_who_goes_on(database):
    """Losing a wake-up costs time only, but none must be forgotten."""

    def topics() -> list[tuple[str, str]]:
        with database.read() as session:
            found = select(Outbox).where(Outbox.topic != "record").order_by(Outbox.id)
            return [(w.topic, w.key) for w in session.scalars(found)]

    runner = a_runner(database)
    mine = held(database, runner)
    assert topics() == [("validate", mine.job), ("scale", "pool")]
    mine.done("yielded", "yielded")
    assert topics()[2:] == [("scale", "pool")]
    reclaimed(database, runner, mine.job).done("failed", "diverged")
    assert topics()[3:] == [("finalize", mine.job)]


@pytest.mark.parametrize(("retries", "tries"), [(0, 1), (2, 3)])
def test_faults_are_repeated_as_often_as_asked(database, retries, tries):
    runner = a_runner(database)
    mine = held(database, runner, retries=retries)
    for no in range(1, tries + 1):
        assert mine.no == no
        assert mine.end("lost", "lost_heartbeat")
        assert row(database, mine.job).faults == no
        if no < tries:
            mine = reclaimed(database, runner, mine.job)
    assert status(database, mine.job) == "finalizing"
    assert claim(database, runner) is None
    with database.write() as session:
        assert jobs.finish(session, mine.job)
        assert not jobs.finish(session, mine.job)
    ended = row(database, mine.job)
    assert (ended.status, ended.reason, ended.attempts) == ("failed", "lost_heartbeat", tries)


def test_out_of_memory_on_a_used_runner_is_tried_again_elsewhere(database):
    """Once: what a fresh runner says is the job's own fault, and no retry is charged for the first."""
    used = a_runner(database)
    held(database, used).done("succeeded")
    mine = held(database, used, retries=0)
    mine.done("failed", "out_of_memory")
    assert (status(database, mine.job), row(database, mine.job).faults) == ("queued", 0)
    reclaimed(database, a_runner(database), mine.job).done("failed", "out_of_memory")
    assert status(database, mine.job) == "finalizing"


# ---- checkpoints


def test_checkpoints_of_all_attempts_furthest_first(database):
    runner = a_runner(database)
    old = held(database, runner)
    save = [{"kind": "checkpoint", "step": n, "prefix": f"attempts/1/checkpoints/{n}"} for n in (10, 20)]
    old.beat(1, *save)
    old.beat(1, *save)
    old.end()
    new = reclaimed(database, runner, old.job)
    new.beat(1, state("training", 10), {"kind": "checkpoint", "step": 20, "prefix": "attempts/2/checkpoints/20"})
    with database.read() as session:
        assert [(c.attempt_no, c.step, c.prefix) for c in metrics.checkpoints(session, old.job)] == [
            (2, 20, "attempts/2/checkpoints/20"),
            (1, 20, "attempts/1/checkpoints/20"),
            (1, 10, "attempts/1/checkpoints/10"),
        ]
