"""The fixtures `broker`, a real Valkey of the test's own behind a socket file, and `processes`, which ends what it
started: `pytest_plugins = ["broker"]` in a test module."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import Broker, Processes


@pytest.fixture
def broker() -> Iterator[Broker]:
    # a socket's path may have 107 bytes: pytest's own folders are too deep
    folder = Path(tempfile.mkdtemp(prefix="valkey-"))
    server = Broker(folder)
    server.start()
    yield server
    server.kill()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    started = Processes(tmp_path)
    yield started
    started.end()
