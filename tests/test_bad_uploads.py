"""Uploads that nobody can use are refused with the line and the remedy, and nothing is validated for ever."""

import gzip
import json
from pathlib import Path

import pytest
from db_rows import a_project
from test_api_datasets import TASK, a_data_set, clip, tarred, zipped

from db import datasets, records
from db.datasets import TRIES, VALIDATION_RETRY_S, unvalidated, validating
from db.idempotency import KEPT_S
from db.ids import new_id
from db.session import Database
from db.settings import Settings
from trainer.datasets import examine
from trainer.store import FolderStore
from worker.dataset import tick

pytest_plugins = ["databases"]
DEEP = 100_000


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        database_url="sqlite:///unused", broker_url="redis://nowhere", store=str(tmp_path / "store"),
        cache=str(tmp_path), data=str(tmp_path / "data"),
    )  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def waiting(database: Database, store: FolderStore, archive: bytes) -> str:
    """The id of a data set that was uploaded and waits."""
    project, dataset_id = a_project(database), new_id("file-")
    store.put(f"{datasets.prefix(project, dataset_id)}/parts/1", archive)
    with database.write() as session:
        datasets.add(session, project, dataset_id, "turns", "validating")
    return dataset_id


def report_of(database: Database, store: FolderStore, dataset_id: str, status: str = "refused") -> dict:
    """The report, as the service sends it and as the store keeps it."""
    records.write(database, store)
    with database.read() as session:
        row = datasets.find(session, dataset_id)
        assert row is not None
        assert row.status == status
        assert json.loads(store.get(f"{row.prefix}/settled.json"))["report"] == row.report
        return json.loads(json.dumps(row.report, ensure_ascii=False).encode())


def raw(line: bytes) -> dict[str, bytes]:
    """A data set with this for its second line."""
    files = a_data_set(rows=3)
    lines = files["train.jsonl"].splitlines(keepends=True)
    files["train.jsonl"] = b"".join([lines[0], line + b"\n", *lines[2:]])
    return files


def changed(**changes) -> dict[str, bytes]:
    return a_data_set(rows=3, **changes)


def with_recording(name: str) -> dict[str, bytes]:
    return {**a_data_set(rows=3, audio=name), name: clip(7)}


HALF, NESTED = "half of a character", "nested too deeply"
LINES = {
    "id": (changed(id="\ud800"), "bad_row", HALF),
    "text": (changed(text="nice \ud83d"), "bad_row", HALF),
    "meta": (changed(meta={"a": ["\udfff"]}), "bad_row", HALF),
    "audio": (changed(audio="audio/\ud800.wav"), "bad_row", HALF),
    "field": (changed(**{"ta\ud800sk": 1}), "bad_row", "unknown field"),
    "raw": (raw(b'{"id": "\xed\xa0\x80", "task": "turn", "language": "en", "split": "train", "text": "t"}'),
            "bad_row", HALF),
    "deep": (raw(b'{"id": "x", "meta": ' + b"[" * DEEP + b"]" * DEEP + b"}"), "bad_row", NESTED),
    "no number": (changed(meta={"a": float("nan")}), "bad_row", "what JSON cannot say"),
    "endless": (raw(b'{"id": "x", "task": "turn", "language": "en", "split": "train", "text": "t", "duration_s": 1'
                    + b"0" * 400 + b"}"), "bad_row", "too large"),
    "offset": (changed(offset_s=1e308), "audio_offset", "beyond the end"),
    "duration": (changed(duration_s=1e308), "wrong_duration", "the recording has"),
    "temporary": (with_recording(".tmp-0.wav"), "audio_name", "rename"),
    "temporary folder": (with_recording(".tmp-x/0.wav"), "audio_name", "rename"),
    "NUL": (changed(audio="a\0.wav"), "audio_name", "rename"),
    "control": (changed(audio="a\n.wav"), "audio_name", "rename"),
    "backslash": (changed(audio="audio\\train1.wav"), "audio_name", "backslash"),
    "long": (changed(audio="x" * 5000), "audio_missing", "no such file"),
}  # fmt: skip


@pytest.mark.parametrize("what", LINES)
def test_a_bad_line_is_named_with_its_remedy(database, settings, store, what):
    files, code, words = LINES[what]
    dataset_id = waiting(database, store, zipped(files))
    assert datasets.validate(database, store, settings, dataset_id)
    report = report_of(database, store, dataset_id)
    (found,) = (i for i in report["manifests"]["splits"]["issues"] if i["severity"] == "error")
    assert (found["line"], found["code"]) == (2, code)
    assert words in found["remedy"]
    assert report["errors"] == 1
    assert report["rows"] == 6


def squeezed() -> bytes:
    """Compressed bytes of which some are others now."""
    whole = bytearray(gzip.compress(a_data_set()["train.jsonl"]))
    whole[20:40] = bytes(20)
    return bytes(whole)


WHOLES = {
    "task": (zipped({**a_data_set(), "task.yaml": b"[" * DEEP}), "task.yaml: nested too deeply"),
    "half a label": (zipped({**a_data_set(), "task.yaml": TASK.encode() + b'definitions: {left: "\\ud83d"}\n'}), HALF),
    "half a key": (zipped({**a_data_set(), "task.yaml": TASK.encode() + b'"\\ud83d": 1\n'}), HALF),
    "a date": (zipped({**a_data_set(), "task.yaml": b"name: 2026-99-99\n"}), "quote it"),
    "a tag": (zipped({**a_data_set(), "task.yaml": b"name: !!int x\n"}), "quote it"),
    "manifest": (zipped({**a_data_set(), ".tmp-1.jsonl": a_data_set()["train.jsonl"]}), "the manifest '.tmp-1.jsonl'"),
    "damaged": (zipped({**a_data_set(), "train2.jsonl.gz": squeezed()}), "damaged gzip file"),
    "a name": (tarred({**a_data_set(), "not-\udcff": b""}), "is not UTF-8; rename"),
}


