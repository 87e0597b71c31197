"""Small specs and data sets for tests: written to a folder, no audio unless asked for."""

import json
from pathlib import Path
from typing import Any

from trainer.resolve import Resolved, read_and_resolve
from trainer.spec import parse_job


def corpus_folder(folder: Path, *, texts: int = 40, recordings: int = 12, tests: int = 6) -> Path:
    """A data set of commands: `texts` sentences, the first `recordings` of them with an audio path, and a test."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = ["go", "stop", "left", "right"]

    def row(split: str, n: int, heard: bool) -> dict[str, Any]:
        return {
            "id": f"{split}-{n}",
            "task": "turn",
            "language": "en",
            "split": split,
            "text": f"please {labels[n % 4]} number {n}",
            "label": labels[n % 4],
            "audio": f"audio/{split}-{n}.wav" if heard else None,
            "duration_s": 1.0 + n / 10 if heard else None,
            "speaker": f"{split}-speaker-{n % 3}" if heard else None,
        }

    for split, count, heard in (("train", texts, recordings), ("test", tests, tests)):
        lines = [json.dumps(row(split, n, n < heard)) for n in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    task = {"name": "turn", "instruction": {"en": "Which way?"}, "answer": "label", "labels": labels}
    (folder / "task.yaml").write_text(json.dumps(task))
    return folder


def job(folder: Path, **fields: Any) -> dict[str, Any]:
    """A job over `corpus_folder`, any field overridden."""
    plain = {"name": "t", "base": "models/tiny", "language": "en", "data": {"corpus": str(folder)}, "steps": 10}
    return {**plain, "global_batch": 8, **fields}


def resolved(folder: Path, **fields: Any) -> Resolved:
    """The job resolved against `corpus_folder`."""
    return read_and_resolve(parse_job(job(folder, **fields)))[0]
