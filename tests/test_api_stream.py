"""Live events: a listener that comes back with Last-Event-ID has lost none, whatever was written meanwhile."""

import json
import threading
from collections.abc import Iterator

import pytest
from api_server import Service, a_job, posted

from api.routes import live
from api.stream import Tailer
from db import events, jobs
from db.events import New

pytest_plugins = ["databases", "api_service"]

SPEC = a_job()


def listened(http, job: str, last: str | None = None) -> Iterator[dict]:
    """Messages of a stream: {"id", "event", "data"}."""
    headers = {"Last-Event-ID": last} if last else {}
    with http.stream("GET", f"/v1/jobs/{job}/stream", headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        message: dict = {}
        for line in answer.iter_lines():
            if line:
                name, _, value = line.partition(": ")
                message[name] = value
            elif message:
                if "data" in message:
                    yield {**message, "data": json.loads(message["data"])}
                message = {}


def test_while_the_database_hangs_for_a_listener_others_are_answered(service: Service, monkeypatch):
    job = posted(service.http, "/v1/jobs", SPEC)["id"]
    asked, answered, found = threading.Event(), threading.Event(), live.found

    def hangs(*given):
        asked.set()
        assert answered.wait(60)
        return found(*given)

    monkeypatch.setattr(live, "found", hangs)
    listener = threading.Thread(target=lambda: next(listened(service.http, job)))
    listener.start()
    assert asked.wait(60)
    try:
        assert service.http.get("/healthz", timeout=10).status_code == 200
    finally:
        answered.set()
        listener.join()


def test_a_listener_that_comes_back_loses_none_of_200_events(service: Service):
    job = posted(service.http, "/v1/jobs", SPEC)["id"]

    def write() -> None:
        for n in range(200):
            with service.database.write() as session:
                events.append(session, job, [New("note", {"n": n})], actor="service")
        with service.database.write() as session:
            jobs.order(session, jobs.find(session, job), "cancel", "user:t")  # type: ignore[arg-type]

    writer = threading.Thread(target=write)
    writer.start()
    heard: list[dict] = []
    last, connections, ended = None, 0, False
    while not ended:
        connections += 1
        got = 0
        for message in listened(service.http, job, last):
            if message["event"] == "progress":
                ended = message["data"]["status"] == "cancelled"
                continue
            heard.append(message)
            last = message["id"]
            got += 1
            if got == 7:  # hang up in the middle, again and again
                break
    writer.join()
    assert connections > 10
    assert [m["data"]["seq"] for m in heard] == list(range(1, len(heard) + 1))
    assert [m["data"]["data"]["n"] for m in heard if m["event"] == "note"] == list(range(200))
    assert heard[-1]["data"]["data"]["status"] == "cancelled"
    assert heard[0]["id"] == f"{job}:1"


def test_the_stream_of_an_ended_job_ends(service):
    job = posted(service.http, "/v1/jobs", SPEC)["id"]
    posted(service.http, f"/v1/jobs/{job}/cancel", None)
    told = list(listened(service.http, job))
    assert [m["event"] for m in told] == ["job.created", "job.cancel", "job.status", "progress"]
    assert next(listened(service.http, job, f"{job}:3"))["event"] == "progress"


@pytest.mark.parametrize("last", ["1", "ftjob-other:1", "{job}:x", "{job}:-1", "{job}:", "{job}:٣x"])
def test_an_event_of_elsewhere_is_refused(service, last):
    job = posted(service.http, "/v1/jobs", SPEC)["id"]
    headers = {"Last-Event-ID": last.format(job=job).encode()}
    answer = service.http.get(f"/v1/jobs/{job}/stream", headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "Last-Event-ID"


def test_a_first_connection_may_say_where_it_begins(service):
    """As a browser's can: in the address. When it reconnects it repeats the address, and its header counts."""
    job = posted(service.http, "/v1/jobs", SPEC)["id"]
    posted(service.http, f"/v1/jobs/{job}/cancel", None)

    def told(seq: int, **headers: str) -> list[str]:
        with service.http.stream("GET", f"/v1/jobs/{job}/stream?after={job}:{seq}", headers=headers) as answer:
            return [line for line in answer.iter_lines() if line.startswith("id:")]

    assert told(1) == [f"id: {job}:2", f"id: {job}:3"]
    assert told(1, **{"Last-Event-ID": f"{job}:2"}) == [f"id: {job}:3"]
    answer = service.http.get(f"/v1/jobs/{job}/stream?after=7")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "after")
    assert "(given: '7')" in answer.json()["error"]["message"]


def test_a_number_beyond_all_events_waits_for_the_end(service):
    job = posted(service.http, "/v1/jobs", SPEC)["id"]
    posted(service.http, f"/v1/jobs/{job}/cancel", None)
    assert [m["event"] for m in listened(service.http, job, f"{job}:{10**30}")] == ["progress"]


def test_many_listeners_hold_no_connection_to_the_database(service):
    """More streams than the pool has connections, and requests are answered beside them."""
    job = posted(service.http, "/v1/jobs", SPEC)["id"]
    streams = [listened(service.client("read"), job) for _ in range(30)]
    assert [next(stream)["event"] for stream in streams] == ["job.created"] * 30
    assert service.http.get("/v1/jobs").status_code == 200
    posted(service.http, f"/v1/jobs/{job}/cancel", None)
    for stream in streams:
        assert [m["event"] for m in stream if m["event"] != "progress"] == ["job.cancel", "job.status"]


def test_a_listener_outlives_a_database_that_is_away_for_a_while(service: Service, monkeypatch):
    """The one reader of all streams must not end with the first look that fails."""
    job = posted(service.http, "/v1/jobs", SPEC)["id"]
    looks, looked = [], Tailer._changed

    def changed(tailer: Tailer, job_ids: list[str]) -> list[str]:
        looks.append(job_ids)
        if len(looks) < 3:
            raise OSError("the database is away")
        return looked(tailer, job_ids)

    monkeypatch.setattr(Tailer, "_changed", changed)
    heard = listened(service.http, job)
    assert next(heard)["event"] == "job.created"
    with service.database.write() as session:
        jobs.order(session, jobs.find(session, job), "cancel", "user:t")  # type: ignore[arg-type]
    assert [message["event"] for message in heard if message["event"] != "progress"] == ["job.cancel", "job.status"]
    assert len(looks) >= 3
