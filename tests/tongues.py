"""Tones in several languages: a data set per language, sentence numbers alike in all of them."""

import json
from pathlib import Path

LABELS = ["low", "middle", "high"]


def folder(
    at: Path, language: str, *, train: int = 0, test: int = 0, heard: bool = True, first: int = 0, prefix: bool = True
) -> Path:
    """A data set of task `tone` in `at`; `first`: number of the first training sentence; `prefix`: whether ids name the
    language. Recordings are named, not made."""
    at.mkdir(parents=True, exist_ok=True)
    task = f"name: tone\ninstruction: {{en: 'Which tone?'}}\nanswer: label\nlabels: [{', '.join(LABELS)}]\n"
    (at / "task.yaml").write_text(task)
    for split, start, count in (("train", first, train), ("test", 1000, test)):
        rows = [
            {
                "id": f"{language}-{n}" if prefix else f"{n}", "task": "tone", "language": language, "split": split,
                "label": LABELS[n % 3], "text": f"{language} sentence {n}", "speaker": f"{language}-{split}-{n % 2}",
                "audio": f"audio/{n}.wav" if heard else None, "duration_s": 0.4 if heard else None,
            } for n in range(start, start + count)
        ]  # fmt: skip
        if rows:
            (at / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return at


def world(at: Path) -> Path:
    """fr: 20 sentences, all recorded, and 4 to test; de: 8 and 6; es and vi: 4 to test each; `more`: 14 sentences of de
    without recordings, of which `de` has 8 and its test one."""
    folder(at / "fr", "fr-FR", train=20, test=4)
    folder(at / "de", "de-DE", train=8, test=6)
    folder(at / "es", "es-ES", test=4)
    folder(at / "vi", "vi-VN", test=4)
    folder(at / "more", "de-DE", train=13, heard=False)
    row = json.loads((at / "more" / "train.jsonl").read_text().splitlines()[0])
    said = {**row, "id": "in-the-test", "text": "De-DE sentence 1003."}
    with (at / "more" / "train.jsonl").open("a") as file:
        file.write(json.dumps(said) + "\n")
    return at


def job(at: Path, **fields) -> dict:
    """A cross-lingual job over `world`."""
    return {
        "name": "across", "base": "models/tiny", "language": "de", "data": {"corpus": "de", "extra_text": "more"},
        "source": {"language": "fr", "data": "fr", "speech_fraction": "25%"}, "recipe": "limited_speech", "steps": 10,
        "global_batch": 8, "evaluate": {"on": ["de:test", "es:test", "vi:test", "fr:test"]}, **fields,
    }  # fmt: skip
