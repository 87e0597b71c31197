"""Several tasks in a small data set: manifests alone, or those of `toy.data` with other tasks; and a job over them."""

import json
from pathlib import Path

from trainer.resolve import read_and_resolve
from trainer.spec import parse_job

LABELS = ["low", "middle", "high"]
SCHEDULES = ("uniform", "temperature", "tpc", "ads", "tpc_ads")
TASKS = [
    {"name": "tone", "instruction": {"en": "Which tone?"}, "answer": "label", "labels": LABELS},
    {"name": "say", "instruction": {"en": "Say it."}, "answer": "text", "metrics": ["wer"]},
    {"name": "brief", "instruction": {"en": "Be brief."}, "answer": "text", "metrics": ["rouge_l"]},
]


def manifests(folder: Path, say: int = 12) -> Path:
    """24 recordings: `tone` (of the first 12 are 8 low, 3 middle, 1 high), the last `say` to be said; 10 sentences
    to make `brief`; a test of 6 recordings and a dev set of 3, of both tasks. Recordings that are there are kept,
    else only named."""
    for name, split, count in (("speech", "train", 24), ("speech", "test", 9), ("text", "train", 10)):
        path = folder / name / f"{split}.jsonl"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(_row(name, split, n)) + "\n" for n in range(count)))
        rows = [json.loads(line) for line in path.read_text().splitlines()][:count]
        for n, row in enumerate(rows):
            row |= {"task": "tone", "label": LABELS[(n >= 8) + (n >= 11)]}
            if name == "text":
                row |= {"task": "brief", "label": row["text"].split()[-1]}
            elif n >= 24 - say if split == "train" else say and n % 3 == 2:
                row |= {"task": "say", "label": None}
        if split == "test":
            held, rows = [{**row, "split": "dev"} for row in rows[6:]], rows[:6]
            path.with_name("dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _row(name: str, split: str, n: int) -> dict:
    row = {"id": f"{name}-{split}-{n}", "language": "en", "split": split, "text": f"a tone called {n}"}
    return row | ({"audio": f"audio/{split}{n}.wav", "duration_s": 1.0} if name == "speech" else {})


def fields(**changes) -> dict:
    """A short job over them."""
    return {
        "name": "scheduled", "base": "models/tiny", "language": "en", "data": {"text": "text", "speech": "speech"},
        "tasks": TASKS, "tuning": {"rank": 4, "alpha": 8, "encoder": "frozen"}, "optimizer": {"peak_lr": 0.003},
        "steps": 9, "global_batch": 8, "checkpoint_every": 2, "evaluate": {"decode": {"max_new_tokens": 4}}, **changes,
    }  # fmt: skip


def resolved(folder: Path, **changes):
    """(Resolved, Corpus) of it."""
    return read_and_resolve(parse_job(fields(**changes)), [folder])
