"""Data sets over HTTP: by reference, at once, in parts; validated line by line; pinned by jobs; never changed."""

import http.client
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from api_server import Service, posted, until

import api.routes.datasets
from db import leases, outbox
from trainer.datasets import examine, materialise, store_version
from trainer.manifest import load
from trainer.store import DamagedError, FolderStore
from worker.dataset import tick

pytest_plugins = ["databases", "api_service"]

TASK = "name: turn\ninstruction: {en: 'Which way?'}\nanswer: label\nlabels: [left, right]\n"


def clip(seed: int, seconds: float = 0.4) -> bytes:
    """A recording that nobody else has."""
    out = io.BytesIO()
    wave = np.random.default_rng(seed).normal(0, 0.1, round(seconds * 16_000)).astype(np.float32)
    soundfile.write(out, wave, 16_000, format="WAV", subtype="PCM_16")
    return out.getvalue()


def a_data_set(rows: int = 6, **changes: Any) -> dict[str, bytes]:
    """Files of a small data set: train and test of spoken commands; `changes` go into the second training row."""
    files: dict[str, bytes] = {"task.yaml": TASK.encode()}
    for s, split in enumerate(("train", "test")):
        lines = []
        for n in range(rows):
            row = {"id": f"{split}-{n}", "task": "turn", "language": "en", "split": split, "text": f"{split} {n}",
                   "label": ("left", "right")[n % 2], "audio": f"audio/{split}{n}.wav", "duration_s": 0.4,
                   "speaker": f"{split}{n % 3}"}  # fmt: skip
            lines.append(json.dumps({**row, **(changes if (split, n) == ("train", 1) else {})}))
            files[row["audio"]] = clip(100 * s + n)
        files[f"{split}.jsonl"] = ("\n".join(lines) + "\n").encode()
    return files


def zipped(files: dict[str, bytes], inside: str = "") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(inside + name, data)
    return out.getvalue()


