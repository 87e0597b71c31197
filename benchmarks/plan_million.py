"""How long a plan of a million rows takes: `python benchmarks/plan_million.py`.

Writes a manifest of 1,000,000 rows (half of them with a recording), reads it, resolves a curriculum of three
epochs over it and plans every stage, in a process of its own per repetition. Prints medians and spread and writes
benchmarks/results/plan_million.json.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.medians import written  # noqa: E402


def write(folder: Path, rows: int) -> None:
    """A corpus of `rows` utterances and a test of 1,000."""
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


def measure(folder: Path) -> dict[str, float]:
    """Seconds per phase and peak memory of this process."""
    from trainer.corpus import read_corpus
    from trainer.plan import plan_stage
    from trainer.resolve import resolve
    from trainer.spec import parse_job

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
    t0 = time.perf_counter()
    corpus = read_corpus(spec)
    t1 = time.perf_counter()
    resolved = resolve(spec, corpus)
    t2 = time.perf_counter()
    plans = [plan_stage(resolved, n) for n in range(len(resolved.stages))]
    t3 = time.perf_counter()
    size = sum(len(p.save()) for p in plans)
    t4 = time.perf_counter()
    return {
        "read_s": t1 - t0,
        "resolve_s": t2 - t1,
        "plan_s": t3 - t2,
        "save_s": t4 - t3,
        "presentations": sum(len(p) for p in plans),
        "plan_mb": size / 1e6,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def main() -> None:
    """Repeat in fresh processes; print and store medians with minimum and maximum."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), args.rows)
        command = [sys.executable, __file__, "--measure", folder]
        runs = [json.loads(subprocess.check_output(command)) for _ in range(args.repeat)]
    table = written("plan_million", runs, 3, rows=args.rows)
    for key, value in table.items():
        print(f"{key:14} {value['median']:>10} ({value['min']} to {value['max']})")


if __name__ == "__main__":
    main()