@pytest.mark.parametrize("what", WHOLES)
def test_where_there_is_no_line_the_data_set_is_refused(database, settings, store, what):
    archive, words = WHOLES[what]
    dataset_id = waiting(database, store, archive)
    assert datasets.validate(database, store, settings, dataset_id)
    message = report_of(database, store, dataset_id)["message"]
    assert words in message
    assert str(settings.cache) not in message


@pytest.mark.parametrize("files", [
    {"train2.jsonl": b"\n" * 9_000}, {"train2.jsonl.gz": gzip.compress(b"\n" * 9_000)},
    {f"t{n}.jsonl.gz": gzip.compress(b" " * 999) for n in range(9)},
], ids=["plain", "gzip", "together"])  # fmt: skip
def test_what_unpacks_to_too_much_is_refused_before_it_is_read(database, settings, store, monkeypatch, files):
    monkeypatch.setattr(datasets, "MANIFEST_BYTES", 8_000)
    monkeypatch.setattr(datasets, "examine", lambda *_: pytest.fail("it was read"))
    dataset_id = waiting(database, store, zipped({**a_data_set(rows=2), **files}))
    assert datasets.validate(database, store, settings, dataset_id)
    message = report_of(database, store, dataset_id)["message"]
    assert message.startswith("its manifests hold more than")
    assert "make several data sets" in message


def test_a_task_that_is_too_long_is_refused_before_it_is_read(database, settings, store):
    dataset_id = waiting(database, store, zipped({**a_data_set(rows=2), "task.yaml": b"#" * (1 << 20) + b"#"}))
    assert datasets.validate(database, store, settings, dataset_id)
    assert "task.yaml has more than 1 MiB" in report_of(database, store, dataset_id)["message"]


def test_an_emoji_is_no_half(database, settings, store):
    dataset_id = waiting(database, store, zipped(changed(text="nice \N{GRINNING FACE}")))
    assert datasets.validate(database, store, settings, dataset_id)
    assert report_of(database, store, dataset_id, "ready")["errors"] == 0


def test_a_name_of_a_folder_that_was_not_uploaded(tmp_path):
    """An archive holds no backslash; a folder may."""
    for name, data in with_recording("a\\b.wav").items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    report, version = examine(str(tmp_path))
    assert version is None
    assert report["manifests"]["splits"]["counts"]["audio_name"] == 1


class Away(FolderStore):
    """A store that cannot be asked."""

    def list(self, prefix: str = "") -> list[str]:
        raise ConnectionError("no answer")


def test_after_five_failures_it_is_refused_and_each_waits_longer(simulated, clock, settings, store, tmp_path):
    dataset_id = waiting(simulated, store, zipped(a_data_set(rows=2)))
    away = Away(tmp_path / "store")
    for n in range(1, TRIES):
        with pytest.raises(ConnectionError):
            datasets.validate(simulated, away, settings, dataset_id)
        for waited, due in ((VALIDATION_RETRY_S * n - 1, []), (2, [dataset_id])):
            clock.at += waited
            with simulated.read() as session:
                assert unvalidated(session) == due
    assert datasets.validate(simulated, away, settings, dataset_id)
    message = report_of(simulated, store, dataset_id)["message"]
    assert "failed 5 times, at last with ConnectionError: no answer; see the service's log, and send" in message
    assert not datasets.validate(simulated, store, settings, dataset_id)


def test_a_fault_that_passes_costs_nothing(simulated, clock, settings, store, tmp_path):
    dataset_id = waiting(simulated, store, zipped(a_data_set(rows=2)))
    for _ in range(TRIES - 1):
        tick(simulated, Away(tmp_path / "store"), settings)
        clock.at += 1000
    tick(simulated, store, settings)
    assert report_of(simulated, store, dataset_id, "ready")["rows"] == 4


def test_one_whose_worker_always_dies_is_refused_too(simulated, clock, settings, store):
    dataset_id = waiting(simulated, store, zipped(a_data_set(rows=2)))
    for n in range(TRIES):
        with simulated.write() as session:  # as far as a worker gets that is killed
            assert validating(session, dataset_id) == n + 1
        clock.at += 1000
    tick(simulated, store, settings)
    assert "begun 5 times" in report_of(simulated, store, dataset_id)["message"]


def test_an_upload_that_was_given_up_is_refused_after_a_week(simulated, clock, settings, store):
    """One whose sender died between its row and its files, and had no key to come back with."""
    project = a_project(simulated)
    given_up, in_time = new_id("file-"), new_id("file-")
    with simulated.write() as session:
        datasets.add(session, project, given_up, "turns", "uploading")
    waits = waiting(simulated, store, zipped(a_data_set(rows=2)))
    for passed, found in ((KEPT_S - 60, "uploading"), (120, "refused"), (120, "refused")):
        clock.at += passed
        with simulated.write() as session:
            if found == "uploading":
                datasets.add(session, project, in_time, "turns", "uploading")
            datasets.sweep(session)
        assert status_of(simulated, given_up) == found
    assert "not completed within 7 days; send it again" in report_of(simulated, store, given_up)["message"]
    assert (status_of(simulated, in_time), status_of(simulated, waits)) == ("uploading", "validating")


def status_of(database: Database, dataset_id: str) -> str:
    with database.read() as session:
        row = datasets.find(session, dataset_id)
    assert row is not None
    return row.status