def tarred(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def settled(service: Service, dataset_id: str) -> dict[str, Any]:
    """The data set once it has been validated."""

    def look() -> dict[str, Any] | None:
        found = service.http.get(f"/v1/datasets/{dataset_id}").json()
        return found if found["status"] in ("ready", "refused") else None

    return until(look, 60)


def by_multipart(service: Service, files: dict[str, bytes]) -> str:
    """Manifest, task and recordings in one request."""
    manifest = files.pop("train.jsonl") + files.pop("test.jsonl")
    sent = {"manifest": manifest, "task": files.pop("task.yaml"), "archive": tarred(files, "w")}
    answer = service.http.post("/v1/datasets", data={"name": "turns"}, files=sent)
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def in_parts(service: Service, files: dict[str, bytes]) -> str:
    """An archive of one folder, cut anywhere, its parts in any order."""
    made = posted(service.http, "/v1/datasets", {"name": "turns", "parts": True})
    assert made["status"] == "uploading"
    whole = zipped(files, "turns/")
    cuts = [0, 1000, len(whole) // 2, len(whole)]
    for n in (3, 1, 2):
        part = whole[cuts[n - 1] : cuts[n]]
        sent = service.http.put(f"/v1/datasets/{made['id']}/parts/{n}", content=part)
        assert sent.json()["bytes"] == len(part)
    posted(service.http, f"/v1/datasets/{made['id']}/complete", None)
    tick(service.database, service.store, service.settings)  # of several parts: a worker's
    return made["id"]


def by_reference(service: Service, files: dict[str, bytes]) -> str:
    """Where it lies under the data roots."""
    folder = Path(service.settings.cache).parent / "root" / f"d{len(files)}-{abs(hash(str(files))) % 10**9}"
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return posted(service.http, "/v1/datasets", {"name": "turns", "uri": folder.name})["id"]


WAYS: list[Callable[[Service, dict[str, bytes]], str]] = [by_multipart, in_parts, by_reference]


@pytest.mark.parametrize("way", WAYS)
def test_a_good_one_becomes_ready(service, way):
    found = settled(service, way(service, a_data_set()))
    assert (found["status"], found["rows"], found["errors"]) == ("ready", 12, 0), found
    assert found["name"] == "turns"
    assert len(found["sha256"]) == 64
    (report,) = found["report"]["manifests"].values()
    assert report["by_split"] == {"test": 6, "train": 6}
    assert (report["recordings"], report["speakers"]) == (12, 6)
    place = f"projects/{service.project}/datasets/{found['sha256']}"
    assert service.store.exists(f"{place}/files.json")
    assert json.loads(service.store.get(f"{place}/report.json")) == found["report"]


@pytest.mark.parametrize("way", WAYS)
def test_a_bad_one_is_refused_line_by_line(service, way):
    files = a_data_set(label="lefft", audio="audio/nowhere.wav")
    files["test.jsonl"] = files["test.jsonl"].replace(b'"test-2"', b'"test-1"')
    found = settled(service, way(service, files))
    assert (found["status"], found["sha256"]) == ("refused", None)
    (report,) = found["report"]["manifests"].values()
    wrong = {(i["line"], i["code"]) for i in report["issues"] if i["severity"] == "error"}
    assert wrong == {(2, "audio_missing"), (2, "label_outside"), (9, "duplicate_id")}
    assert found["errors"] == 3
    text = json.dumps(found)
    assert "did you mean 'left'?" in text
    assert str(Path(service.settings.cache).parent) not in text  # where it lay is nobody's business
    assert service.store.list(f"projects/{service.project}/uploads/{found['id']}")


@pytest.mark.parametrize("audio", ["/etc/passwd", "../../../../etc/passwd", "audio/../../x.wav"])
@pytest.mark.parametrize("way", WAYS)
def test_recordings_of_elsewhere_are_not_opened(service, way, audio):
    found = settled(service, way(service, a_data_set(audio=audio)))
    assert found["status"] == "refused"
    (report,) = found["report"]["manifests"].values()
    assert [i["code"] for i in report["issues"] if i["severity"] == "error"] == ["audio_outside"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"notes.txt": b"x"}, "no manifest.jsonl or train/dev/test.jsonl"),
        ({"train.jsonl": b""}, "no rows"),
        ({"train.jsonl": b"{}\n", "../x": b""}, "leads out of the archive"),
        ({"train.jsonl": b"{}\n", "task.yaml": b"name: [1"}, "task.yaml"),
    ],
)
def test_what_is_no_data_set_is_said(service, files, words):
    made = service.http.post("/v1/datasets", data={"name": "bad"}, files={"archive": zipped(files)}).json()
    found = settled(service, made["id"])
    assert (found["status"], found["errors"]) == ("refused", 1)
    assert words in found["report"]["message"]
    assert str(service.settings.cache) not in found["report"]["message"]


def test_the_same_files_are_the_same_version_and_recordings_are_kept_once(service):
    first, second = (settled(service, way(service, a_data_set(rows=4))) for way in (in_parts, by_reference))
    assert first["sha256"] == second["sha256"]
    assert first["id"] != second["id"]
    blobs = service.store.list(f"projects/{service.project}/blobs/")
    other = settled(service, in_parts(service, a_data_set(rows=4, text="another text")))
    assert other["sha256"] != first["sha256"]
    assert service.store.list(f"projects/{service.project}/blobs/") == blobs


