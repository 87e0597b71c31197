"""The real API on a free loopback port, and what tests need beside it: keys, a runner, finished jobs."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from sqlalchemy import update

from api.app import be_the_one, create_app
from db import jobs, keys, runners
from db.models import Job
from db.pools import pool_of
from db.session import Database
from db.settings import Settings
from trainer.predictions import to_lines
from trainer.resolve import Resolved, read_and_resolve
from trainer.spec import parse_job
from trainer.store import FolderStore

ROOT = Path(__file__).parent.parent


def until(what, seconds: float = 20.0):
    """The first true value of `what()`; fails after so long."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)
    return found


@dataclass
class Service:
    """A running API, its parts, and an administrator's client."""

    url: str
    settings: Settings
    database: Database
    store: FolderStore
    project: str
    http: httpx2.Client

    def client(self, scope: keys.Scope | None = "write", project: str = "default", **options: Any) -> httpx2.Client:
        """A client with a new key; without one where `scope` is None."""
        headers = options.pop("headers", {})
        if scope is not None:
            with self.database.write() as session:
                own = keys.project(session, project)
                headers["Authorization"] = f"Bearer {keys.issue(session, own.id, scope, scope, 'service')[1]}"
        return httpx2.Client(base_url=self.url, headers=headers, timeout=60, verify=False, **options)

    def queued(self, spec: dict[str, Any]) -> str:
        """A job that a worker would have validated."""
        job_id = posted(self.http, "/v1/jobs", spec)["id"]
        resolved = read_and_resolve(parse_job(spec), self.settings.roots)[0]
        self.validate(job_id, resolved)
        return job_id

    def validate(self, job_id: str, resolved: Resolved) -> None:
        """What the worker's tick does with a job whose data are good."""
        with self.database.write() as session:
            pinned, pool = resolved.model_dump(mode="json", by_alias=True), pool_of(resolved, self.settings.code)
            assert jobs.validated(session, job_id, pinned, resolved.hash, pool)

    def runner(self, pool: str) -> "Runner":
        """A registered runner of a pool."""
        with self.database.write() as session:
            started = runners.start(session, pool, self.settings.code, 1, 0)
        return Runner(self, started.id, started.bootstrap)

    def finish(
        self, job_id: str, predictions: dict[str, list[dict[str, Any]]], outcome: str = "succeeded", **final: Any
    ) -> None:
        """Carries a queued job to its end by the protocol, with these predictions in the store; `final`: more of its
        final.json."""
        runner, claim = self.claimed(job_id)
        place, no = claim["prefix"], claim["attempt"]
        for modality, rows in predictions.items():
            self.store.put(f"{place}/attempts/{no}/predictions/{modality}.jsonl", to_lines(rows))
        if outcome == "succeeded":
            self.store.put(f"{place}/final.json", json.dumps({"attempt": no, **final}).encode())
        reason = None if outcome == "succeeded" else "diverged"
        told = {"first_seq": 1, "events": [], "outcome": outcome, "reason": reason, "message": ""}
        assert runner.tell(claim, "done", told).status_code == 200
        with self.database.write() as session:
            assert jobs.finish(session, claim["job_id"])

    def claimed(self, job_id: str) -> tuple["Runner", dict[str, Any]]:
        """A new runner of the job's pool, and its claim of this job before all others."""
        with self.database.write() as session:
            session.execute(update(Job).where(Job.id == job_id).values(priority=1000))
            pool = session.get_one(Job, job_id).pool
        assert pool is not None
        runner = self.runner(pool)
        claim = runner.claim()
        assert claim["job_id"] == job_id
        return runner, claim


def a_job(**changes: Any) -> dict[str, Any]:
    """A spec on `turns`."""
    return {
        "name": "a", "base": "models/tiny", "language": "en", "steps": 3, "recipe": {"name": "sft"},
        "data": {"corpus": "turns", "speech_per_label": 2}, "tuning": {"encoder": "frozen"},
        "evaluate": {"limit": 20}, **changes,
    }  # fmt: skip


def a_study(**changes: Any) -> dict[str, Any]:
    """A study of five jobs on `turns`: two seeds of two schemes, and another subset."""
    return {
        "study": "turning", "base": "models/tiny", "language": "en", "steps": 10, "global_batch": 8,
        "data": {"corpus": "turns"}, "recipe": {"name": "limited_speech", "speech_presentations": 1},
        "grid": {"scheme": ["text_only", "direct_mix"], "speech_per_label": [4], "seed": [1, 2]},
        "also": [{"scheme": "speech_only", "speech_per_label": 8, "seed": [1]}],
        "tuning": {"encoder": "frozen"}, "controls": ["majority", "untuned", "linear_probe"],
        "evaluate": {"text_twin": False}, **changes,
    }  # fmt: skip


class Runner:
    """The runner's side of the protocol, a call at a time."""

    def __init__(self, service: Service, id_: str, bootstrap: str):
        self.service, self.id, self.bootstrap = service, id_, bootstrap
        self.http = httpx2.Client(base_url=f"{service.url}/internal/v1", timeout=60, verify=False)
        self.token = posted(self.http, f"/runners/{id_}/register", {"code": bootstrap})["token"]

    def claim(self, wait_s: float = 0, **changes: Any) -> dict[str, Any]:
        """The claim, which there must be."""
        return self.ask(wait_s, **changes).json()["claims"][0]

    def ask(self, wait_s: float = 0, **changes: Any) -> httpx2.Response:
        """The answer to asking for a claim."""
        with self.service.database.read() as session:
            row = next(r for r in runners.running(session) if r.id == self.id)
        body = {"protocol": 1, "pool": row.pool, "code": row.code, "world_size": 1, "device": "cpu", "wait_s": wait_s}
        headers = {"Authorization": f"Bearer {self.token}"}
        return self.http.post(f"/runners/{self.id}/claim", json={**body, **changes}, headers=headers)

    def tell(self, claim: dict[str, Any], what: str, body: dict[str, Any], token: str = "") -> httpx2.Response:
        """A heartbeat or the end of an attempt."""
        headers = {"Authorization": f"Bearer {token or claim['token']}", "Content-Type": "application/json"}
        place = f"/attempts/{claim['job_id']}/{claim['attempt']}/{what}"
        return self.http.post(place, content=json.dumps(body), headers=headers)  # json= would refuse a NaN


def data_roots(service: Service) -> list[str]:
    """The command line's options for the service's data folders."""
    return [part for root in service.settings.roots for part in ("--data-root", root)]


def posted(http: httpx2.Client, path: str, body: Any, **options: Any) -> dict[str, Any]:
    """The body of a POST that must succeed."""
    answer = http.post(path, json=body, **options)
    assert answer.status_code == 200, answer.text
    return answer.json()


@contextmanager
def serving(folder: Path, database_url: str | None = None, roots: str = "", **settings: Any) -> Iterator[Service]:
    """The API in a thread of this process; nothing listens where its broker should be."""
    given = {
        "database_url": database_url or f"sqlite:///{folder}/attune.sqlite", "broker_url": "redis://127.0.0.1:1/0",
        "store": str(folder / "store"), "data": roots, "cache": str(folder / "cache"), **settings,
    }  # fmt: skip
    told = Settings(**given)
    app = create_app(told)
    database: Database = app.state.database
    be_the_one(app)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    until(lambda: server.started)
    with database.write() as session:
        project = keys.project(session, "default").id
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    service = Service(url, told, database, app.state.store, project, None)  # type: ignore[arg-type]
    service.http = service.client("admin")
    try:
        yield service
    finally:
        service.http.close()
        server.should_exit = True
        thread.join(20)
        listener.close()
