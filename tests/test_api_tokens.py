"""Who may speak for a runner or an attempt over HTTP: each token for one thing, while it lasts. Every other is refused,
and no row is another afterwards."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from api_server import Runner
from db_rows import a_job, state, step
from db_watch import rows

from db import attempts, runners

pytest_plugins = ["databases", "api_service"]

BEAT = {"first_seq": 1, "events": [state("loading"), state("training", 0), step(1)]}
DONE = {**BEAT, "outcome": "failed", "reason": "infrastructure"}


class Held(NamedTuple):
    """A runner and the attempt that it holds."""

    runner: Runner
    claim: dict[str, Any]


@pytest.fixture
def pool(request) -> str:
    return request.node.name[:60]


@pytest.fixture
def two(service, pool) -> Iterator[tuple[Held, Held]]:
    """Two runners of one pool at work."""
    found = []
    for _ in range(2):
        a_job(service.database, pool=pool)
        runner = service.runner(pool)
        found.append(Held(runner, runner.claim()))
    yield found[0], found[1]
    for one in found:
        one.runner.http.close()


def refused(service, runner: Runner, path: str, body: dict, token: str | None, status: int, code: str) -> None:
    """It is, as it should be, and without a trace."""
    before = rows(service.database)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    answer = runner.http.post(path, json=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), (path, token, answer.text)
    assert rows(service.database) == before


def not_mine(service, two) -> list[str]:
    """Good tokens of others, and none at all."""
    mine, other = two
    admin = service.http.headers["Authorization"].split()[1]
    known = [other.claim["token"], mine.runner.token, other.runner.token, mine.runner.bootstrap, admin]
    return [*known, "forged", mine.claim["token"] + "x", mine.claim["token"][:-1], mine.claim["token"].swapcase()]


@pytest.mark.parametrize("what", ["beat", "done"])
def test_an_attempt_is_spoken_for_by_its_own_token_alone(service, two, what):
    mine, other = two
    body = BEAT if what == "beat" else DONE
    path = f"/attempts/{mine.claim['job_id']}/{mine.claim['attempt']}/{what}"
    for token in not_mine(service, two):
        refused(service, mine.runner, path, body, token, 410, "fenced")
    refused(service, mine.runner, path, body, None, 401, "no_token")
    own = mine.claim["token"]
    its = mine.claim["job_id"]
    for job, no in ((other.claim["job_id"], 1), (its, 2), (its, 0), ("ftjob-none", 1)):
        refused(service, mine.runner, f"/attempts/{job}/{no}/{what}", body, own, 410, "fenced")
    assert mine.runner.tell(mine.claim, what, body).status_code == 200


@pytest.mark.parametrize("what", ["beat", "done"])
@pytest.mark.parametrize("end", ["lost", "fenced", "yielded"])
def test_a_token_is_good_until_its_attempt_ends(service, two, what, end):
    """Ended by the service, or by its runner in other words; also when the next attempt runs on the same job."""
    mine, _ = two
    job, no = mine.claim["job_id"], mine.claim["attempt"]
    if end == "yielded":
        assert mine.runner.tell(mine.claim, "done", {**BEAT, "outcome": "yielded"}).status_code == 200
    else:
        with service.database.write() as session:
            assert attempts.end(session, job, no, end, "stalled", "")
    body = BEAT if what == "beat" else DONE
    refused(service, mine.runner, f"/attempts/{job}/{no}/{what}", body, mine.claim["token"], 410, "fenced")
    again = mine.runner.claim()
    assert (again["job_id"], again["attempt"]) == (job, no + 1)
    for number in (no, no + 1):
        refused(service, mine.runner, f"/attempts/{job}/{number}/{what}", body, mine.claim["token"], 410, "fenced")
    refused(service, mine.runner, f"/attempts/{job}/{no}/{what}", body, again["token"], 410, "fenced")
    assert mine.runner.tell(again, what, body).status_code == 200


def test_a_claim_is_answered_to_the_runners_own_token_alone(service, two, pool):
    mine, other = two
    job = a_job(service.database, pool=pool)
    asked = {"protocol": 1, "pool": pool, "code": service.settings.code, "world_size": 1, "wait_s": 0}
    path = f"/runners/{mine.runner.id}/claim"
    for token in (other.runner.token, mine.claim["token"], mine.runner.bootstrap, "forged"):
        refused(service, mine.runner, path, asked, token, 410, "gone")
    refused(service, mine.runner, path, asked, None, 401, "no_token")
    refused(service, mine.runner, "/runners/run-none/claim", asked, mine.runner.token, 410, "gone")
    assert mine.runner.tell(mine.claim, "done", {**BEAT, "outcome": "succeeded"}).status_code == 200
    with service.database.write() as session:
        assert runners.ended(session, mine.runner.id, "test")
    refused(service, mine.runner, path, asked, mine.runner.token, 410, "gone")
    late = service.runner(pool)
    assert late.claim()["job_id"] == job


def test_a_runner_that_holds_an_attempt_is_told_of_it_again(service, two, pool):
    """The answer to its claim was lost on the way, and it asks again."""
    mine, _ = two
    job = a_job(service.database, pool=pool)
    answer = mine.runner.http.post(
        f"/runners/{mine.runner.id}/claim",
        json={"protocol": 1, "pool": pool, "code": service.settings.code, "world_size": 1, "wait_s": 0},
        headers={"Authorization": f"Bearer {mine.runner.token}"},
    )
    [again] = answer.json()["claims"]
    assert {key: again[key] for key in ("job_id", "attempt", "token")} == {
        key: mine.claim[key] for key in ("job_id", "attempt", "token")
    }
    assert rows(service.database).job[job].status == "queued"


def test_a_code_is_good_for_its_own_runner_once(service, two, pool):
    """Nor is any token a code: every user of the cluster sees the code of a runner that has reported."""
    mine, other = two
    with service.database.write() as session:
        fresh = runners.start(session, pool, service.settings.code, 1, 0)
        gone = runners.start(session, pool, service.settings.code, 1, 0)
        runners.ended(session, gone.id, "given up")
    codes = [mine.runner.bootstrap, mine.runner.token, mine.claim["token"], other.runner.bootstrap, "", "forged"]
    for code in codes:
        for runner_id in (mine.runner.id, fresh.id, "run-none"):
            refused(service, mine.runner, f"/runners/{runner_id}/register", {"code": code}, None, 401, "bad_code")
    refused(service, mine.runner, f"/runners/{gone.id}/register", {"code": gone.bootstrap}, None, 401, "bad_code")
    known = mine.runner.http.post(f"/runners/{fresh.id}/register", json={"code": fresh.bootstrap})
    assert known.status_code == 200
    refused(service, mine.runner, f"/runners/{fresh.id}/register", {"code": fresh.bootstrap}, None, 401, "bad_code")