def test_a_job_and_a_study_train_on_it(service):
    dataset = settled(service, in_parts(service, a_data_set()))["id"]
    spec = {
        "name": "turns", "base": "models/tiny", "language": "en", "steps": 2, "global_batch": 4,
        "recipe": {"name": "sft"}, "data": {"speech": f"{dataset}:train"}, "tuning": {"encoder": "frozen"},
        "evaluate": {"on": f"{dataset}:test"},
    }  # fmt: skip
    plan = posted(service.http, "/v1/jobs?dry_run=true", spec)
    assert plan["sources"]["speech"]["rows"] == 6
    assert plan["test_utterances"] == 6
    job = service.queued(spec)
    pins = service.http.get(f"/v1/jobs/{job}").json()["resolved"]["sources"]["speech"]
    assert pins["ref"] == f"{dataset}:train"
    wav = service.http.get(f"/v1/jobs/{job}/audio/test-3")
    assert wav.status_code == 200
    study = {**{k: v for k, v in spec.items() if k != "name"}, "study": "s", "grid": {"seed": [1, 2]}, "controls": []}
    made = posted(service.http, "/v1/studies", study)
    assert made["jobs"] == {"queued": 2}
    # what its runner is told, and does with it
    claim = service.claimed(job)[1]
    sha256 = service.http.get(f"/v1/datasets/{dataset}").json()["sha256"]
    assert claim["inputs"] == {dataset: sha256}
    project = claim["prefix"].rsplit("/jobs/", 1)[0]
    folder = Path(service.settings.cache) / "runner" / dataset
    materialise(service.store, project, claim["inputs"][dataset], folder)
    assert [u.id for u in load(f"{dataset}:train", [folder.parent])] == [f"train-{n}" for n in range(6)]


def test_another_projects_data_cannot_be_named_in_any_way(service):
    dataset = settled(service, in_parts(service, a_data_set()))["id"]
    spec = {"name": "t", "base": "models/tiny", "language": "en", "recipe": {"name": "sft"}, "steps": 2,
            "tuning": {"encoder": "frozen"}}  # fmt: skip
    posted(service.http, "/v1/jobs?dry_run=true", {**spec, "data": {"speech": f"{dataset}:train"}})  # it is at hand now
    refs = [f"{dataset}:train", f"./{dataset}:train", f".//{dataset}:train", f"{dataset}/train.jsonl", dataset]
    with service.client("write", "stranger") as own:
        for ref in refs:
            for route in ("/v1/jobs", "/v1/jobs?dry_run=true"):
                answer = own.post(route, json={**spec, "data": {"speech": ref}, "evaluate": {"on": ref}})
                assert answer.status_code == 400, (route, ref)
                assert answer.json()["error"]["param"] == "data.speech"
                assert "no such data set" in answer.json()["error"]["message"]
            study = {k: v for k, v in spec.items() if k != "name"} | {"study": "s", "grid": {"seed": [1]}}
            answer = own.post("/v1/studies", json={**study, "data": {"speech": ref}, "evaluate": {"on": ref}})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "data.speech")
            assert own.post("/v1/datasets", json={"name": "x", "uri": ref}).status_code == 400
        assert own.get(f"/v1/datasets/{dataset}").status_code == 404
        assert own.put(f"/v1/datasets/{dataset}/parts/1", content=b"x").status_code == 404
        assert own.post(f"/v1/datasets/{dataset}/complete").status_code == 404
        assert own.get("/v1/datasets").json()["data"] == []


def test_one_that_is_not_ready_cannot_be_named(service):
    made = posted(service.http, "/v1/datasets", {"name": "later", "parts": True})["id"]
    spec = {"name": "t", "base": "models/tiny", "language": "en", "data": {"speech": f"{made}:train"}}
    error = service.http.post("/v1/jobs", json=spec).json()["error"]
    assert "the data set is uploading; a job needs one that is ready" in error["message"]


