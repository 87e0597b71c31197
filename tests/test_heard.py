"""A validation that died is gone on with: what was heard is not heard again, and the report is the same."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest
from api_server import ROOT
from db_rows import a_project
from processes import until
from test_api_datasets import a_data_set, zipped

import db.heard
from db import datasets
from db.heard import Heard
from db.ids import new_id
from db.session import Database
from db.settings import Settings
from trainer.manifest import load
from trainer.recordings import Recording, examine
from trainer.store import FolderStore
from worker import dataset as ticking
from worker.dataset import tick

pytest_plugins = ["databases"]
ROWS = 30


@pytest.fixture
def url(migrated_file, tmp_path):
    return f"sqlite:///{shutil.copyfile(migrated_file, tmp_path / 'attune.db')}"


@pytest.fixture
def world(tmp_path, url):
    """(database, store, settings) with `ROWS` × 2 recordings uploaded and waiting, and the data set's id."""
    made, store = Database(url), FolderStore(tmp_path / "store")
    settings = Settings(database_url=url, broker_url="redis://127.0.0.1:1", store=str(store.root), cache=str(tmp_path))
    yield made, store, settings, uploaded(made, store)
    made.close()


def uploaded(database: Database, store: FolderStore, rows: int = ROWS) -> str:
    project, dataset_id = a_project(database), new_id("file-")
    store.put(f"{datasets.prefix(project, dataset_id)}/parts/1", zipped(a_data_set(rows)))
    with database.write() as session:
        datasets.add(session, project, dataset_id, "turns", "validating")
    return dataset_id


def settled(database: Database, dataset_id: str) -> tuple[str, dict]:
    with database.read() as session:
        row = datasets.find(session, dataset_id)
        assert row is not None
        return row.status, row.report or {}


class Ears:
    """`examine` that counts; `give_out`: raises when so many have been heard."""

    def __init__(self, give_out: int = 10**9):
        self.heard, self.give_out = 0, give_out

    def __call__(self, row):
        if self.heard == self.give_out:
            raise RuntimeError("the worker is out of breath")
        self.heard += 1
        return examine(row)


@pytest.mark.parametrize("first", [0, 1, 25, 59])
def test_the_successor_hears_the_rest_only(world, monkeypatch, first):
    database, store, settings, dataset_id = world
    monkeypatch.setattr(db.heard, "SLICE_S", 0)
    monkeypatch.setattr(db.heard, "examine", tired := Ears(give_out=first))
    with pytest.raises(RuntimeError, match="out of breath"):
        datasets.validate(database, store, settings, dataset_id)
    assert settled(database, dataset_id)[0] == "validating"
    monkeypatch.setattr(db.heard, "examine", ears := Ears())
    assert datasets.validate(database, store, settings, dataset_id)
    assert (tired.heard, ears.heard) == (first, 2 * ROWS - first)
    undisturbed = uploaded(database, store)
    assert datasets.validate(database, store, settings, undisturbed)
    assert settled(database, dataset_id) == settled(database, undisturbed)
    assert settled(database, dataset_id)[0] == "ready"


def test_a_file_of_other_bytes_is_heard_again(tmp_path, monkeypatch):
    monkeypatch.setattr(db.heard, "SLICE_S", 0)
    for name, data in a_data_set(2).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    store, rows = FolderStore(tmp_path / "store"), load(str(tmp_path))
    before = [Heard(store, "u")(row) for row in rows]
    monkeypatch.setattr(db.heard, "examine", ears := Ears())
    again = Heard(store, "u")
    assert [again(row) for row in rows] == before
    assert ears.heard == 0
    os.replace(rows[1].audio or "", rows[0].audio or "")
    found = Heard(store, "u")(rows[0])
    assert isinstance(found, Recording)
    assert found.sha256 == before[1].sha256 != before[0].sha256  # type: ignore[union-attr]


def test_a_long_validation_holds_no_tick_and_nobody_else_does_it(world, monkeypatch):
    database, store, settings, dataset_id = world
    going, go_on = threading.Event(), threading.Event()

    def slow(row):
        going.set()
        assert go_on.wait(60)
        return examine(row)

    monkeypatch.setattr(db.heard, "examine", slow)
    monkeypatch.setattr(ticking, "TICK_S", 0.2)
    tick(database, store, settings)  # returns while the recordings are being heard
    assert going.wait(60)
    assert not ticking.validate_dataset_version(database, store, settings, dataset_id)
    go_on.set()
    until(lambda: settled(database, dataset_id)[0] == "ready", 60)


@pytest.mark.process
def test_a_killed_worker_s_slices_outlive_it(world, url, monkeypatch):
    database, store, settings, dataset_id = world
    code = f"""
import db.heard, json, sys, time
from db import datasets
from db.session import Database
from db.settings import Settings
from trainer.recordings import examine
from trainer.store import open_store

def slowly(row):
    time.sleep(0.1)
    return examine(row)

db.heard.SLICE_S, db.heard.examine = 0, slowly
settings = Settings(**json.loads(sys.argv[1]))
datasets.validate(Database(settings.database_url), open_store(settings.store), settings, {dataset_id!r})
"""
    told = json.dumps(settings.model_dump(include={"database_url", "broker_url", "store", "cache"}))
    worker = subprocess.Popen([sys.executable, "-c", code, told], cwd=ROOT)
    until(lambda: len(store.list(f"projects/{a_project(database)}/uploads/{dataset_id}/heard/")) >= 3)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    assert settled(database, dataset_id)[0] == "validating"
    monkeypatch.setattr(db.heard, "examine", ears := Ears())
    assert datasets.validate(database, store, settings, dataset_id)
    assert settled(database, dataset_id)[0] == "ready"
    assert 0 < ears.heard <= 2 * ROWS - 3
