"""A job's history: no gap, no event before one with a lower number, nothing of what was rolled back."""

import contextlib
import threading

import pytest
from db_rows import a_job, at_once, held, row, step
from sqlalchemy import func, select

from db import events, jobs
from db.events import New
from db.models import Event, Metric, Outbox

pytest_plugins = ["databases"]

WRITERS, ROUNDS = 6, 8


def numbers(database, job: str) -> list[int]:
    with database.read() as session:
        return [e.seq for e in events.after(session, job, limit=10_000)]


def count(database, table) -> int:
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(table))


class Told(Exception):  # noqa: N818
    """Ends a transaction."""


def test_numbers_follow_commits_and_have_no_gap(database):
    """Writers of several events each, every third rolled back, and a reader who must never see a later event before
    an earlier one: that is what `Last-Event-ID` builds on."""
    job, finished, seen = a_job(database), threading.Event(), []

    def write(name: int) -> None:
        for n in range(ROUNDS):
            with contextlib.suppress(Told), database.write() as session:
                told = [New("note", {"of": name, "n": n, "part": part}) for part in range(1 + (name + n) % 3)]
                events.append(session, job, told, actor=f"runner:{name}")
                if n % 3 == 2:
                    session.flush()
                    raise Told

    def read() -> None:
        while not finished.is_set():
            with database.read() as session:
                seen.extend(e.seq for e in events.after(session, job, seen[-1] if seen else 0))

    reader = threading.Thread(target=read)
    reader.start()
    first = row(database, job).last_seq
    assert at_once([lambda name=name: write(name) for name in range(WRITERS)]) == [None] * WRITERS
    finished.set()
    reader.join()
    kept = sum(1 + (name + n) % 3 for name in range(WRITERS) for n in range(ROUNDS) if n % 3 != 2)
    assert numbers(database, job) == list(range(1, first + kept + 1))
    assert row(database, job).last_seq == first + kept
    assert seen == list(range(1, len(seen) + 1))
    with database.read() as session:
        notes = [e for e in events.after(session, job, limit=10_000) if e.type == "note"]
    assert all(e.data["n"] % 3 != 2 for e in notes)
    for name in range(WRITERS):  # each writer's own in its order
        mine = [(e.data["n"], e.data["part"]) for e in notes if e.data["of"] == name]
        assert mine == sorted(mine)


def test_a_transaction_that_fails_leaves_nothing(database):
    """Neither status nor event nor metric nor wake-up: they belong to one transaction."""
    mine = held(database)
    before = (row(database, mine.job).last_seq, count(database, Event), count(database, Outbox))
    with contextlib.suppress(Told), database.write() as session:
        jobs.order(session, jobs.find(session, mine.job), "cancel", "user:key-1")
        raise Told
    with contextlib.suppress(Told), mine.database.write() as session:
        from db import attempts

        attempts.done(session, mine.job, mine.no, mine.token, 1, [step(1)], "succeeded", None)
        raise Told
    assert (row(database, mine.job).last_seq, count(database, Event), count(database, Outbox)) == before
    assert count(database, Metric) == 0
    assert row(database, mine.job).wanted == "run"
    assert mine.beat(1, step(1)) == (1, "continue")


def test_pages_forward_and_back(database):
    job = a_job(database, validated=False)
    with database.write() as session:
        last = events.append(session, job, [New("note", {"n": n}) for n in range(2, 8)], actor="service")
    assert last == 7
    with database.read() as session:
        assert [e.seq for e in events.after(session, job, 2, limit=3)] == [3, 4, 5]
        assert [e.seq for e in events.newest(session, job, limit=2)] == [7, 6]
        assert [e.seq for e in events.newest(session, job, before=3)] == [2, 1]
        assert [e.data.get("n") for e in events.after(session, job, 1)] == [2, 3, 4, 5, 6, 7]


def test_a_read_sees_one_state_of_the_database(database):
    """A page of several queries must not be torn by what is committed between them."""
    job = a_job(database)
    with database.read() as reading:
        before = jobs.find(reading, job)
        assert before is not None
        with database.write() as session:
            jobs.move(session, job, "cancelled", actor="service")
        reading.expire_all()
        assert jobs.find(reading, job).status == "queued"
        assert [e.data.get("status") for e in events.after(reading, job)] == [None, "queued"]
    assert row(database, job).status == "cancelled"


@pytest.mark.parametrize("text", ["a\x00b", "صباح الخير", "line\nline\u2028", "\ud800"])
def test_any_text_of_a_failure_can_be_kept(database, text):
    """An exception's message is foreign text; what the database cannot hold must not keep an attempt from ending."""
    mine = held(database)
    mine.beat(1, {"kind": "error", "reason": "invalid_data", "message": text, "traceback": text})
    with database.write() as session:
        from db import attempts

        attempts.done(session, mine.job, mine.no, mine.token, 2, [], "failed", "invalid_data", text)
    found = row(database, mine.job)
    assert found.status == "finalizing"
    assert set(found.message) >= set(text) - {"\x00", "\ud800"}