def test_parts(service):
    made = posted(service.http, "/v1/datasets", {"name": "p", "parts": True}, headers={"Idempotency-Key": "p"})
    assert posted(service.http, "/v1/datasets", {"name": "p", "parts": True}, headers={"Idempotency-Key": "p"}) == made
    place = f"/v1/datasets/{made['id']}"
    answer = service.http.post(f"{place}/complete")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "parts_missing")
    assert service.http.put(f"{place}/parts/2", content=b"b").status_code == 200
    assert "part 1 is missing" in service.http.post(f"{place}/complete").json()["error"]["message"]
    for number in (0, 65, -1, "x"):
        assert service.http.put(f"{place}/parts/{number}", content=b"b").status_code == 400
    first = service.http.put(f"{place}/parts/1", content=b"a").json()
    assert service.http.put(f"{place}/parts/1", content=b"a").json() == first
    other = service.http.put(f"{place}/parts/1", content=b"c")
    assert (other.status_code, other.json()["error"]["code"]) == (409, "part_exists")
    large = http.client.HTTPConnection(service.url.removeprefix("http://"), timeout=60)
    large.putrequest("PUT", f"{place}/parts/3")
    large.putheader("Content-Length", str((64 << 20) + 1))
    large.endheaders()
    assert large.getresponse().status == 413  # before it is sent
    posted(service.http, f"{place}/complete", None)
    posted(service.http, f"{place}/complete", None)
    late = service.http.put(f"{place}/parts/3", content=b"c")
    assert (late.status_code, late.json()["error"]["code"]) == (409, "illegal_status")
    with service.database.read() as session:
        waiting = [w for w in _wakes(session) if w == ("dataset", made["id"])]
    assert len(waiting) == 1  # two parts: a worker's
    tick(service.database, service.store, service.settings)
    assert "not a whole zip, tar or tar.gz" in settled(service, made["id"])["report"]["message"]


def _wakes(session) -> list[tuple[str, str]]:
    from sqlalchemy import select

    return [tuple(row) for row in session.execute(select(outbox.Outbox.topic, outbox.Outbox.key))]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"name": "x"}, "body"),
        ({"name": "x", "uri": "a", "parts": True}, "body"),
        ({"name": "", "parts": True}, "name"),
        ({"name": "x", "parts": True, "more": 1}, "more"),
        ({"uri": "data/fsdd"}, "name"),
        ({"name": "x", "uri": "/etc"}, "uri"),
        ({"name": "x", "uri": "../x"}, "uri"),
        ({"name": "x", "uri": "data/nowhere"}, "data"),
    ],
)
def test_what_makes_no_sense_is_refused(service, body, param):
    answer = service.http.post("/v1/datasets", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    for content in (b"{", b"[1]", b'{"name": "a\\u0000"}'):
        json_ = {"Content-Type": "application/json"}
        assert service.http.post("/v1/datasets", content=content, headers=json_).status_code == 400


@pytest.mark.parametrize("form", [{"name": ""}, {"name": "x" * 201}, {}])
def test_what_makes_no_sense_as_a_form(service, form):
    assert service.http.post("/v1/datasets", data=form, files={"archive": b"x"}).status_code == 400
    assert service.http.post("/v1/datasets", data={"name": "x"}, files={"other": b"x"}).status_code == 400
    before = len(service.http.get("/v1/datasets?limit=100").json()["data"])
    broken = service.http.post("/v1/datasets", content=b"--x\r\nnothing",
                               headers={"Content-Type": "multipart/form-data; boundary=x"})  # fmt: skip
    assert broken.status_code == 400
    assert len(service.http.get("/v1/datasets?limit=100").json()["data"]) == before


def test_the_same_files_with_the_same_key_are_one_data_set(service):
    """Also where all come at once, and where the first died between its row and its files."""
    archive = zipped(a_data_set(rows=3))

    def send(key: str = "once", name: str = "once", archive: bytes = archive):
        sent = {"data": {"name": name}, "files": {"archive": archive}}
        return service.http.post("/v1/datasets", headers={"Idempotency-Key": key}, **sent)

    def ours() -> int:
        return len([d for d in service.http.get("/v1/datasets?limit=100").json()["data"] if d["name"] == "once"])

    with ThreadPoolExecutor(8) as pool:
        answers = [sent.json() for sent in pool.map(lambda _: send(), range(8))]
    assert answers == [answers[0]] * 8
    assert answers[0]["status"] == "validating"
    assert settled(service, answers[0]["id"])["status"] == "ready"
    assert (send().json(), ours()) == (answers[0], 1)
    uploads = {key.split("/")[3] for key in service.store.list(f"projects/{service.project}/uploads/")}
    known = {d["id"] for d in service.http.get("/v1/datasets?limit=100").json()["data"]}
    assert uploads <= known  # nothing is left of the others
    for answer in (send(name="twice"), send(archive=zipped(a_data_set(rows=2)))):
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert service.http.post("/v1/datasets", headers={"Idempotency-Key": "once"},
                             json={"name": "once", "parts": True}).status_code == 422  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api.routes.datasets, "_keep", _away)
        assert send("died").status_code == 500
    assert settled(service, send("died").json()["id"])["status"] == "ready"
    assert ours() == 2
    assert send("another").json()["id"] not in known


