"""Cancel, pause and resume over HTTP, for every status of a job and whatever its user wanted before: done, harmless, or
a 409 that says why, is not to be retried and leaves no trace."""

import pytest
from db_rows import placed
from db_watch import rows

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


@pytest.mark.parametrize("asked", ["cancel", "pause", "resume"])
@pytest.mark.parametrize(("status", "wanted"), PLACES)
def test_every_command_whatever_its_user_wanted_before(service, status, wanted, asked):
    expected = PLACES[status, wanted][("cancel", "pause", "resume").index(asked)]
    job = placed(service.database, status, wanted, f"{status}-{wanted}-{asked}")
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
    job = placed(service.database, "queued", pool=f"who-{asked}")
    service.client("write", "elsewhere").close()  # a project that is there already
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
