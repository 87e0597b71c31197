"""Debian's own servers for tests, as `tests/install_servers.sh` leaves them: Postgres, Redis, Ceph's S3 gateway.

Each in a folder and on ports of its own, on loopback, with a password; it ends with us, however we end.
"""

import contextlib
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import botocore.exceptions
import psycopg
import redis
from botocore.config import Config
from postgres_start import HASTE
from ray_start import free_port, until

GUARD = '"$@" & read -r _; kill -{} $!; wait'
"""A shell ends its server when its own input ends, and that ends with us."""


@contextlib.contextmanager
def _folder(name: str) -> Iterator[Path]:
    # a socket's path may have 107 bytes: pytest's own folders are too deep
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _running(
    command: Sequence[Any], out: Path, answers: Callable[[], object], signal: str = "KILL", **as_whom: Any
) -> Iterator[None]:
    """A server during the block, which begins when it answers."""
    with open(out, "wb") as file:
        server = subprocess.Popen(
            ["sh", "-c", GUARD.format(signal), "sh", *map(str, command)], stdin=subprocess.PIPE, stdout=file,
            stderr=file, start_new_session=True, cwd="/", **as_whom,
        )  # fmt: skip
    try:
        try:
            until(answers, every=0.05)
        except AssertionError as error:
            raise AssertionError(f"{command[0]}: {error}\n{out.read_text()[-3000:]}") from None
        yield
    finally:
        server.communicate()


def _program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    assert found, f"{name} is not here; tests/install_servers.sh installs it"
    return found


@contextlib.contextmanager
def started_postgres(password: str) -> Iterator[int]:
    """The port of a Postgres with a database `attune` that belongs to a user `attune`."""
    newest = max(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: int(p.parts[-3]), default=None)
    assert newest, "no Postgres in /usr/lib/postgresql; tests/install_servers.sh installs it"
    user: dict[str, Any] = {}
    with _folder("pg") as folder:
        if os.geteuid() == 0:  # whom Postgres refuses
            of_packages = pwd.getpwnam("postgres")
            os.chown(folder, of_packages.pw_uid, of_packages.pw_gid)
            user = {"user": of_packages.pw_uid, "group": of_packages.pw_gid, "extra_groups": []}
        (folder / "password").write_text(password)
        subprocess.run(
            [newest.with_name("initdb"), "--pgdata", folder / "data", "--username=attune", "--auth=scram-sha-256",
             f"--pwfile={folder}/password", "--locale=C", "--encoding=UTF8", "--no-sync"],
            check=True, stdout=subprocess.DEVNULL, cwd="/", **user,
        )  # fmt: skip
        port = free_port()
        options = [part for setting in HASTE for part in ("-c", setting)]
        command = [newest, "-D", folder / "data", "-k", folder, "-h", "127.0.0.1", "-p", port, *options]

        def made() -> bool:
            try:
                with psycopg.connect(
                    host="127.0.0.1", port=port, user="attune", password=password, dbname="postgres", autocommit=True
                ) as connection:
                    connection.execute("CREATE DATABASE attune")
                return True
            except psycopg.OperationalError:
                return False

        with _running(command, folder / "out", made, "INT", **user):
            yield port


@contextlib.contextmanager
def started_redis(password: str, command: Sequence[str] = ("redis-server",)) -> Iterator[int]:
    """The port of a Redis that demands the password; `command` with options of its own."""
    with _folder("redis") as folder:
        port = free_port()
        options = ["--bind", "127.0.0.1", "--port", port, "--dir", folder, "--requirepass", password]

        def answers() -> bool:
            try:
                with redis.Redis(port=port, password=password) as asked:
                    return bool(asked.ping())
            except redis.ConnectionError:
                return False

        with _running([_program(command[0]), *command[1:], *options], folder / "out", answers):
            yield port


@dataclass(frozen=True)
class Gateway:
    """A running S3 service, and the keys of a user who may make buckets."""

    endpoint: str
    access_key: str
    secret_key: str