def test_where_validation_fails_a_worker_may_have_it_at_once(service):
    def fails(*_: object) -> bool:
        gone.set()
        raise ConnectionError("no answer")

    gone = threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api.routes.datasets.datasets, "validate", fails)
        dataset_id = by_reference(service, a_data_set(rows=5))
        assert gone.wait(20)

    def free() -> bool:
        with service.database.read() as session:
            return not leases.held(session, f"dataset:{dataset_id}")

    until(free)
    tick(service.database, service.store, service.settings)
    assert settled(service, dataset_id)["status"] == "ready"


def _away(*_: object) -> None:
    raise ConnectionError("no answer")


def test_what_changed_in_the_store_is_refused(service, tmp_path):
    """A flipped byte in a recording or a manifest, a missing file: no folder is left behind."""
    files = a_data_set(rows=2)
    for name, data in files.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    report, version = examine(str(tmp_path / "in"))
    assert version is not None
    store = FolderStore(tmp_path / "store")
    sha256 = store_version(store, "projects/p", version, report)
    for key in store.list("projects/p/"):
        if key.endswith("report.json"):
            continue
        whole = store.path(key).read_bytes()
        store.path(key).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(DamagedError):
            materialise(store, "projects/p", sha256, tmp_path / "out" / "x")
        store.path(key).write_bytes(whole)
        assert not any((tmp_path / "out").glob("*"))
    folder = tmp_path / "out" / "x"
    threads = [threading.Thread(target=materialise, args=(store, "projects/p", sha256, folder)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["x"]
    assert {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}.keys() == {
        *files
    }  # fmt: skip
    assert load(str(folder)) != load(str(tmp_path / "in"))  # elsewhere
    assert examine(str(folder))[1].sha256 == sha256  # type: ignore[union-attr]


def test_further_manifests_are_kept(service):
    """Sentences beside the recordings, whose ids may be the same ones, and a single split of a data set."""
    files = a_data_set()
    rows = [json.loads(line) for line in files["train.jsonl"].splitlines()]
    sentences = [{**row, "audio": None, "duration_s": None, "speaker": None} for row in rows]
    files["text_train.jsonl"] = "".join(json.dumps(row) + "\n" for row in sentences).encode()
    found = settled(service, by_reference(service, files))
    assert found["status"] == "ready", found["report"]
    assert {name: report["rows"] for name, report in found["report"]["manifests"].items()} == {
        "splits": 12, "text_train": 6
    }  # fmt: skip
    own = Path(service.settings.datasets)
    materialise(service.store, f"projects/{service.project}", found["sha256"], own / found["id"])
    assert [u.audio for u in load(f"{found['id']}:text_train", [own])] == [None] * 6
    folder = sorted((Path(service.settings.cache).parent / "root").glob(f"d{len(files)}-*"))[0].name
    one = posted(service.http, "/v1/datasets", {"name": "test alone", "uri": f"{folder}:test"})["id"]
    alone = settled(service, one)
    assert ({*alone["report"]["manifests"]}, alone["rows"]) == ({"splits"}, 6)
