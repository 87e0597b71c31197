"""The runner protocol as the API speaks it: who may, in which order, and what a repeated or forged call does."""

import json
import socket
import threading
from urllib.parse import urlsplit

import pytest
from api_server import Runner, Service, a_job, posted, until

from db import jobs, runners
from db.models import Job

pytest_plugins = ["databases", "api_service"]

SPEC = a_job()


@pytest.fixture
def job(service: Service):
    """(id, pool) of the only queued job."""
    with service.database.read() as session:
        left = [row.id for row in jobs.page(session, service.project, status=["queued"], limit=100)[0]]
    for earlier in left:
        posted(service.http, f"/v1/jobs/{earlier}/cancel", None)
    made = service.queued(SPEC)
    with service.database.read() as session:
        pool = jobs.find(session, made).pool  # type: ignore[union-attr]
    return made, pool


def test_a_code_is_exchanged_once(service, job):
    runner = service.runner(job[1])
    for code in (runner.bootstrap, "wrong", ""):
        answer = runner.http.post(f"/runners/{runner.id}/register", json={"code": code})
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "bad_code")
    assert runner.ask().status_code == 200


def test_of_many_registrations_at_once_one_gets_the_token(service, job):
    with service.database.write() as session:
        started = runners.start(session, job[1], service.settings.code, 1, 0)
    codes = []

    def register() -> None:
        with service.client(None) as http:
            answer = http.post(f"/internal/v1/runners/{started.id}/register", json={"code": started.bootstrap})
            codes.append(answer.status_code)

    threads = [threading.Thread(target=register) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [200] + [401] * 7


def test_a_claim_tells_all_that_a_runner_needs(service, job):
    claim = service.runner(job[1]).claim()
    assert claim["job_id"] == job[0]
    told = {"attempt": 1, "kind": "train", "lease_s": 60.0, "inputs": {}, "next_seq": 1}
    assert {key: claim[key] for key in told} == told
    assert claim["prefix"] == f"projects/{service.project}/jobs/{job[0]}"
    whole = service.http.get(f"/v1/jobs/{job[0]}").json()
    assert (claim["resolved"], claim["spec_hash"]) == (whole["resolved"], whole["spec_hash"])
    assert whole["status"] == "running"
    assert claim["token"] not in service.http.get(f"/v1/jobs/{job[0]}").text


def test_who_may_claim(service, job):
    runner = service.runner(job[1])
    assert runner.http.post(f"/runners/{runner.id}/claim", json={}).status_code in (400, 401)
    own, runner.token = runner.token, "forged"
    assert runner.ask().status_code == 410
    runner.token = own
    assert runner.ask(pool="another").status_code == 409
    assert runner.ask(code="0.0").status_code == 409
    assert runner.ask(protocol=2).status_code == 400
    assert service.http.get(f"/v1/jobs/{job[0]}").json()["status"] == "queued"
    with service.database.write() as session:
        runners.drain(session, runner.id)
    answer = runner.ask()
    assert (answer.status_code, answer.json()["error"]["code"]) == (410, "gone")


def test_of_many_runners_one_gets_the_job(service, job):
    asked = [service.runner(job[1]) for _ in range(6)]
    answers = []

    def ask(runner: Runner) -> None:
        answers.append(runner.ask(wait_s=0).status_code)

    threads = [threading.Thread(target=ask, args=(runner,)) for runner in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [200] + [204] * 5


def test_a_job_whose_data_set_is_gone_stops_nobody(service, job):
    """As after a reingest that could not take the data set in: it fails, and the claim is the next one's."""
    gone = f"file-{'0' * 26}"
    with service.database.write() as session:
        row = session.get_one(Job, job[0])
        spec = {**row.resolved["spec"], "data": {**row.resolved["spec"]["data"], "corpus": gone}}
        row.resolved, row.priority = {**row.resolved, "spec": spec}, 1000
    behind, runner = service.queued(SPEC), service.runner(job[1])
    assert runner.claim()["job_id"] == behind
    failed = service.http.get(f"/v1/jobs/{job[0]}").json()
    assert (failed["status"], failed["reason"], failed["attempts"]) == ("failed", "invalid_data", 0)
    assert "data.corpus: no such data set" in failed["message"]
    assert gone in failed["message"]
    end = {"first_seq": 1, "events": [], "outcome": "yielded", "reason": "yielded"}
    assert runner.tell(runner.claim(), "done", end).status_code == 200


def test_a_waiting_claim_gets_what_comes(service, job):
    runner = service.runner(job[1])
    end = {"first_seq": 1, "events": [], "outcome": "succeeded"}
    assert runner.tell(runner.claim(), "done", end).status_code == 200
    assert runner.ask(wait_s=0).status_code == 204
    got = []
    waiting = threading.Thread(target=lambda: got.append(runner.claim(wait_s=20)["job_id"]))
    waiting.start()
    later = service.queued(SPEC)
    waiting.join()
    assert got == [later]


def test_a_claim_whose_answer_never_arrives_costs_nothing(service, job):
    """The connection dies after the call was sent: asked again, the runner gets what it has."""
    runner = service.runner(job[1])
    body = json.dumps({"protocol": 1, "pool": job[1], "code": service.settings.code, "world_size": 1, "wait_s": 0})
    place = urlsplit(service.url)
    with socket.create_connection((place.hostname, place.port)) as line:
        line.sendall(
            f"POST /internal/v1/runners/{runner.id}/claim HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {runner.token}"
            f"\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
    until(lambda: service.http.get(f"/v1/jobs/{job[0]}").json()["status"] == "running")
    with service.database.write() as session:
        runners.drain(session, runner.id)
    claim = runner.claim()
    assert (claim["job_id"], claim["attempt"]) == (job[0], 1)
    assert runner.tell(claim, "beat", {"first_seq": 1, "events": []}).json()["action"] == "checkpoint_and_exit"
    end = {"first_seq": 1, "events": [], "outcome": "yielded", "reason": "yielded"}
    assert runner.tell(claim, "done", end).status_code == 200
    assert runner.ask().status_code == 410
    assert service.http.get(f"/v1/jobs/{job[0]}").json()["status"] == "queued"


def test_beats_are_counted_not_repeated(service, job):
    runner = service.runner(job[1])
    claim = runner.claim()

    def beat(first: int, *events: dict, **more):
        return runner.tell(claim, "beat", {"first_seq": first, "events": list(events), **more})

    loading = {"kind": "state", "state": "loading", "attempt": 1, "at": 1.0}
    training = {"kind": "state", "state": "training", "step": 0, "steps": 3, "at": 2.0}
    first = beat(1, loading, training, state="training", step=0, progress_at=2.0)
    assert first.json() == {"acked_seq": 2, "action": "continue", "lease_s": 60.0}
    assert beat(1, loading, training).json()["acked_seq"] == 2  # the answer was lost
    note = {"kind": "note", "level": "info", "message": "hello"}
    assert beat(2, training, note).json()["acked_seq"] == 3  # some are new
    gap = beat(5, note)
    assert (gap.status_code, gap.json()["error"]["code"]) == (409, "gap:3")
    assert gap.headers["x-should-retry"] == "false"
    assert beat(4, {"kind": "step", "step": 1, "loss": 2.0, "seconds": 0.1}).json()["acked_seq"] == 4
    told = service.http.get(f"/v1/jobs/{job[0]}/events", params={"order": "asc"}).json()["data"]
    mine = [e["type"] for e in told if e["actor"] == f"runner:{runner.id}"]
    assert mine == ["job.status", "attempt.loading", "attempt.training", "note"]
    attempt = service.http.get(f"/v1/jobs/{job[0]}").json()["attempt_list"][0]
    assert (attempt["status"], attempt["step"], attempt["start_step"]) == ("training", 1, 0)


def test_what_the_user_wants_comes_with_the_beat(service, job):
    runner = service.runner(job[1])
    claim = runner.claim()
    nothing = {"first_seq": 1, "events": []}
    for command, action in (("pause", "checkpoint_and_exit"), ("resume", "continue"), ("cancel", "abort")):
        posted(service.http, f"/v1/jobs/{job[0]}/{command}", None)
        assert runner.tell(claim, "beat", nothing).json()["action"] == action


def test_done_is_done_once(service, job):
    runner = service.runner(job[1])
    claim = runner.claim()
    body = {"first_seq": 1, "events": [{"kind": "predicted", "modality": "speech", "utterances": 3}]}
    end = {**body, "outcome": "succeeded", "result_sha256": "0" * 64}
    assert runner.tell(claim, "done", end).json() == {"acked_seq": 1}
    assert runner.tell(claim, "done", end).json() == {"acked_seq": 1}
    assert runner.tell(claim, "done", {**end, "outcome": "failed"}).status_code == 410
    late = runner.tell(claim, "beat", body)
    assert (late.status_code, late.json()["error"]["code"]) == (410, "fenced")
    assert service.http.get(f"/v1/jobs/{job[0]}").json()["status"] == "finalizing"
    assert runner.tell(claim, "done", {**end, "outcome": "lost"}).status_code == 400


def test_a_forged_or_old_token_writes_nothing(service, job):
    runner = service.runner(job[1])
    first = runner.claim()
    body = {"first_seq": 1, "events": [{"kind": "note", "message": "mine"}]}
    for forged in ("", "forged", runner.token, service.http.headers["Authorization"].split()[1]):
        if forged:
            assert runner.tell(first, "beat", body, forged).status_code == 410
            assert runner.tell(first, "done", {**body, "outcome": "failed"}, forged).status_code == 410
    assert runner.http.post(f"/attempts/{job[0]}/1/beat", json=body).status_code == 401
    end = {"first_seq": 1, "events": [], "outcome": "failed", "reason": "infrastructure"}
    assert runner.tell(first, "done", end).status_code == 200
    again = runner.claim()
    assert (again["job_id"], again["attempt"]) == (job[0], 2)
    old = {**first, "attempt": 2}  # the first attempt's token for the second
    assert runner.tell(old, "beat", body).status_code == 410
    assert runner.tell(first, "beat", body).status_code == 410
    assert runner.tell(again, "beat", body).status_code == 200
    told = service.http.get(f"/v1/jobs/{job[0]}/events").text
    assert told.count('"mine"') == 1
