"""Time and memory of a plan of 10,000, 100,000 and 1,000,000 rows: `python benchmarks/plan_million.py`.

Writes a manifest (half of its rows with a recording), reads it, resolves a curriculum of three epochs over it, plans
every stage, stores the plans, and walks through all steps of the mapped plans as training does, looking up the rows of
each. In a process of its own per repetition, sizes in turns. Prints medians and spread and writes
benchmarks/results/plan_million.json.
"""

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
SIZES = (10_000, 100_000, 1_000_000)

from benchmarks.measure import written  # noqa: E402


def write(folder: Path, rows: int) -> None:
    """A corpus of `rows` utterances and a test of 1,000."""
    folder.mkdir()
    task = {"name": "t", "instruction": {"en": "What?"}, "answer": "label", "labels": ["a", "b"]}
    (folder / "task.yaml").write_text(json.dumps(task))
    for split, count in (("train", rows), ("test", 1000)):
        with (folder / f"{split}.jsonl").open("w") as file:
            for n in range(count):
                heard = n % 2 == 0
                row = {
                    "id": f"{split}-{n}",
                    "task": "t",
                    "language": "en",
                    "split": split,
                    "text": f"sentence number {n} of the corpus",
                    "label": "ab"[n % 2],
                    "audio": f"audio/{split}/{n}.wav" if heard else None,
                    "duration_s": 2.5 if heard else None,
                    "speaker": f"s{n % 1000}" if heard else None,
                }
                file.write(json.dumps(row) + "\n")


def resident_mib() -> float:
    """Memory of this process that is its own (mapped files, which the kernel may drop, are not counted), MiB."""
    _, total, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return (total - shared) * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(folder: Path) -> dict[str, float]:
    """Seconds per phase (by the clock, and of processor time, which other work here stretches less) and memory of this
    process after each."""
    from trainer.corpus import read_corpus
    from trainer.plan import StagePlan, plan_stage
    from trainer.resolve import resolve
    from trainer.spec import parse_job
    from trainer.store import FolderStore

    spec = parse_job(
        {
            "name": "million",
            "base": "Qwen/Qwen2-Audio-7B-Instruct",
            "language": "en",
            "data": {"corpus": str(folder), "speech_fraction": "10%"},
            "recipe": {"name": "limited_speech", "scheme": "curriculum"},
            "evaluate": {"on": f"{folder}:test"},
        }
    )
    store = FolderStore(tempfile.mkdtemp(dir=folder.parent))
    said: dict[str, float] = {"start_mib": resident_mib()}
    began = time.perf_counter(), time.process_time()

    def phase(name: str) -> None:
        nonlocal began
        now = time.perf_counter(), time.process_time()
        said[f"{name}_s"], said[f"{name}_cpu_s"] = now[0] - began[0], now[1] - began[1]
        gc.collect()
        said[f"{name}_mib"] = resident_mib()
        began = time.perf_counter(), time.process_time()

    corpus = read_corpus(spec)
    phase("read")
    resolved = resolve(spec, corpus)
    phase("resolve")
    keys = [f"plan/{stage.name}.npz" for stage in resolved.stages]
    plans: Any = [plan_stage(resolved, n) for n in range(len(keys))]
    phase("plan")
    for key, plan in zip(keys, plans, strict=True):
        store.put(key, plan.save())
    phase("save")
    del plans, plan
    plans = [StagePlan.fetch(store, key) for key in keys]
    phase("map")
    batch, letters = spec.global_batch, 0
    for stage, plan in zip(resolved.stages, plans, strict=True):
        rows = [corpus.sources[name].rows for name in stage.sources]
        for t in range(stage.steps):
            at = plan.step(t, batch)
            for i in range(at.start, at.stop):
                letters += len(rows[plan.source[i]][int(plan.row[i])].text or "")
    assert letters
    phase("steps")
    steps = sum(stage.steps for stage in resolved.stages)
    said["cpu_us_per_step"] = said["steps_cpu_s"] / steps * 1e6
    said["steps"] = steps
    said["presentations"] = sum(len(p) for p in plans)
    said["plan_mb"] = sum(store.path(key).stat().st_size for key in keys) / 1e6
    said["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return said


def main() -> None:
    """Repeat in fresh processes; print and store medians with minimum and maximum."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=SIZES)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure)))
        return
    runs: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for rows in args.rows:
            write(Path(folder) / str(rows), rows)
        for _ in range(args.repeat):
            runs.append({})
            for rows in args.rows:
                command = [sys.executable, __file__, "--measure", str(Path(folder) / str(rows))]
                said = json.loads(subprocess.check_output(command))
                runs[-1] |= {f"{rows} {key}": value for key, value in said.items()}
    versions = {name: version(name) for name in ("attune", "numpy", "pydantic")}
    load = round(os.getloadavg()[0], 1)
    found = written("plan_million", runs, 3, rows=args.rows, versions=versions, load_average=load)
    print(f"{'':16}" + "".join(f"{rows:>26,}" for rows in args.rows))
    for key in (name.partition(" ")[2] for name in found if name.startswith(f"{args.rows[0]} ")):
        cells = (found[f"{rows} {key}"] for rows in args.rows)
        print(f"{key:16}" + "".join(f"{c['median']:g} ({c['min']:g}–{c['max']:g})".rjust(26) for c in cells))


if __name__ == "__main__":
    main()
