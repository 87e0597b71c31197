"""Cancel, pause and resume over HTTP, for every status of a job and whatever its user wanted before: done, harmless, or
a 409 that says why, is not to be retried and leaves no trace."""

import pytest
from db_rows import a_job, held, row
from db_watch import rows

from db import jobs

pytest_plugins = ["databases", "api_service"]

PLACES = {
    # (status, wanted): the status after (cancel, pause, resume), or what the refusal says
    ("validating", "run"): ("cancelled", "validating", "validating"),
    ("validating", "pause"): ("cancelled", "validating", "validating"),
    ("queued", "run"): ("cancelled", "paused", "queued"),
    ("running", "run"): ("running", "pausing", "running"),
    ("running", "cancel"): ("running", "pausing", "running"),
    ("pausing", "pause"): ("pausing", "pausing", "running"),
    ("pausing", "cancel"): ("pausing", "pausing", "running"),
    ("paused", "pause"): ("cancelled", "paused", "queued"),
    **{("finalizing", wanted): ("cancelled", 409, 409) for wanted in ("run", "pause", "cancel")},
    **{("succeeded", wanted): (409, 409, 409) for wanted in ("run", "pause", "cancel")},
    **{("failed", wanted): (409, 409, 409) for wanted in ("run", "pause")},
    ("cancelled", "cancel"): ("cancelled", 409, 409),
}


def refusal(status: str, asked: str) -> str:
    """The words of it."""
    if asked == "cancel":
        return f"the job has {status}; there is nothing to cancel"
    return f"the job is {status}; it cannot be {asked}d any more; submit it again"


def place(service, status: str, wanted: str, pool: str) -> str:
    """A job that came there by the ordinary way."""
    database = service.database

    def order(asked: str) -> None:
        with database.write() as session:
            found = jobs.find(session, job)
            assert found is not None
            jobs.order(session, found, asked, "user:1")  # type: ignore[arg-type]

    if status in ("validating", "queued", "paused", "cancelled"):
        job = a_job(database, pool=pool, validated=status != "validating")
        if wanted != "run":
            order(wanted)
    else:
        mine = held(database, pool=pool)
        job = mine.job
        if status == "pausing":
            order("pause")
        if wanted != "run":
            order(wanted)
        if status in ("finalizing", "succeeded", "failed"):
            mine.done("failed" if status == "failed" else "succeeded", "diverged" if status == "failed" else None)
        if status in ("succeeded", "failed"):
            with database.write() as session:
                assert jobs.finish(session, job)
    return job


@pytest.mark.parametrize("asked", ["cancel", "pause", "resume"])
@pytest.mark.parametrize(("status", "wanted"), PLACES)
def test_every_command_whatever_its_user_wanted_before(service, status, wanted, asked):
    expected = PLACES[status, wanted][("cancel", "pause", "resume").index(asked)]
    job = place(service, status, wanted, f"{status}-{wanted}-{asked}")
    there = row(service.database, job)
    assert (there.status, there.wanted) == (status, wanted)
    before = rows(service.database)
    answer = service.http.post(f"/v1/jobs/{job}/{asked}")
    if expected == 409:
        assert (answer.status_code, answer.headers["x-should-retry"]) == (409, "false")
        assert answer.json() == {"error": {"message": refusal(status, asked), "type": "invalid_request_error",
                                           "param": None, "code": "illegal_status"}}  # fmt: skip
        assert rows(service.database) == before
        return
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["status"], body["wanted"]) == (expected, "run" if asked == "resume" else asked)
    once = rows(service.database)
    assert "x-should-retry" not in answer.headers
    assert service.http.post(f"/v1/jobs/{job}/{asked}").json() == body
    assert rows(service.database) == once


@pytest.mark.parametrize("asked", ["cancel", "pause", "resume"])
def test_who_may_command(service, asked):
    """Nobody learns what others have, and a key to read is none to write."""
    job = place(service, "queued", "run", f"who-{asked}")
    before = rows(service.database)
    for scope, project, status, code in [
        ("write", "elsewhere", 404, "job_not_found"), ("read", "default", 403, "insufficient_scope"),
        (None, "default", 401, "invalid_api_key"),
    ]:  # fmt: skip
        with service.client(scope, project) as other:
            answer = other.post(f"/v1/jobs/{job}/{asked}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert service.http.post(f"/v1/jobs/ftjob-none/{asked}").status_code == 404
    assert rows(service.database) == before
