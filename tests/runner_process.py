"""`python -m trainer.runner` as a process of its own, on the shipped base and real recordings."""

import os
import subprocess
import sys
from pathlib import Path

from trainer.resolve import Resolved, read_and_resolve
from trainer.spec import JobSpec, parse_job

ROOT = Path(__file__).parents[1]
SECRET = "bootstrap-code-of-run-1"


def job(**changes) -> tuple[JobSpec, Resolved]:
    """Three steps on spoken Arabic commands, six of them scored."""
    commands = ROOT / "data" / "arabic_speech_commands"
    spec = parse_job({
        "name": "commands", "base": str(ROOT / "models" / "tiny"), "language": "ar",
        "data": {"speech": f"{commands}:train", "speech_per_label": 1}, "recipe": "sft",
        "tuning": {"rank": 4, "encoder": "frozen"}, "optimizer": {"peak_lr": 0.002},
        "steps": 3, "global_batch": 4, "checkpoint_every": 2,
        "evaluate": {"on": f"{commands}:dev", "text_twin": False, "limit": 6, "decode": {"max_new_tokens": 6}},
        **changes,
    })  # fmt: skip
    return spec, read_and_resolve(spec)[0]


def environment(server, store: Path, **changes: str) -> dict[str, str]:
    """What a runner of `server` is told; one thread per rank; it leaves as soon as there is no work."""
    return {
        "ATTUNE_RUNNER_ID": "run-1", "ATTUNE_BOOTSTRAP_CODE": SECRET, "ATTUNE_API_URL": server.url,
        "ATTUNE_STORE": str(store), "ATTUNE_POOL": "pool-1", "ATTUNE_IDLE_EXIT_S": "0", "ATTUNE_BEAT_S": "0.2",
        "ATTUNE_THREADS": "1", **changes,
    }  # fmt: skip


def start(server, store: Path) -> subprocess.Popen:
    """The runner without Ray."""
    return subprocess.Popen(
        [sys.executable, "-m", "trainer.runner", "--local"], cwd=ROOT, env={**os.environ, **environment(server, store)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
