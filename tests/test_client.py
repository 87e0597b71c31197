"""The Python client against a real API: typed errors, submissions sent again, streams that break, uploads."""

import contextlib
import io
import json
import socket
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import specs
from api_server import Service, serving

import attune
from attune import client as module
from attune.client import Client
from attune.errors import (
    BadRequestError,
    ConflictError,
    ForbiddenError,
    NoServiceError,
    NotFoundError,
    UnauthorizedError,
    UnavailableError,
)
from db import events, keys
from db.events import New


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    corpus = specs.corpus_folder(folder / "data" / "turns")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(__file__).parent.parent)
        with serving(folder, roots=str(corpus.parent)) as made:
            yield made


def key_of(service: Service, scope: keys.Scope = "write") -> str:
    with service.database.write() as session:
        return keys.issue(session, keys.project(session, "default").id, "test", scope, "service")[1]


@pytest.fixture
def client(service):
    with Client(service.url, key_of(service)) as made:
        yield made


def a_job(**fields) -> dict:
    return specs.job(Path("turns"), tuning={"encoder": "frozen"}, **fields)


def test_address_and_key_are_given_or_in_the_environment_or_left_by_up(service, monkeypatch, tmp_path):
    for name in ("ATTUNE_URL", "ATTUNE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ATTUNE_HOME", str(tmp_path))
    with pytest.raises(NoServiceError, match=rf"none was started in {tmp_path}.*attune up.*ATTUNE_URL"):
        Client()
    with pytest.raises(NoServiceError, match="ATTUNE_API_KEY"):
        Client(service.url)
    (tmp_path / "client.json").write_text(json.dumps({"url": service.url, "key": key_of(service)}))
    with Client() as found:
        assert (found.url, found.local) == (service.url, True)
        assert found.jobs.list()["object"] == "list"
    monkeypatch.setenv("ATTUNE_URL", f"{service.url}/")
    monkeypatch.setenv("ATTUNE_API_KEY", key_of(service))
    with attune.Client() as found:
        assert (found.url, found.local) == (service.url, False)
        assert found.jobs.list()["object"] == "list"


def test_every_error_has_its_type_and_says_what_the_service_said(service, client):
    with Client(service.url, "attune-guessed") as stranger, pytest.raises(UnauthorizedError, match="no valid API key"):
        stranger.jobs.list()
    with Client(service.url, key_of(service, "read")) as reader, pytest.raises(ForbiddenError, match="not write"):
        reader.jobs.create(a_job())
    with pytest.raises(NotFoundError, match="no job 'ftjob-x'") as missing:
        client.jobs.get("ftjob-x")
    assert (missing.value.status, missing.value.code) == (404, "job_not_found")
    with pytest.raises(BadRequestError, match="did you mean 'language'") as bad:
        client.jobs.create({**a_job(), "langauge": "en"})
    assert (bad.value.param, bad.value.code) == ("langauge", "invalid_spec")
    assert bad.value.to_json()["error"]["param"] == "langauge"
    job = client.jobs.create(a_job())
    client.jobs.cancel(job["id"])
    with pytest.raises(ConflictError, match="cancelled") as late:
        client.jobs.resume(job["id"])
    assert late.value.code == "illegal_status"
    client.jobs.create(a_job(), idempotency_key="mine")
    with pytest.raises(BadRequestError, match="'mine'"):
        client.jobs.create(a_job(steps=11), idempotency_key="mine")


def test_who_does_not_answer_or_is_not_attune(monkeypatch):
    monkeypatch.setattr(module, "WAITS_S", (0.01,))
    with Client("http://127.0.0.1:1", "k") as nobody, pytest.raises(UnavailableError, match="attune up"):
        nobody.jobs.list()

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        def log_message(self, *_) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with Client(f"http://127.0.0.1:{server.server_port}", "k") as other:
            with pytest.raises(BadRequestError, match="does not look like Attune"):
                other.jobs.list()
            with pytest.raises(UnavailableError):
                list(other.follow("/v1/jobs/x/stream", patience_s=0))
        server.shutdown()


def test_jobs_are_submitted_once_listed_commanded_and_waited_for(client):
    planned = client.jobs.create(a_job(), dry_run=True)
    assert planned["steps"] == 10
    first = client.jobs.create(a_job(name="listed"), idempotency_key="once")
    assert client.jobs.create(a_job(name="listed"), idempotency_key="once") == first
    assert [job["id"] for job in client.jobs.every(name="listed")] == [first["id"]]
    assert client.jobs.list(status=["validating", "queued"], name="listed")["data"] == [first]
    assert client.jobs.pause(first["id"])["wanted"] == "pause"
    assert client.jobs.resume(first["id"])["wanted"] == "run"
    with pytest.raises(TimeoutError, match="validating after 0 s"):
        client.jobs.wait(first["id"], timeout_s=0, every_s=0)
    client.jobs.cancel(first["id"])
    assert client.jobs.wait(first["id"])["status"] == "cancelled"
    assert client.jobs.get(first["id"])["spec"]["name"] == "listed"
    told = [event["type"] for event in client.jobs.events(first["id"])]
    assert told == ["job.created", "job.pause", "job.resume", "job.cancel", "job.status"]
    assert client.jobs.metrics(first["id"], "loss")["series"] == {}