@contextlib.contextmanager
def started_s3() -> Iterator[Gateway]:
    """Ceph in its smallest form: one monitor, one store in memory, one gateway."""
    with _folder("ceph") as folder, contextlib.ExitStack() as servers:
        ceph = _Ceph(folder)

        def start(*command: str, answers: Callable[[], object]) -> None:
            words = [_program(command[0]), "--conf", ceph.conf, "--foreground", *command[1:]]
            servers.enter_context(_running(words, folder / f"{command[0]}.out", answers))

        ceph.make_monitor()
        start("ceph-mon", "--id", "a", answers=lambda: ceph.ask("ceph", "--connect-timeout=1", "status"))
        ceph.make_store()
        start("ceph-osd", "--id", "0", answers=lambda: "1 up" in ceph.ask("ceph", "osd", "stat"))
        keys = Gateway(f"http://127.0.0.1:{ceph.port}", secrets.token_hex(10), secrets.token_hex(20))
        ceph.make_user(keys)
        start("radosgw", "--name", "client.rgw.a", answers=lambda: _lists(keys))
        yield keys


def _lists(s3: Gateway) -> bool:
    client = boto3.client(
        "s3", endpoint_url=s3.endpoint, aws_access_key_id=s3.access_key, aws_secret_access_key=s3.secret_key,
        region_name="us-east-1", config=Config(retries={"total_max_attempts": 1}),
    )  # fmt: skip
    try:
        client.list_buckets()
        return True
    except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError):
        return False


class _Ceph:
    """Configuration and keys of the cluster below a folder, and the commands that make its parts."""

    def __init__(self, folder: Path):
        self.folder, self.conf, self.port = folder, folder / "ceph.conf", free_port()
        self.fsid, self.monitor = uuid.uuid4(), f"[v2:127.0.0.1:{free_port()},v1:127.0.0.1:{free_port()}]"
        for name in ("mon", "osd", "rgw"):
            (folder / name).mkdir()
        self.conf.write_text(f"""[global]
fsid = {self.fsid}
mon host = {self.monitor}
public addr = 127.0.0.1
cluster addr = 127.0.0.1
keyring = {folder}/keyring
run dir = {folder}
admin socket = {folder}/$name.asok
pid file = {folder}/$name.pid
crash dir = {folder}
log to file = false
log to stderr = true
mon data = {folder}/mon
mon allow pool size one = true
mon warn on pool no redundancy = false
mon max pg per osd = 1000
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = {2 << 30}
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
rgw data = {folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:{self.port} tcp_nodelay=1
rgw rados pool pg num min = 1
""")

    def ask(self, program: str, *arguments: object) -> str:
        """What a command says; nothing where it fails."""
        ran = subprocess.run(
            [_program(program), "--conf", self.conf, *map(str, arguments)], capture_output=True, text=True, timeout=60
        )
        return ran.stdout if ran.returncode == 0 else ""

    def do(self, program: str, *arguments: object) -> str:
        """A command that must succeed."""
        ran = subprocess.run(
            [_program(program), *map(str, arguments)], capture_output=True, text=True, timeout=120,
            env={**os.environ, "CEPH_CONF": str(self.conf)},
        )  # fmt: skip
        assert ran.returncode == 0, f"{program} {arguments}: {ran.stdout}{ran.stderr}"
        return ran.stdout

    def make_monitor(self) -> None:
        """Keys of all parts, and the monitor's first map."""
        ring, first = self.folder / "keyring", self.folder / "monmap"
        allowed = {
            "mon.": {"mon": "allow *"},
            "client.admin": {"mon": "allow *", "osd": "allow *", "mgr": "allow *"},
            "osd.0": {"mon": "allow profile osd", "osd": "allow *"},
            "client.rgw.a": {"mon": "allow rwx", "osd": "allow rwx"},
        }
        for number, (name, caps) in enumerate(allowed.items()):
            words = [part for kind, cap in caps.items() for part in ("--cap", kind, cap)]
            made = [] if number else ["--create-keyring"]
            self.do("ceph-authtool", *made, ring, "--gen-key", "--name", name, *words)
        self.do("monmaptool", "--create", "--fsid", self.fsid, "--addv", "a", self.monitor, first)
        self.do("ceph-mon", "--mkfs", "--id", "a", "--monmap", first, "--keyring", ring)

    def make_store(self) -> None:
        """The one store."""
        name = str(uuid.uuid4())
        assert self.do("ceph", "osd", "new", name).strip() == "0"
        self.do("ceph-osd", "--mkfs", "--id", "0", "--osd-uuid", name)

    def make_user(self, keys: Gateway) -> None:
        """The gateway's user."""
        self.do(
            "radosgw-admin", "user", "create", "--uid=attune", "--display-name=attune",
            f"--access-key={keys.access_key}", f"--secret={keys.secret_key}",
        )  # fmt: skip
