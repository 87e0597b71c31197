"""The database is lost; the store is not. What the API says of it afterwards is what it said before."""

import itertools
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import boto3
import pytest
import toy
from api_server import ROOT, Service, posted, serving, until
from db_rows import a_project, a_runner, at_once, claim, held, state, step
from specs import corpus_folder, resolved
from sqlalchemy import select
from test_api_datasets import a_data_set, settled, zipped

from attune.cli import main
from attune.instance import Instance
from db import attempts, bases, datasets, jobs, keys, records
from db.models import Attempt, Checkpoint, Dataset, Event, Job, Key, Metric, Project, Runner, Series, Study
from db.reingest import reingest
from db.session import Database
from db.settings import Settings
from trainer.resolve import Resolved
from trainer.run import run
from trainer.store import FolderStore, open_store
from worker.dataset import tick as validate_data_sets
from worker.finalize import finalize
from worker.ticks import Parts, record
from worker.validate import validate_waiting

pytest_plugins = ["databases"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return toy.base(folder / "base"), toy.data(folder / "data")


def spec(world, **changes: Any) -> dict[str, Any]:
    """The toy job as its user would send it."""
    return json.loads(toy.resolved(*world, **changes)[0].spec.model_dump_json(by_alias=True))


GO_ON = itertools.repeat("continue")


class PlugPulledError(BaseException):
    """The process ends, and nothing is written any more."""


def attempt(service: Service, job_id: str, orders: Iterator[str] = GO_ON) -> None:
    """The next attempt at a job, with all that a runner does."""
    runner, claim = service.claimed(job_id)
    store = open_store(f"{service.settings.store}/{claim['prefix']}")
    events: list[dict[str, Any]] = []

    def control() -> str:
        if (order := next(orders)) == "die":
            raise PlugPulledError
        return order

    try:
        made = run(
            Resolved.model_validate(claim["resolved"]), store, events.append, control, roots=service.settings.roots,
            threads=1, attempt=claim["attempt"],
        )  # fmt: skip
    except PlugPulledError:
        assert runner.tell(claim, "beat", {"first_seq": 1, "events": events}).status_code == 200
        return
    key = "final.json" if made.outcome == "succeeded" else f"attempts/{claim['attempt']}/result.json"
    told = {"first_seq": 1, "events": events, "outcome": made.outcome, "reason": made.reason, "message": made.message,
            "result_sha256": store.digest(key)[1]}  # fmt: skip
    assert runner.tell(claim, "done", told).status_code == 200
    finalize(service.database, service.store, job_id)


def dies_after(steps: int):
    """Orders until the process ends without a word."""
    return itertools.chain(["continue"] * steps, ["die"])


def answers(service: Service) -> dict[str, Any]:
    """Everything that the API says of jobs, studies and data sets, their histories apart."""

    def get(path: str) -> Any:
        answer = service.http.get(path, params={"limit": 100} if path.count("/") == 2 else None)
        return answer.status_code, answer.json()

    paths = ["/v1/jobs", "/v1/studies", "/v1/datasets"]
    said = {path: get(path) for path in paths}
    for job in said["/v1/jobs"][1]["data"]:
        at = f"/v1/jobs/{job['id']}"
        said |= {p: get(p) for p in (at, f"{at}/metrics?points=1000", f"{at}/artifacts", f"{at}/predictions")}
    for study in said["/v1/studies"][1]["data"]:
        said |= {p: get(p) for p in (f"/v1/studies/{study['id']}", f"/v1/studies/{study['id']}/table")}
    for dataset in said["/v1/datasets"][1]["data"]:
        said[p] = get(p := f"/v1/datasets/{dataset['id']}")
    return said


@pytest.fixture(params=["sqlite-folder", "postgres-S3"])
def place(request, tmp_path, monkeypatch):
    """`open()` starts the API on a new and empty database, and the same store every time."""
    engine, kind = request.param.split("-")
    uri = str(tmp_path / "store")
    if kind == "S3":
        endpoint = request.getfixturevalue("moto_endpoint")
        for name, value in {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s",
                            "AWS_DEFAULT_REGION": "us-east-1"}.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        bucket = f"store-{uuid.uuid4().hex[:12]}"
        boto3.client("s3").create_bucket(Bucket=bucket)
        uri = f"s3://{bucket}/attune"
    numbers = itertools.count(1)

    def start(roots: str = ""):
        folder, url = tmp_path / f"service-{next(numbers)}", None
        folder.mkdir()
        if engine == "postgres":
            server, name = request.getfixturevalue("postgres"), f"reingest_{uuid.uuid4().hex[:12]}"
            server.run(f"CREATE DATABASE {name} TEMPLATE migrated")
            url = server.url(name)
        return serving(folder, url, roots, store=uri, trusted=True)

    return start


def test_what_the_api_says_is_what_it_said(place, world):
    roots = str(world[1])
    with place(roots) as service:
        done = service.queued(spec(world))
        attempt(service, done, dies_after(3))
        with service.database.write() as session:
            assert attempts.end(session, done, 1, "lost", "lost_heartbeat", "no heartbeat")
        attempt(service, done)  # does the third step again
        bad = service.queued(spec(world, seed=2, optimizer={"peak_lr": 1e30}))
        attempt(service, bad)
        gone = service.queued(spec(world, seed=3))
        posted(service.http, f"/v1/jobs/{gone}/cancel", None)
        refused = posted(service.http, "/v1/jobs", spec(world, seed=4))["id"]
        with service.database.write() as session:
            assert jobs.refuse(session, refused, "invalid_data", "train.jsonl is gone")
        grid = {k: v for k, v in spec(world).items() if k not in ("name", "seed", "recipe", "evaluate", "data")}
        study = posted(service.http, "/v1/studies", {
            **grid, "study": "s", "data": {"text": "text", "speech": "speech"}, "controls": [],
            "recipe": {"name": "limited_speech", "speech_presentations": 1},
            "grid": {"scheme": ["direct_mix", "text_only"], "seed": [7]},
        })  # fmt: skip
        made = service.http.post("/v1/datasets", data={"name": "turns"}, files={"archive": zipped(a_data_set())})
        settled(service, made.json()["id"])
        for member in study["cells"][0]["jobs"]:
            attempt(service, member["id"])
        posted(service.http, f"/v1/studies/{study['id']}/cancel", None)
        records.write(service.database, service.store)
        before = answers(service)
        statuses = {job["id"]: job["status"] for job in before["/v1/jobs"][1]["data"]}
    assert {statuses[done], statuses[bad], statuses[gone], statuses[refused]} == {
        "succeeded", "failed", "cancelled"
    }  # fmt: skip
    with place(roots) as service:
        assert answers(service)["/v1/jobs"][1]["data"] == []
        report = reingest(service.database, service.store, service.settings.code)
        assert report.problems == []
        assert report.keys == {}  # the new database's empty project gave way, its keys went over
        assert report.taken == {"project": 1, "study": 1, "dataset": 1, "job": 6}
        assert report.jobs == {"succeeded": 2, "failed": 2, "cancelled": 2}
        after = answers(service)
        for path in before:
            assert after[path] == before[path], path
        assert after == before
        again = reingest(service.database, service.store, service.settings.code)
        assert (set(again.taken.values()), again.there) == ({0}, report.taken)
        assert answers(service) == before
        (event,) = service.http.get(f"/v1/jobs/{done}/events").json()["data"]
        assert (event["type"], event["seq"]) == ("job.reingested", 1)


def test_an_interrupted_job_goes_on_from_its_newest_checkpoint(place, world):
    roots = str(world[1])
    with place(roots) as service:
        calm = service.queued(spec(world, name="calm"))
        attempt(service, calm)
        cut = service.queued(spec(world, name="cut"))
        attempt(service, cut, dies_after(5))
        fresh = posted(service.http, "/v1/jobs", spec(world, name="fresh"))["id"]
        records.write(service.database, service.store)
        project = service.project
    with place(roots) as service:
        report = reingest(service.database, service.store, service.settings.code)
        assert report.jobs == {"succeeded": 1, "queued": 1, "validating": 1}, report
        found = service.http.get(f"/v1/jobs/{cut}").json()
        assert (found["status"], found["attempts"], found["progress"]["step"]) == ("queued", 1, 4)
        assert found["attempt_list"][0]["status"] == "lost"
        with service.database.read() as session:
            waits = jobs.find(session, fresh, project)
            assert waits is not None
            assert jobs.unvalidated(session) == [fresh]
        attempt(service, cut)
        one, other = (service.http.get(f"/v1/jobs/{job}").json() for job in (calm, cut))
        assert other["status"] == "succeeded"
        assert [a["start_step"] for a in other["attempt_list"]] == [0, 4]
        assert other["scores"] == one["scores"]
        curves = [service.http.get(f"/v1/jobs/{job}/metrics").json()["series"] for job in (calm, cut)]
        assert curves[0]["loss"] == curves[1]["loss"]


def test_before_anybody_wrote_it_down_the_result_says_it(place, world):
    """A job that ended just when the database was lost, or before there were records."""
    roots = str(world[1])
    with place(roots) as service:
        done = service.queued(spec(world))
        attempt(service, done)
        bad = service.queued(spec(world, seed=2, optimizer={"peak_lr": 1e30}))
        attempt(service, bad)
        before = {job: service.http.get(f"/v1/jobs/{job}").json() for job in (done, bad)}
        project = service.project
    with place(roots) as service:
        report = reingest(service.database, service.store, service.settings.code)
        assert report.jobs == {"succeeded": 1, "failed": 1}
        assert project in report.keys  # nothing says what it was called
        secret = report.keys[project]
        service.http.headers["Authorization"] = f"Bearer {secret}"
        for job, said in before.items():
            found = service.http.get(f"/v1/jobs/{job}").json()
            for same in ("name", "status", "reason", "message", "scores", "metric", "spec_hash", "resolved"):
                assert found[same] == said[same]
            assert [c["prefix"] for c in found["checkpoints"]] == [c["prefix"] for c in said["checkpoints"]]
            assert abs(found["created_at"] - said["created_at"]) <= 1
            assert abs(found["finished_at"] - said["finished_at"]) <= 60


# ---- without training: jobs that left little


def put(store, key: str, content: Any) -> None:
    store.put(key, content if isinstance(content, bytes) else json.dumps(content).encode())


@pytest.fixture
def store(tmp_path):
    """A store with one project, and nothing in it yet."""
    made = FolderStore(tmp_path / "store")
    put(made, "projects/proj-1/project.json", {"id": "proj-1", "name": "default", "created_at": 1000.5})
    return made


def a_job(store, job_id: str, **changes: Any) -> str:
    """A job that has been submitted; where it lies."""
    sent = {"id": job_id, "project_id": "proj-1", "study_id": None, "name": job_id, "spec": {}, "priority": 3,
            "retries": 2, "created_at": 2000.25, "tags": {"team": "x"}, **changes}  # fmt: skip
    put(store, f"projects/proj-1/jobs/{job_id}/job.json", sent)
    return f"projects/proj-1/jobs/{job_id}"


def begun(store, job_id: str, corpus, *results: dict[str, Any] | None) -> str:
    """A job that has been claimed as often as there are results; None: that attempt left none."""
    place = a_job(store, job_id)
    put(store, f"{place}/spec.json", resolved(corpus).model_dump(mode="json", by_alias=True))
    for no, result in enumerate(results, 1):
        put(store, f"{place}/attempts/{no}/claim.json", {"claim": "x", "at": 3000.0 + no})
        if result is not None:
            whole = {"name": job_id, "attempt": no, "attempts": [no], "steps": 2, "planned_steps": 10, **result}
            put(store, f"{place}/attempts/{no}/result.json", whole)
    return place


def rows(database, model) -> list[dict[str, Any]]:
    with database.read() as session:
        return [{c.key: getattr(row, c.key) for c in model.__table__.columns} for row in session.scalars(select(model))]


def everything(database) -> dict[str, list[dict[str, Any]]]:
    """All rows of what is taken in."""
    models = (Project, Study, Dataset, Job, Attempt, Checkpoint, Series, Metric, Event, Runner, Key)
    return {model.__tablename__: sorted(rows(database, model), key=str) for model in models}


FAULT, DIVERGED = {"outcome": "failed", "reason": "infrastructure"}, {"outcome": "failed", "reason": "diverged"}
YIELDED, TIMEOUT = {"outcome": "yielded", "reason": "yielded"}, {"outcome": "yielded", "reason": "timeout"}


@pytest.mark.parametrize(
    ("results", "status", "reason"),
    [
        ([], "queued", None),
        ([None], "queued", None),
        ([None] * 5, "queued", None),  # a lost database is nobody's fault, however often
        ([YIELDED], "queued", None),
        ([FAULT, FAULT], "queued", None),
        ([FAULT, FAULT, FAULT], "failed", "infrastructure"),  # two retries
        ([FAULT, FAULT, FAULT, None], "queued", None),  # its user had it retried
        ([DIVERGED], "failed", "diverged"),
        ([YIELDED, DIVERGED], "failed", "diverged"),
        ([TIMEOUT], "failed", "timeout"),
    ],
)
def test_a_job_without_an_end_is_where_its_attempts_left_it(database, store, tmp_path, results, status, reason):
    begun(store, "ftjob-1", corpus_folder(tmp_path / "turns"), *results)
    assert reingest(database, store, "code").problems == []
    (job,) = rows(database, Job)
    assert (job["status"], job["reason"], job["attempts"]) == (status, reason, len(results))
    assert (job["priority"], job["created_at"], job["summary"]["tags"]) == (3, 2000.25, {"team": "x"})
    assert (job["finished_at"] is not None) == (status == "failed")
    if status == "queued":
        runner = a_runner(database, job["pool"])
        claimed = claim(database, runner)
        assert claimed is not None
        assert claimed.no == len(results) + 1


def test_a_job_that_never_began_is_validated_again(database, store):
    a_job(store, "ftjob-1")
    reingest(database, store, "code")
    with database.read() as session:
        assert jobs.unvalidated(session) == ["ftjob-1"]


def test_damage_stops_nothing_else(database, store, tmp_path):
    corpus = corpus_folder(tmp_path / "turns")
    place = "projects/proj-1"
    put(store, f"{place}/jobs/ftjob-a/job.json", b"{")
    a_job(store, "ftjob-b", name=None)
    put(store, f"{place}/jobs/ftjob-c/spec.json", {"spec": 1})
    put(store, f"{place}/jobs/ftjob-d/attempts/1/claim.json", {})
    put(store, f"{begun(store, 'ftjob-e', corpus)}/end.json", [])
    put(store, f"{begun(store, 'ftjob-f', corpus, None)}/attempts/1/result.json", b"\xff")
    a_job(store, "ftjob-g", study_id="study-gone")
    damaged = begun(store, "ftjob-h", corpus, None)  # its furthest checkpoint: the trainer passes it over too
    put(store, f"{damaged}/attempts/1/checkpoints/4/manifest.json", {"files": []})
    put(store, f"{damaged}/attempts/1/log/0-2.jsonl", b'{"kind": "step", "step": 1, "loss": NaN}\n')
    put(store, f"{damaged}/attempts/1/checkpoints/2/state.json", {"logs": ["attempts/1/log/0-2.jsonl"]})
    put(store, f"{damaged}/attempts/1/checkpoints/2/manifest.json", {"files": []})
    put(store, f"{place}/studies/study-a/study.json", {"name": "x"})
    put(store, f"{place}/uploads/file-a/parts/1", b"")
    put(store, f"{place}/uploads/file-b/dataset.json", {"name": "b", "created_at": 1.0})
    put(store, f"{place}/uploads/file-b/settled.json", {"status": "ready", "manifest_sha256": "0" * 64, "report": {}})
    put(store, f"{place}/uploads/file-c/dataset.json", {"name": "c", "created_at": 1.0})
    report = reingest(database, store, "code")
    assert [p["id"] for p in report.problems] == [
        "study-a", "file-a", "file-b", "ftjob-a", "ftjob-b", "ftjob-c", "ftjob-d", "ftjob-e", "ftjob-f", "ftjob-g"
    ]  # fmt: skip
    assert all(len(p["message"]) > 20 for p in report.problems), report.problems
    assert {row["id"] for row in rows(database, Job)} == {"ftjob-g", "ftjob-h"}
    assert [row["values"] for row in rows(database, Metric)] == [{"loss": None}]
    assert [(row["id"], row["status"]) for row in rows(database, Dataset)] == [("file-c", "uploading")]
    before = everything(database)
    again = reingest(database, store, "code")
    assert (sum(again.taken.values()), len(again.problems)) == (0, 9)  # of the study that is gone it has been said
    assert everything(database) == before


def test_a_job_waits_outside_for_its_data_set(database, store, tmp_path):
    """Queued without it, it would fail at the first claim; it is taken in once the data set is."""
    dataset = f"file-{'0' * 26}"
    whole = resolved(corpus_folder(tmp_path / "turns")).model_dump(mode="json", by_alias=True)
    whole["spec"]["data"]["corpus"] = dataset
    put(store, f"{a_job(store, 'ftjob-1')}/spec.json", whole)
    settled, version = f"projects/proj-1/uploads/{dataset}/settled.json", "0" * 64
    put(store, f"projects/proj-1/uploads/{dataset}/dataset.json", {"name": "d", "created_at": 1.0})
    put(store, settled, {"status": "ready", "manifest_sha256": version, "report": {}})
    report = reingest(database, store, "code")
    assert [p["id"] for p in report.problems] == [dataset, "ftjob-1"]
    said = report.problems[1]["message"]
    assert "data.corpus: no such data set" in said
    assert dataset in said
    assert rows(database, Job) == []
    put(store, f"projects/proj-1/datasets/{version}/files.json", {})
    report = reingest(database, store, "code")
    assert (report.problems, report.jobs) == ([], {"queued": 1})


@pytest.mark.parametrize("began", [True, False])
def test_a_job_is_validated_again_once_its_data_set_is_ready(simulated, clock, store, tmp_path, began):
    """Both were accepted, and the end of the data set's validation is not in the store yet: one call takes them in."""
    for name, data in a_data_set().items():
        (tmp_path / "turns" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "turns" / name).write_bytes(data)
    dataset = f"file-{'0' * 26}"
    whole = resolved(tmp_path / "turns").model_dump(mode="json", by_alias=True)
    whole["spec"]["data"]["corpus"] = dataset
    place = a_job(store, "ftjob-1", spec=whole["spec"])
    if began:
        put(store, f"{place}/spec.json", whole)
        put(store, f"{place}/attempts/1/claim.json", {"claim": "x", "at": 3000.0})
    put(store, f"projects/proj-1/uploads/{dataset}/dataset.json", {"name": "d", "created_at": 1.0})
    put(store, f"projects/proj-1/uploads/{dataset}/uri", b"turns")
    report = reingest(simulated, store, "code")
    assert (report.problems, report.jobs) == ([], {"validating": 1})
    settings = Settings(
        database_url="sqlite:///unused", broker_url="redis://nowhere", store=str(store.root), data=str(tmp_path),
        cache=str(tmp_path / "cache"), code="code",
    )  # fmt: skip
    assert validate_waiting(simulated, settings, store) == 0
    assert [e["type"] for e in rows(simulated, Event)] == ["job.reingested"]  # it has cost no try
    validate_data_sets(simulated, store, settings)
    assert validate_waiting(simulated, settings, store) == 1
    (job,) = rows(simulated, Job)
    assert (job["status"], job["message"], job["attempts"]) == ("queued", "", 1 if began else 0)
    assert (job["resolved"] == whole) == began
    with simulated.read() as session:
        assert list(datasets.pins(session, "proj-1", job["resolved"]["spec"])) == [dataset]


def test_beside_a_running_service_nothing_is_changed(database, store, tmp_path):
    """A job that runs, one whose record is not written yet, and a project that has a name are as they were."""
    mine = held(database)
    mine.beat(1, state("training", 0), step(1))
    project = a_project(database)
    place = f"projects/{project}/jobs/{mine.job}"
    put(store, f"{place}/final.json", {"of": "another time"})
    put(store, f"{place}/attempts/7/claim.json", {"at": 1.0})
    before = everything(database)
    report = reingest(database, store, "code")
    assert report.there == {"project": 1, "study": 0, "dataset": 0, "job": 1}
    assert report.problems == []
    del before["key"]
    assert {k: v for k, v in everything(database).items() if k != "key"} == before
    assert mine.beat(3, step(2)) == (3, "continue")


def test_of_several_at_once_each_row_is_one(database, store, tmp_path):
    corpus = corpus_folder(tmp_path / "turns")
    for n in range(6):
        begun(store, f"ftjob-{n}", corpus, None)
    reports = at_once([lambda: reingest(database, store, "code")] * 3)
    assert sum(report.taken["job"] for report in reports) == 6
    assert [len(rows(database, model)) for model in (Project, Job, Attempt, Event)] == [1, 6, 6, 6]


def test_an_empty_project_that_gives_way_leaves_its_bases(database, store):
    empty = a_project(database)  # the new database's `default`
    with database.write() as session:
        bases.allow(session, empty, "some/base", None, "MIT")
    a_job(store, "ftjob-1")
    assert reingest(database, store, "code").problems == []
    with database.read() as session:
        assert [b.uri for b in bases.listed(session, "proj-1")] == ["some/base"]
        assert bases.listed(session, empty) == []


def test_a_project_that_is_in_use_keeps_its_name(database, store):
    made = held(database)  # in the new database's `default`
    a_job(store, "ftjob-1")
    (problem,) = reingest(database, store, "code").problems
    assert problem["id"] == "proj-1"
    names = {row["id"]: row["name"] for row in rows(database, Project)}
    assert names == {a_project(database): "default", "proj-1": "proj-1"}
    assert {row["id"] for row in rows(database, Job)} == {made.job, "ftjob-1"}


def test_what_waits_to_be_written_waits_for_the_store(database, tmp_path):
    class Away(FolderStore):
        def put(self, key, data):
            raise OSError("the store is away")

    a_job_of_the_database = held(database).job
    with pytest.raises(OSError, match="away"):
        records.write(database, Away(tmp_path / "away"))
    store = FolderStore(tmp_path / "store")
    assert records.write(database, store) == 2
    assert records.write(database, store) == 0
    assert [key.rpartition("/")[2] for key in store.list()] == ["job.json", "project.json"]
    assert a_job_of_the_database in store.list()[0]


def test_the_worker_writes_records_in_turn(database, store):
    """As a tick; two at once do no harm."""
    held(database)
    parts = Parts(database, *[None] * 2, store, None)  # type: ignore[arg-type]
    at_once([lambda: record(parts)] * 2)
    until(lambda: record(parts) or not _waits(database))
    assert len([key for key in store.list() if key.endswith("job.json")]) == 1


def _waits(database) -> bool:
    with database.read() as session:
        return records.wait(session)


# ---- the commands


def commanded(url: str, place: object, *words: str) -> subprocess.CompletedProcess[str]:
    """`python -m db reingest`."""
    told = {"ATTUNE_DATABASE_URL": url, "ATTUNE_STORE": str(place)}
    environment = {**{k: v for k, v in os.environ.items() if not k.startswith("ATTUNE_")}, **told}
    command = [sys.executable, "-m", "db", "reingest", *words]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_an_administrator_rebuilds_an_empty_database(blank_url, store, tmp_path):
    begun(store, "ftjob-1", corpus_folder(tmp_path / "turns"), DIVERGED)
    ran = commanded(blank_url, store.root, "--json")
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert (said["taken"]["job"], said["jobs"]) == (1, {"failed": 1})
    with closing(Database(blank_url)) as database, database.read() as session:
        who = keys.holder(session, said["keys"]["default"])
        assert who is not None
        assert (who.project_id, "admin" in who.scopes) == ("proj-1", True)
    put(store, "projects/proj-1/jobs/ftjob-2/job.json", b"{")
    again = commanded(blank_url, store.root)
    assert again.returncode == 1
    assert "jobs: 0 taken in, 1 there already" in again.stdout
    assert "ftjob-2: not taken in: projects/proj-1/jobs/ftjob-2/job.json: is no JSON" in again.stdout
    assert "admin key" not in again.stdout
    empty = commanded(blank_url, tmp_path / "elsewhere")
    assert (empty.returncode, "is it the service's store?" in empty.stderr) == (2, True)


def test_attune_reingest_and_the_command_line_goes_on(tmp_path, capsys):
    home = tmp_path / "home"
    instance = Instance(home)
    assert main(["reingest", "--data", str(home)]) == 2
    assert "there is no store" in capsys.readouterr().err
    store = FolderStore(instance.store)
    put(store, "projects/proj-1/project.json", {"id": "proj-1", "name": "default", "created_at": 1000.5})
    a_job(store, "ftjob-1")
    assert main(["reingest", "--data", str(home)]) == 0
    out = capsys.readouterr().out
    assert "jobs: 1 taken in (1 validating)" in out
    assert "1 unfinished job(s) go on after the next `attune up`" in out
    key = json.loads(instance.client_file.read_text())["key"]
    assert key in out
    assert main(["reingest", "--data", str(home), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["there"]["job"] == 1
    assert json.loads(instance.client_file.read_text())["key"] == key
    (home / "attune.db").write_bytes(b"no database" * 1000)
    assert main(["reingest", "--data", str(home)]) == 2
    assert "move it away and call again" in capsys.readouterr().err
