"""The same request twice is one, however many ask at the same time."""

import contextlib
import threading

import pytest
from db_rows import a_project, at_once
from sqlalchemy import func, select

from db import idempotency, jobs
from db.idempotency import KEPT_S, ReusedError
from db.models import Idempotency, Job

pytest_plugins = ["databases"]

BODY = {"name": "first", "steps": 10}


@pytest.fixture
def project(database) -> str:
    return a_project(database)


def submit(database, project: str, key: str | None, body=BODY, route: str = "POST /v1/jobs") -> tuple[dict, bool]:
    """What the API does with a submission."""
    with database.write() as session:

        def make() -> dict:
            return {"id": jobs.create(session, project, body, name="t", priority=0, retries=0, actor="user:key-1").id}

        return idempotency.once(session, project, route, key, body, make)


def submitted(database) -> list[str]:
    with database.read() as session:
        return list(session.scalars(select(Job.id)))


def test_64_submissions_with_one_key_are_one_job(database, project):
    results = at_once([lambda: submit(database, project, "k")] * 64)
    assert not [r for r in results if isinstance(r, Exception)], results
    assert [r[0]["id"] for r in results] == submitted(database) * 64
    assert sum(not repeated for _, repeated in results) == 1


def test_each_key_is_a_job_of_its_own(database, project):
    other = a_project(database, "other")
    asked = [(project, "a"), (project, "b"), (other, "a"), (project, None), (project, None)]
    made = [submit(database, owner, key) for owner, key in asked]
    made.append(submit(database, project, "a", route="POST /v1/studies"))
    assert not any(repeated for _, repeated in made)
    assert len(submitted(database)) == 6
    assert submit(database, project, "a") == (made[0][0], True)


def test_another_body_with_the_same_key_is_refused(database, project):
    """Also one that differs in a nested value only; the order of its fields is no difference."""
    submit(database, project, "k", {"name": "first", "data": {"a": 1, "b": 2}})
    with pytest.raises(ReusedError, match="'k'"):
        submit(database, project, "k", {"name": "first", "data": {"a": 1, "b": 3}})
    assert submit(database, project, "k", {"data": {"b": 2, "a": 1}, "name": "first"})[1]
    assert len(submitted(database)) == 1


def test_a_submission_that_fails_leaves_its_key_free(database, project):
    """The user mends what was wrong and sends it again."""

    def fail() -> dict:
        raise ValueError("no room")

    with pytest.raises(ValueError, match="no room"), database.write() as session:
        idempotency.once(session, project, "POST /v1/jobs", "k", BODY, fail)
    assert submit(database, project, "k", {"name": "mended"})[1] is False
    assert len(submitted(database)) == 1


def test_who_waits_for_one_that_fails_is_next(database, project):
    """The first holds the key, the second waits for it, the first fails: the second makes it."""
    holds, go, results = threading.Event(), threading.Event(), []

    def fail() -> dict:
        holds.set()
        go.wait(60)
        raise RuntimeError

    def first() -> None:
        with contextlib.suppress(RuntimeError), database.write() as session:
            idempotency.once(session, project, "POST /v1/jobs", "k", BODY, fail)

    def second() -> None:
        results.append(submit(database, project, "k"))

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert holds.wait(60)
    threads[1].start()
    go.set()
    for thread in threads:
        thread.join()
    assert [repeated for _, repeated in results] == [False]
    assert [made["id"] for made, _ in results] == submitted(database)


def test_keys_are_forgotten_after_a_week(simulated, clock):
    project = a_project(simulated)
    submit(simulated, project, "old")
    clock.at += KEPT_S
    submit(simulated, project, "new")
    clock.at += 1
    with simulated.write() as session:
        idempotency.sweep(session)
        assert session.scalar(select(func.count()).select_from(Idempotency)) == 1
    assert submit(simulated, project, "new")[1]
    assert not submit(simulated, project, "old")[1]
