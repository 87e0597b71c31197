"""`attune up`, `down`, `doctor` with real processes: broker, API, worker and beat, without Ray (tests/test_local_ray.py
has that). Nothing may be left behind, and nothing touched that is not the instance's own."""

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import specs
import yaml
from ray_start import free_port, until

from attune.client import Client
from attune.instance import Instance
from attune.processes import Service

# the processes start within 5 s, unless others keep the machine busy
pytestmark = [pytest.mark.process, pytest.mark.timeout(900)]
PARTS = ["broker", "api", "worker", "beat"]


@dataclass
class Place:
    """An instance's folder and the commands run on it, each as a process."""

    folder: Path
    port: int

    def attune(self, *words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """One command."""
        left_out = ("ATTUNE_URL", "ATTUNE_API_KEY", "ATTUNE_DATABASE_URL", "ATTUNE_DATA", "ATTUNE_CACHE")
        environment = {k: v for k, v in os.environ.items() if k not in left_out} | {"ATTUNE_HOME": str(self.folder)}
        command = [sys.executable, "-m", "attune.cli", *map(str, words)]
        return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=600)

    def json(self, *words: object, code: int = 0):
        """What one prints for programs."""
        ran = self.attune(*words, "--json")
        assert ran.returncode == code, ran.stdout + ran.stderr
        return json.loads(ran.stdout)

    def status(self, job: str) -> str:
        """Where a job is; without the second that a command takes."""
        known = json.loads((self.folder / "client.json").read_text())
        with Client(known["url"], known["key"]) as client:
            return client.jobs.get(job)["status"]

    def up(self):
        """Start, or complete."""
        return self.json("up", "--no-ray", "--port", self.port)

    def processes(self) -> dict[int, str]:
        """{pid: command} of all living processes that have the folder in their environment."""
        found = {}
        for process in psutil.process_iter():
            try:
                if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                    continue
                if str(self.folder) in "\n".join(process.environ().values()):
                    found[process.pid] = " ".join(process.cmdline())
            except psutil.Error:
                continue
        return found

    def pids(self) -> dict[str, int]:
        return {path.stem: json.loads(path.read_text())["pid"] for path in (self.folder / "run").glob("*.pid")}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    made = Place(tmp_path_factory.mktemp("instance"), free_port())
    yield made
    made.attune("down", "--now")
    assert made.processes() == {}


@pytest.fixture(scope="module")
def first(place):
    """What the first `up` printed."""
    ran = place.attune("up", "--no-ray", "--port", place.port)
    assert ran.returncode == 0, ran.stderr
    return ran


@pytest.fixture
def spec(tmp_path):
    specs.corpus_folder(tmp_path / "turns")
    path = tmp_path / "job.yaml"
    base = str(Path(__file__).parent.parent / "models" / "tiny")
    path.write_text(yaml.safe_dump({**specs.job(Path("turns")), "base": base, "tuning": {"encoder": "frozen"}}))
    return path


def test_up_prints_address_and_key_once_and_keeps_secrets_from_others(place, first):
    known = json.loads((place.folder / "client.json").read_text())
    assert known["url"] == f"http://127.0.0.1:{place.port}"
    assert known["url"] in first.stdout
    assert known["key"] in first.stdout
    assert f"export ATTUNE_HOME={place.folder}" not in first.stdout  # it is the environment's already
    assert len(set(place.pids().values())) == 4
    again = place.attune("up")
    assert again.returncode == 0
    assert f"was running already: {known['url']}" in again.stdout
    assert known["key"] not in again.stdout
    assert {name: (place.folder / name).stat().st_mode & 0o077 for name in ("client.json", "instance.json")} == {
        "client.json": 0, "instance.json": 0
    }  # fmt: skip
    logs = "".join(path.read_text() for path in (place.folder / "log").iterdir())
    assert known["key"] not in logs
    sockets = [at for pid in place.pids().values() for at in psutil.Process(pid).net_connections() if not at.raddr]
    assert [tuple(at.laddr) for at in sockets] == [("127.0.0.1", place.port)]


def test_another_port_or_ray_is_refused_while_it_runs(place, first):
    for words in (("--port", free_port()), ("--data-root", place.folder)):
        ran = place.attune("up", *words)
        assert ran.returncode == 1
        assert "attune down" in ran.stderr


def test_jobs_go_through_a_real_worker(place, first, spec):
    submitted = place.json("submit", spec)
    job = submitted["job"]["id"]
    assert submitted["spec"]["data"]["corpus"] == str(spec.parent / "turns")
    until(lambda: place.status(job) == "queued", 300)
    assert [j["id"] for j in place.json("jobs", "--status", "queued")["data"]] == [job]
    assert place.json("pause", job)[0]["status"] == "paused"
    assert place.json("resume", job)[0]["status"] == "queued"
    assert place.json("cancel", job)[0]["status"] == "cancelled"
    watched = place.attune("watch", job)
    assert watched.returncode == 1
    assert "cancelled" in watched.stdout


def test_doctor_is_content(place, first):
    found = place.json("doctor", "--base", Path(__file__).parent.parent / "models" / "tiny")
    assert [f for f in found if not f["ok"]] == []
    parts = {"python", "disk", "key", "database", "broker", "store", "ray", "api", "worker", "base"}
    assert {f["what"] for f in found} >= parts


