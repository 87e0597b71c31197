"""Real Ray heads for tests: other ports, folder and processes than any other Ray on the machine."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil

MARK = "ATTUNE_TEST_RAY"
"""Environment variable of every process of a head; its value is the head's folder."""


@dataclass(frozen=True)
class RayHead:
    """A running head."""

    address: str
    """Its Jobs REST."""
    pid: int
    """Process and session id of `ray start`."""
    folder: Path
    token: str | None = None
    gcs: str = ""
    """Where further nodes join."""

    def processes(self) -> list[psutil.Process]:
        """All that the head started and that still live: by session, and jobs, which have their own, by environment.

        Neither alone finds all: Ray's agents overwrite their environment with a title.
        """
        return [process for process in psutil.process_iter() if self._owns(process)]

    def _owns(self, process: psutil.Process) -> bool:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            return os.getsid(process.pid) == self.pid or process.environ().get(MARK) == str(self.folder)
        except (psutil.Error, OSError):
            return False


def until(true: Callable[[], object], seconds: float = 120, every: float = 0.2) -> None:
    """Wait for a condition; fails after the deadline, which is generous because the machine may be busy."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain"
        time.sleep(every)


def free_port() -> int:
    """A TCP port that nobody listened on a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def started_ray(
    *, num_cpus: int = 2, token: str | None = None, port: int | None = None, env: Mapping[str, str] | None = None
) -> Iterator[RayHead]:
    """A head that takes jobs, at `port` where one is given; with `token` it demands it. Jobs inherit `env`. At the end
    no process and no file of it is left."""
    for last in (False, False, True):
        # Ray's sockets lie in the folder and their paths may have 107 bytes: pytest's own folders are too deep.
        folder = Path(tempfile.mkdtemp(prefix="ray-"))
        dashboard, gcs, agent = port or free_port(), free_port(), free_port()
        ports = {"port": gcs, "ray-client-server-port": free_port(), "dashboard-port": dashboard}
        options = {"temp-dir": folder, "num-cpus": num_cpus, "dashboard-host": "127.0.0.1"}
        options |= {**ports, "dashboard-agent-listen-port": agent}
        start = _start(folder, ["--head"], options, _environment(folder, token, env or {}))
        head = RayHead(f"http://127.0.0.1:{dashboard}", start.pid, folder, token, f"127.0.0.1:{gcs}")
        try:
            # Ray gives its raylet 30 s and no setting to change that: too little where every core is taken.
            if _ready(head, agent, start, token):
                yield head
                return
            assert not last, f"ray start ended:\n{(folder / 'out').read_text()[-3000:]}"
        finally:
            _kill(head, start)
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def started_node(head: RayHead, *, num_cpus: int = 2, env: Mapping[str, str] | None = None) -> Iterator[RayHead]:
    """Another node of the head's cluster: `pid` and `processes()` are the node's own."""
    folder = Path(tempfile.mkdtemp(prefix="ray-node-"))
    options = {"address": head.gcs, "num-cpus": num_cpus, "dashboard-agent-listen-port": free_port()}
    start = _start(folder, [], options, _environment(folder, head.token, env or {}))
    node = RayHead(head.address, start.pid, folder, head.token, head.gcs)
    try:
        until(lambda: start.poll() is not None or "Ray runtime started" in (folder / "out").read_text(), 240)
        assert start.poll() is None, f"ray start ended:\n{(folder / 'out').read_text()[-3000:]}"
        yield node
    finally:
        _kill(node, start)
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path, flags: list[str], options: Mapping[str, object], env: Mapping[str, str]) -> subprocess.Popen:
    command = [str(Path(sys.executable).with_name("ray")), "start", *flags, "--block", "--disable-usage-stats"]
    options = {**options, "num-gpus": 0, "object-store-memory": 80 * 2**20}
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    with open(folder / "out", "wb") as out:
        return subprocess.Popen(
            command, env=env, start_new_session=True, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        )


def _environment(folder: Path, token: str | None, env: Mapping[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # jobs call `python`, and that must be this one
    inherited["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}
    # No telemetry, no metrics, and a busy machine's memory is no reason to kill.
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_enable_metrics_collection": "0", "RAY_memory_monitor_refresh_ms": "0"}
    return {**inherited, **auth, **quiet, **env, MARK: str(folder)}


def _ready(head: RayHead, agent: int, start: subprocess.Popen[bytes], token: str | None) -> bool:
    """Wait for a head that takes jobs; False when `ray start` ended instead."""
    urls = (f"{head.address}/api/version", f"http://127.0.0.1:{agent}/api/local_raylet_healthz")
    with httpx2.Client(headers={"Authorization": f"Bearer {token}"} if token else {}) as http:

        def answers(url: str) -> bool:
            try:
                return http.get(url).status_code == 200
            except httpx2.TransportError:
                return False

        def takes_jobs() -> bool:
            # Ray writes the file when it will end no more of itself: both servers may answer before.
            return (head.folder / "ray_current_cluster").exists() and all(answers(url) for url in urls)

        until(lambda: start.poll() is not None or takes_jobs(), seconds=240)
    return start.poll() is None


def _kill(head: RayHead, start: subprocess.Popen[bytes]) -> None:
    """At once and all of it: a test's head has nothing to save, and a polite end takes Ray half a minute."""

    def gone() -> bool:
        start.poll()
        left = head.processes()
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return not left

    until(gone)
