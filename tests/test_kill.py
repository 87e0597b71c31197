"""kill -9 at 20 moments, also while a checkpoint is written: the resumed run ends with the same bytes."""

import multiprocessing
import os
import random
import signal
import time

import pytest
import toy

from trainer.run import run
from trainer.store import FolderStore

KILLS = 20
FORK = multiprocessing.get_context("fork")  # a fresh interpreter would spend most of the test importing torch


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return toy.base(folder / "base"), toy.data(folder / "data")


def job(world, out, die_at_sync=0):
    """The child: one attempt. `die_at_sync`: SIGKILL to itself at this call of fsync, that is in a write."""
    if die_at_sync:
        sync, calls = os.fsync, iter(range(1, 1_000_000))

        def fsync(handle):
            if next(calls) == die_at_sync:
                os.kill(os.getpid(), signal.SIGKILL)
            sync(handle)

        os.fsync = fsync
    resolved, corpus = toy.resolved(*world, steps=12)
    run(resolved, FolderStore(out), corpus=corpus, threads=1)


def attempt(world, out, die_after=None, die_at_sync=0) -> bool:
    """Whether the attempt was killed (else it came to its end)."""
    child = FORK.Process(target=job, args=(world, out, die_at_sync))
    child.start()
    child.join(die_after)
    if child.is_alive():
        child.kill()
        child.join()
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode != 0


def left(out):
    """(adapter bytes, predictions) of a finished run."""
    store = FolderStore(out)
    finals = [k for k in store.list("attempts/") if k.endswith("12/adapter/adapter_model.safetensors")]
    answers = [k for k in store.list("attempts/") if k.endswith("predictions/speech.jsonl")]
    return store.get(finals[-1]), store.get(answers[-1])


def test_killed_anywhere_the_resumed_run_ends_with_the_same_bytes(world, tmp_path):
    began = time.monotonic()
    assert not attempt(world, tmp_path / "calm")
    length = time.monotonic() - began
    want = left(tmp_path / "calm")
    moments, kills, runs, half_written = random.Random(7), 0, 0, 0
    while kills < KILLS:
        out, runs = tmp_path / f"run{runs}", runs + 1
        for n in range(4):
            killed = (
                attempt(world, out, die_after=length * moments.uniform(0.2, 0.95))
                if n % 2
                else attempt(world, out, die_at_sync=moments.randint(1, 60))
            )
            kills += killed
            half_written += _uncommitted(out)
            if not killed:
                break
        if not FolderStore(out).exists("final.json"):
            assert not attempt(world, out)
        assert left(out) == want
        assert runs < 3 * KILLS
    assert half_written  # some did hit a checkpoint being written


def _uncommitted(out) -> bool:
    folders = [p for p in out.glob("attempts/*/checkpoints/*") if p.is_dir()]
    return any(not (p / "manifest.json").exists() for p in folders)