def test_what_was_killed_is_completed_and_the_rest_left_alone(place, first):
    before = place.pids()
    os.kill(before["worker"], signal.SIGKILL)
    until(lambda: not psutil.pid_exists(before["worker"]) or psutil.Process(before["worker"]).status() == "zombie")
    wrong = {f["what"]: f["message"] for f in place.json("doctor", code=1) if not f["ok"]}
    assert "worker not running" in wrong["processes"]
    assert "attune up" in wrong["processes"]
    assert place.up()["started"] == ["worker"]
    after = place.pids()
    assert {name for name in PARTS if before[name] != after[name]} == {"worker"}
    os.kill(after["broker"], signal.SIGKILL)
    os.kill(after["api"], signal.SIGKILL)
    until(lambda: Instance(place.folder).running == ["worker", "beat"])
    assert place.up()["started"] == PARTS  # who speaks with the broker starts with it
    assert place.json("doctor")[0]["ok"]


def test_down_leaves_nothing_behind_and_jobs_go_on_with_the_next_up(place, first, spec):
    assert place.up()["started"] == []
    job = place.json("submit", spec)["job"]["id"]
    until(lambda: place.status(job) == "queued", 300)
    stranger = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        pid_file = place.folder / "run" / "ray.pid"  # as if a Ray of ours had died, and its pid were another's by now
        pid_file.write_text(json.dumps({"pid": stranger.pid, "born": 1.0}))
        sockets = Instance(place.folder).sockets
        assert sockets.stat().st_mode & 0o077 == 0
        ended = place.json("down")
        assert (list(ended["ended"]), ended["unfinished_jobs"]) == (["beat", "worker", "api", "broker"], 1)
        assert place.processes() == {}
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
    assert list((place.folder / "run").glob("*.pid")) == []
    assert not sockets.exists()
    assert place.json("down")["ended"] == {}
    assert "nothing was running" in place.attune("down").stdout
    found = {f["what"]: f for f in place.json("doctor", code=1)}
    assert "attune up" in found["processes"]["message"]
    assert found["database"]["ok"]
    known = (place.folder / "client.json").read_text()
    assert place.up()["key"] is None
    assert (place.folder / "client.json").read_text() == known
    assert place.status(job) == "queued"


def test_a_port_in_use_is_said_before_anything_starts(tmp_path):
    place = Place(tmp_path / "busy", 0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = place.attune("up", "--no-ray", "--port", port)
    assert ran.returncode == 1
    assert f"port {port} cannot be used" in ran.stderr
    assert "attune up --port 8400" in ran.stderr
    assert place.processes() == {}
    assert place.attune("doctor").returncode == 1


def test_a_process_that_dies_shows_its_last_words_and_the_rest_is_ended(tmp_path):
    place = Place(tmp_path / "broken", free_port())
    place.folder.mkdir()
    (place.folder / "attune.db").write_text("this is no database, and long enough not to be taken for an empty one")
    ran = place.attune("up", "--no-ray", "--port", place.port)
    assert ran.returncode == 1
    assert "api ended" in ran.stderr
    assert "file is not a database" in ran.stderr
    assert str(place.folder / "log" / "api.log") in ran.stderr
    assert place.processes() == {}
    assert not Instance(place.folder).running


def test_a_service_is_known_by_pid_and_birth(tmp_path):
    service = Service(tmp_path, "sleeper")
    assert service.process() is None
    assert service.end() == 0
    # leaves a child in a session of its own, as jobs of Ray are
    script = "import subprocess, time; subprocess.Popen(['sleep', '600'], start_new_session=True); time.sleep(600)"
    service.start([sys.executable, "-c", script], dict(os.environ))
    until(lambda: len(service.family()) == 2)
    process = service.process()
    assert process is not None
    again = Service(tmp_path, "sleeper")
    assert again.process() == process
    known = json.loads(again.pid_file.read_text())
    again.pid_file.write_text(json.dumps({**known, "born": known["born"] + 1}))
    assert again.process() is None
    again.pid_file.write_text(json.dumps(known))
    process.kill()
    assert service._child is not None
    service._child.wait()
    assert again.process() is None
    assert len(again.family()) == 1  # known by its mark
    assert again.end() == 1
    assert again.family() == []


def test_doctor_in_production_looks_at_what_the_environment_names(tmp_path, monkeypatch, capsys):
    from attune.cli import main

    dead = f"http://127.0.0.1:{free_port()}"
    given = {
        "DATABASE_URL": f"sqlite:///{tmp_path}/none.db", "BROKER_URL": "redis://:hidden@127.0.0.1:1/0",
        "STORE": str(tmp_path / "store"), "RAY_ADDRESS": dead, "API_URL": dead, "DATA": str(tmp_path / "missing"),
    }  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(f"ATTUNE_{name}", value)
    assert main(["doctor", "--base", "nobody/nothing", "--json"]) == 1
    out = capsys.readouterr().out
    assert "hidden" not in out
    found = {f["what"]: f for f in json.loads(out)}
    assert found["store"]["ok"]
    assert "ATTUNE_DATA" in found["data folders"]["message"]
    assert "none.db does not exist" in found["database"]["message"]
    assert not (tmp_path / "none.db").exists()
    assert "ATTUNE_RAY_ADDRESS" in found["ray"]["message"]
    assert "ATTUNE_API_URL" in found["api"]["message"]
    assert not any(found[part]["ok"] for part in ("broker", "worker", "base"))
    monkeypatch.setenv("ATTUNE_MAX_RUNNERS", "many")
    assert main(["doctor"]) == 1
    assert "FAIL settings: ATTUNE_MAX_RUNNERS" in capsys.readouterr().out
