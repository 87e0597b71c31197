"""Processes that outlive the command that starts them, found again and ended without guessing.

Each leads a session of its own. Its pid file holds pid and time of birth, so that a process that has got its pid since
is not taken for it. What it starts in turn is known by session, by the mark in the environment (jobs of Ray have
sessions of their own) or by parent; no one of these finds all, for Ray's agents overwrite their environment.
"""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

MARK = "ATTUNE_INSTANCE"
"""Environment variable that a service hands down; its value is the service's pid file."""


class ProcessError(RuntimeError):
    """A process ended, or was not ready in time; the message has the end of its log."""


class Service:
    """One long-running process: `folder`/run/`name`.pid and `folder`/log/`name`.log are its own."""

    def __init__(self, folder: Path, name: str):
        self.folder, self.name = folder, name
        self.pid_file = folder / "run" / f"{name}.pid"
        self.log = folder / "log" / f"{name}.log"
        self._child: subprocess.Popen[bytes] | None = None

    def process(self) -> psutil.Process | None:
        """The living process, or None."""
        try:
            known = json.loads(self.pid_file.read_text())
            process = psutil.Process(known["pid"])
            alive = process.status() != psutil.STATUS_ZOMBIE and _born(process) == known["born"]
        except (OSError, ValueError, KeyError, psutil.Error):
            return None
        return process if alive else None

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Run `command` in a session of its own; it works in the folder `run`. Its last log is kept as `.log.1`."""
        for folder in (self.pid_file.parent, self.log.parent):
            folder.mkdir(parents=True, exist_ok=True)
        if self.log.exists():
            os.replace(self.log, self.log.with_suffix(".log.1"))
        with open(self.log, "wb") as log:
            self._child = subprocess.Popen(
                command,
                env={**environment, MARK: str(self.pid_file)},
                cwd=self.pid_file.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        known = {"pid": self._child.pid, "born": _born(psutil.Process(self._child.pid))}
        new = self.pid_file.with_suffix(".new")
        new.write_text(json.dumps(known))
        new.replace(self.pid_file)

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Until `ready`; ProcessError where the process ends before or `seconds` pass."""
        deadline = time.monotonic() + seconds
        while not ready():
            if self._ended():
                raise ProcessError(f"{self.name} ended\n{self.last_words()}")
            if time.monotonic() > deadline:
                raise ProcessError(f"{self.name} was not ready within {seconds:.0f} s\n{self.last_words()}")
            time.sleep(0.1)

    def _ended(self) -> bool:
        if self._child is not None:  # a child stays a zombie until it is asked
            return self._child.poll() is not None
        return self.process() is None

    def last_words(self, lines: int = 15) -> str:
        """The end of the log, and where the rest is."""
        try:
            end = self.log.read_bytes()[-8000:].decode(errors="replace").splitlines()[-lines:]
        except OSError:
            end = []
        return "\n".join([*(f"  {line}" for line in end), f"the whole log: {self.log}"])

    def end(self, patience_s: float = 0) -> int:
        """SIGTERM to the process and `patience_s` seconds for it, then SIGKILL to all that is left of its family.
        Returns how many processes there were."""
        process, ended = self.process(), set(self.family())
        if process is not None and patience_s:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
            psutil.wait_procs([process], timeout=patience_s)
        while left := self.family():  # while one is killed another may start a third
            ended.update(left)
            for each in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
            psutil.wait_procs(left, timeout=10)
        self.pid_file.unlink(missing_ok=True)
        return len(ended)

    def family(self) -> list[psutil.Process]:
        """What lives of the process, of its session, of sessions with a process that has its mark, and all their
        children. Never the caller or one that the caller was started by."""
        leader = self.process()
        spared = {os.getpid(), *(p.pid for p in psutil.Process().parents())}
        parents: dict[psutil.Process, int] = {}
        sessions: dict[psutil.Process, int] = {}
        ours = set() if leader is None else {leader.pid}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.pid in spared or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                parents[process], sessions[process] = process.ppid(), os.getsid(process.pid)
                if _mark(process) == str(self.pid_file):
                    ours.add(sessions[process])
        found = {process for process, session in sessions.items() if session in ours}
        while more := {p for p, parent in parents.items() if p not in found and parent in {f.pid for f in found}}:
            found |= more
        return list(found)


def _mark(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARK)
    except (psutil.Error, OSError):  # another user's
        return None


def _born(process: psutil.Process) -> float:
    """Seconds from the machine's start to the process's: setting the clock moves both times it is made of."""
    return round(process.create_time() - psutil.boot_time(), 2)
