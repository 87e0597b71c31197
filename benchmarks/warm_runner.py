"""From a job's submission to its first step: a warm runner against `ray job submit` of the same training.

    python benchmarks/warm_runner.py

Starts the embedded service in a folder of its own and has one job run, so that a runner holds the base. Then, in
turns: A, a further job posted to the service; B, the same spec sent to the same Ray cluster by the Jobs REST that
`ray job submit` uses, with `python -m trainer` as its command, a process that imports and loads everything. Both clocks
start when the submission has been answered and stop at the commit of the checkpoint after the first step. Only the
ratio means something on a machine that others use too; the load average stands beside every measurement.
"""

import argparse
import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from attune.client import Client  # noqa: E402
from attune.instance import Instance  # noqa: E402
from benchmarks.measure import written  # noqa: E402
from worker.ray_jobs import RayJobs  # noqa: E402

FIRST = "attempts/1/checkpoints/1/manifest.json"


def spec(seed: int) -> dict[str, Any]:
    """One step on spoken Arabic commands, two of them scored."""
    commands = ROOT / "data" / "arabic_speech_commands"
    return {
        "name": f"warm-{seed}", "base": str(ROOT / "models" / "tiny"), "language": "ar", "seed": seed, "recipe": "sft",
        "data": {"speech": f"{commands}:train", "speech_per_label": 1}, "tuning": {"encoder": "frozen"},
        "steps": 1, "global_batch": 4, "checkpoint_every": 1,
        "evaluate": {"on": f"{commands}:dev", "text_twin": False, "limit": 2, "decode": {"max_new_tokens": 6}},
    }  # fmt: skip


def until(true: Callable[[], Any], seconds: float = 900) -> Any:
    """The first true value; RuntimeError after the deadline."""
    end = time.monotonic() + seconds
    while not (found := true()):
        if time.monotonic() > end:
            raise RuntimeError(f"waited {seconds:g} s in vain")
        time.sleep(0.1)
    return found


def warm(client: Client, instance: Instance, seed: int) -> float:
    """Seconds of the service's way."""
    job = client.jobs.create(spec(seed))["id"]
    began = time.time()
    ended = client.jobs.wait(job, 900, 0.5)
    if ended["status"] != "succeeded":
        raise RuntimeError(f"{job}: {ended['status']} {ended['reason']} {ended.get('message')}")
    (manifest,) = (instance.folder / "store").glob(f"projects/*/jobs/{job}/{FIRST}")
    return manifest.stat().st_mtime - began


def cold(ray: RayJobs, folder: Path, seed: int) -> float:
    """Seconds of a process of its own."""
    (folder / f"{seed}.json").write_text(json.dumps(spec(seed)))
    out, name = folder / f"out-{seed}", f"cold-{os.getpid()}-{seed}"
    command = shlex.join([sys.executable, "-m", "trainer", str(folder / f"{seed}.json"), "--out", str(out)])
    ray.submit(name, f"exec {command}", env={"PYTHONPATH": str(ROOT)})
    began = time.time()
    job = until(lambda: (found := ray.info(name)) and found.ended and found)
    if job.status != "SUCCEEDED":
        raise RuntimeError(job.message)
    return (out / FIRST).stat().st_mtime - began


def measure(folder: Path, repeat: int) -> None:
    """The rounds, each stored as soon as it is there, on a service that is ended afterwards."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    # the runner inherits this from Ray; a cold run may take longer than a runner waits for work
    environment = {**os.environ, "ATTUNE_HOME": str(folder / "home"), "ATTUNE_IDLE_EXIT_S": "3600"}
    attune = [sys.executable, "-m", "attune.cli"]
    try:
        subprocess.run([*attune, "up", "--port", str(port)], env=environment, cwd=ROOT, check=True)
        instance = Instance(folder / "home")
        known = json.loads(instance.client_file.read_text())
        token = instance.ray_token_file.read_text()
        with Client(known["url"], known["key"]) as client, RayJobs(instance.ray_address, token, 60) as ray:
            first, rounds = warm(client, instance, 0), []
            print(f"first job, its runner cold: {first:.1f} s", flush=True)
            for seed in range(1, repeat + 1):
                found = {"load_a": os.getloadavg()[0], "warm_s": warm(client, instance, seed)}
                found |= {"load_b": os.getloadavg()[0], "cold_s": cold(ray, folder, seed)}
                rounds.append({**found, "ratio": found["cold_s"] / found["warm_s"]})
                print("  ".join(f"{k} {v:.2f}" for k, v in rounds[-1].items()), flush=True)
                store(first, rounds)
    finally:
        subprocess.run([*attune, "down", "--now"], env=environment, cwd=ROOT)


def store(first: float, rounds: list[dict[str, float]]) -> None:
    """Write down all rounds so far."""
    written(
        "warm_runner", rounds, 2, first_job_s=round(first, 2),
        peer="ray job submit of python -m trainer (cold_s), in turns with the service (warm_s), one Ray cluster",
        rounds=[{key: round(value, 2) for key, value in each.items()} for each in rounds],
    )  # fmt: skip


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="warm-") as folder:
        measure(Path(folder), args.repeat)


if __name__ == "__main__":
    main()