def test_a_long_history_comes_whole_and_in_order(service, client):
    job = client.jobs.create(a_job())["id"]
    with service.database.write() as session:
        events.append(session, job, [New("note", {"n": n}) for n in range(250)], actor="service")
    assert [event["seq"] for event in client.jobs.events(job)] == list(range(1, 252))


class Cutting:
    """A relay in front of the service that cuts the first connections after so many bytes of the answer each."""

    def __init__(self, url: str, cuts: list[int]):
        self.target, self.cuts, self.served = int(url.rpartition(":")[2]), cuts, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near = self.listener.accept()[0]
                limit = self.cuts.pop(0) if self.cuts else None
                self.served += 1
                far = socket.create_connection(("127.0.0.1", self.target))
                threading.Thread(target=self._copy, args=(near, far, None), daemon=True).start()
                threading.Thread(target=self._copy, args=(far, near, limit), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, limit: int | None) -> None:
        sent = 0
        with contextlib.suppress(OSError):
            while data := source.recv(1024):
                part = data if limit is None else data[: limit - sent]
                sink.sendall(part)
                sent += len(part)
                if limit is not None and sent >= limit:
                    break
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def test_a_stream_that_breaks_goes_on_where_it_broke(service):
    with Client(service.url, key := key_of(service)) as direct:
        job = direct.jobs.create(a_job())["id"]
    with service.database.write() as session:
        events.append(session, job, [New("note", {"n": n}) for n in range(100)], actor="service")
    relay = Cutting(service.url, [100, 1500, 5000])
    with Client(relay.url, key) as client:
        seqs, jobs = [], []
        for item in client.jobs.stream(job):
            if item["object"] == "event":
                seqs.append(item["seq"])
                if item["type"] == "note" and item["data"]["n"] == 99:
                    with Client(service.url, key) as direct:
                        direct.jobs.cancel(job)
            else:
                jobs.append(item["status"])
    relay.listener.close()
    assert seqs == list(range(1, len(seqs) + 1))
    assert len(seqs) == 103
    assert jobs[-1] == "cancelled"
    assert relay.served == 4
    with Client(service.url, key) as client:
        again = [item["seq"] for item in client.jobs.stream(job, f"{job}:101") if item["object"] == "event"]
    assert again == [102, 103]


def test_a_large_data_set_is_sent_in_parts(service, client, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 4096)
    folder = specs.corpus_folder(tmp_path / "texts")
    made = client.datasets.create("large", upload=folder)
    assert made["status"] == "validating"  # by a worker, and here is none
    parts = [key for key in service.store.list("projects/") if f"{made['id']}/parts/" in key]
    parts.sort(key=lambda key: int(key.rpartition("/")[2]))
    assert len(parts) > 2
    with tarfile.open(fileobj=io.BytesIO(b"".join(map(service.store.get, parts)))) as tar:
        assert {name.removeprefix("./") for name in tar.getnames()} >= {"train.jsonl", "test.jsonl", "task.yaml"}


def test_data_sets_are_uploaded_and_reported_on(client, tmp_path):
    folder = specs.corpus_folder(tmp_path / "texts", recordings=0, tests=0)
    (folder / "test.jsonl").unlink()
    made = client.datasets.wait(client.datasets.create("texts", upload=folder)["id"], timeout_s=60)
    assert (made["status"], made["rows"], made["errors"]) == ("ready", 40, 0)
    (folder / "train.jsonl").write_text("{}\n")
    bad = client.datasets.wait(client.datasets.create("bad", upload=folder)["id"], timeout_s=60)
    assert bad["status"] == "refused"
    named = client.datasets.wait(client.datasets.create("by name", uri="turns")["id"], timeout_s=60)
    assert named["status"] == "refused"  # its recordings do not exist
    assert {d["name"] for d in client.datasets.list()["data"]} >= {"texts", "bad", "by name"}
    with pytest.raises(ValueError, match="one of them"):
        client.datasets.create("neither")


def test_a_study_its_table_and_what_cannot_be_compared_yet(client):
    spec = {**a_job(evaluate={"on": "turns:test"}), "study": "two", "grid": {"seed": [1, 2]}, "controls": ["majority"]}
    del spec["name"]
    assert next(iter(client.studies.create(spec, dry_run=True).values()))["runs"] == 2
    study = client.studies.create(spec)
    ids = [job["id"] for job in study["cells"][0]["jobs"]]
    assert client.studies.get(study["id"])["jobs"] == {"queued": 3}  # the majority is a job, too
    assert client.studies.table(study["id"])["rows"][0]["runs"] == 2
    assert client.studies.list()["data"][0]["id"] == study["id"]
    with pytest.raises(ConflictError, match="queued; it has no predictions"):
        client.compare(ids[0], ids[1:])
    assert client.studies.cancel(study["id"])["jobs"] == {"cancelled": 3}


def test_artifacts_are_listed_and_copied_whole(service, client, tmp_path):
    job = service.queued(a_job())
    service.finish(job, {"text": [{"utterance": "u", "n": 1}]})
    paths = client.artifacts.list(job)
    assert "final.json" in paths
    got = client.artifacts.download(job, "attempts/1/predictions/text.jsonl", tmp_path / "deep" / "text.jsonl")
    assert json.loads(got.read_text()) == {"utterance": "u", "n": 1}
    with pytest.raises(NotFoundError):
        client.artifacts.download(job, "../secret", tmp_path / "secret")
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
