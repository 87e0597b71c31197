"""The whole service as real processes, for tests: broker, database, API, worker, beat, Ray, a store.

    with Stand(folder) as stand:
        job = stand.client.jobs.create(spec)

Settings are the environment's own names; what they name (`ATTUNE_DATABASE_URL`, `ATTUNE_BROKER_URL`, `ATTUNE_STORE`,
`ATTUNE_RAY_ADDRESS` with `ATTUNE_RAY_TOKEN`) is used as it is, the rest is started here: SQLite, Valkey, a folder, a
Ray head that asks for a token. At the end nothing of it is left.
"""

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import httpx2
import psutil
from processes import Broker, Processes, until
from ray_start import RayHead, free_port, started_ray

from attune.client import Client
from db import jobs, keys
from db.migrations import migrate
from db.session import Database
from trainer.store import Store, open_store

ROOT = Path(__file__).parent.parent
MODULES = {"api": ["api"], "worker": ["worker"], "beat": ["worker", "beat"]}
RANK = "ray::RayTrainWorker"
"""Title of a process in which a rank trains."""
QUICK = {
    "ATTUNE_BEAT_S": "0.5", "ATTUNE_THREADS": "1",
    # processes of Ray Train's own that nothing here is about, three seconds of a core for every runner that starts
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_TRAIN_METRICS_ENABLED": "0",
}  # fmt: skip
"""What a head of the stand's own tells its jobs, beside the caller's `runner`."""


class Stand:
    """One service. `head`: a Ray of the caller's; `runner`: environment of the jobs of the stand's own."""

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, str] | None = None,
        *,
        head: RayHead | None = None,
        runner: Mapping[str, str] | None = None,
        project: str = "default",
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.processes, self.broker, self.head = Processes(folder), None, head
        self._given, self._runner, self._project = dict(settings or {}), {**QUICK, **(runner or {})}, project
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._ends, self._ray = contextlib.ExitStack(), contextlib.ExitStack()
        self._ray_port = free_port()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as ends:
            ends.callback(self._end)
            self._start()
            ends.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    # ---- parts: `api`, `worker`, `beat`, `broker`, `ray`

    def start(self, part: str) -> None:
        """Start a part, and wait until it can be spoken to."""
        match part:
            case "broker":
                assert self.broker is not None, "the broker is the caller's"
                self.broker.start(empty=False)
            case "ray":
                self.head = self._ray.enter_context(started_ray(token="stand", port=self._ray_port, env=self._runner))
            case _:
                arguments = ["--port", str(self.port)] if part == "api" else []
                self._running[part] = self.processes.start(*MODULES[part], *arguments, env=self.settings)
                if part == "api":
                    until(self._ready, 240, self.logs)

    def kill(self, part: str) -> None:
        """kill -9."""
        match part:
            case "broker":
                assert self.broker is not None, "the broker is the caller's"
                self.broker.kill()
            case "ray":
                self._ray.close()
                self.head = None
            case _:
                process = self._running.pop(part)
                process.kill()
                process.wait()

    # ---- runners

    def drivers(self) -> list[psutil.Process]:
        """Entry points of runners: what Ray started for the service."""
        assert self.head is not None
        return named(self.head, "-m trainer.runner")

    def ranks(self) -> list[psutil.Process]:
        """Processes on the head in which the ranks of runners train."""
        assert self.head is not None
        return named(self.head, RANK)

    # ---- looking

    def store(self, job_id: str) -> Store:
        """What a job has left."""
        with self.database.read() as session:
            found = jobs.find(session, job_id)
        assert found is not None
        return open_store(f"{self.settings['ATTUNE_STORE'].rstrip('/')}/projects/{found.project_id}/jobs/{job_id}")

    def logs(self) -> str:
        """What all processes and runners have said."""
        said = [self.processes.logs()]
        if self.head:
            for path in sorted(self.head.folder.glob("session_latest/logs/job-driver-*.log")):
                said.append(f"--- {path.name}\n{path.read_text()[-5000:]}")
        return "\n".join(said)[-30_000:]

    # ---- from nothing to all and back

    def _start(self) -> None:
        given = self._given
        if "ATTUNE_BROKER_URL" not in given:
            # a socket's path may have 107 bytes: pytest's own folders are too deep
            folder = Path(tempfile.mkdtemp(prefix="valkey-"))
            self._ends.callback(shutil.rmtree, folder, ignore_errors=True)
            self.broker = Broker(folder)
            self._ends.callback(self.broker.kill)
            self.broker.start()
            given["ATTUNE_BROKER_URL"] = self.broker.url
        if self.head is None and "ATTUNE_RAY_ADDRESS" not in given:
            self.start("ray")
        if self.head is not None:
            given["ATTUNE_RAY_ADDRESS"] = self.head.address
            given |= {"ATTUNE_RAY_TOKEN": self.head.token} if self.head.token else {}
        self.settings = {
            "ATTUNE_DATABASE_URL": f"sqlite:///{self.folder / 'attune.db'}",
            "ATTUNE_STORE": str(self.folder / "store"), "ATTUNE_DATA": str(ROOT), "ATTUNE_TRUSTED": "1",
            "ATTUNE_CACHE": str(self.folder / "cache"), "ATTUNE_API_URL": self.url, **given,
        }  # fmt: skip
        self.database = Database(self.settings["ATTUNE_DATABASE_URL"])
        self._ends.callback(self.database.close)
        migrate(self.database)
        with self.database.write() as session:
            project = keys.project(session, self._project)
            self.key = keys.issue(session, project.id, "stand", "admin", "stand")[1]
        for part in MODULES:
            self.start(part)
        self.client = self._ends.enter_context(Client(self.url, self.key))

    def _ready(self) -> bool:
        assert self._running["api"].poll() is None, self.logs()
        try:
            return httpx2.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx2.TransportError:
            return False

    def _end(self) -> None:
        self._ray.close()  # first: nothing of it is worth a worker's last words
        self.processes.end()
        self._ends.close()


def named(head: RayHead, words: str) -> list[psutil.Process]:
    """Processes of a head or node whose command line or title has these words."""
    found = []
    for process in head.processes():
        with contextlib.suppress(psutil.Error):
            if words in " ".join(process.cmdline()):
                found.append(process)
    return found


def kill_all(processes: list[psutil.Process]) -> None:
    """kill -9 of each; there must be one."""
    assert processes
    for process in processes:
        process.kill()
