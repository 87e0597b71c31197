"""Real worker and beat processes on a real broker, and what wrong settings make of them and of the API."""

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import specs
from processes import Blocked, Broker, Processes, until

from db import events, jobs, keys, leases
from db.migrations import migrate
from db.session import Database

pytest_plugins = ["broker"]
pytestmark = pytest.mark.process


class Place:
    """A database, a data set and what processes need to know of them."""

    def __init__(self, folder: Path, url: str, broker: Broker):
        self.database = Database(url)
        self.corpus = specs.corpus_folder(folder / "data" / "turns")
        for line in (self.corpus / "train.jsonl").read_text().splitlines():
            if name := json.loads(line)["audio"]:
                (self.corpus / name).parent.mkdir(exist_ok=True)
                (self.corpus / name).write_bytes(name.encode())
        self.env = {
            "ATTUNE_DATABASE_URL": url, "ATTUNE_BROKER_URL": broker.url, "ATTUNE_STORE": str(folder / "store"),
            "ATTUNE_DATA": str(folder / "data"), "ATTUNE_RAY_ADDRESS": "http://127.0.0.1:9", "ATTUNE_MAX_RUNNERS": "0",
        }  # fmt: skip

    def submit(self) -> str:
        with self.database.write() as session:
            project, spec = keys.project(session, "default"), specs.job(Path("turns"))
            return jobs.create(session, project.id, spec, name="t", priority=0, retries=2, actor="user:key-1").id

    def has_workers(self) -> bool:
        with self.database.read() as session:
            return leases.held(session, leases.WORKER_ALIVE)

    def history(self, job: str) -> list[str]:
        with self.database.read() as session:
            found = events.after(session, job)
        return [e.data["status"] if e.type == "job.status" else e.type for e in found]


@pytest.fixture
def place(tmp_path, broker) -> Iterator[Place]:
    made = Place(tmp_path, f"sqlite:///{tmp_path}/attune.db", broker)
    with contextlib.closing(made.database):
        migrate(made.database)
        yield made


ONCE = ["job.created", "validation.started", "queued"]


@pytest.mark.timeout(600)
def test_a_submitted_job_is_validated_whatever_becomes_of_the_broker(place, broker, processes: Processes):
    """Nobody sends wake-ups but the worker itself, so the relay is part of it. Two of each may run."""
    for part in ([], [], ["beat"], ["beat"]):
        processes.start("worker", *part, env=place.env)
    made = [place.submit() for _ in range(5)]
    until(lambda: all("queued" in place.history(job) for job in made), 300, processes.logs)
    until(place.has_workers, 300, processes.logs)

    broker.kill()
    during = place.submit()
    broker.start()  # empty
    until(lambda: "queued" in place.history(during), 300, processes.logs)
    assert [place.history(job) for job in (*made, during)] == [ONCE] * 6
    processes.end()
    assert [process.returncode for process in processes.all] == [0] * 4, processes.logs()


@pytest.mark.timeout(600)
def test_a_worker_killed_in_the_middle_of_a_validation(place, processes: Processes):
    slow = Blocked(place.corpus / "audio" / "train-0.wav")
    processes.start("worker", "beat", env=place.env)
    first = processes.start("worker", env=place.env)
    job = place.submit()
    until(lambda: "validation.started" in place.history(job), 300, processes.logs)
    first.send_signal(signal.SIGKILL)
    first.wait()
    slow.release(b"there")

    processes.start("worker", env=place.env)
    until(lambda: "queued" in place.history(job), 300, processes.logs)
    assert place.history(job) == ["job.created", "validation.started", "validation.started", "queued"]


@pytest.mark.parametrize("module", ["worker", "api"])
def test_wrong_settings_stop_the_process_with_their_name(place, processes: Processes, module):
    """And show no values: some are secret."""
    given = {**place.env, "ATTUNE_RAY_TOKEN": "ray-secret"}
    for missing in ("ATTUNE_STORE", "ATTUNE_DATABASE_URL"):
        process = processes.start(module, env={k: v for k, v in given.items() if k != missing})
        assert process.wait(120) == 2
        assert f"{missing}: is not set." in processes.logs()
    assert "secret" not in processes.logs()
    assert "input_value" not in processes.logs()  # pydantic's word before the values that it was given


def test_an_address_of_ray_that_is_none_stops_the_worker(place, processes: Processes):
    process = processes.start("worker", env={**place.env, "ATTUNE_RAY_ADDRESS": "localhost:8265"})
    assert process.wait(120) == 2
    assert "ATTUNE_RAY_ADDRESS" in processes.logs()
