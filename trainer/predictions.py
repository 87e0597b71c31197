"""Prediction rows: what was answered to each test utterance, with counts that add up to every metric (light)."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trainer import answers
from trainer.labels import Names
from trainer.metrics import count, named
from trainer.rng import permutation
from trainer.spec import Task
from trainer.store import Store
from trainer.tokens import own_task, reference

Row = dict[str, Any]
FOLLOWING = "definition_following"
SPEECH, TEXT, CASCADE = "speech", "text", "cascade"
"""Ways in which a test utterance is put: its recording, its transcript, the base's own transcript of it."""


def prediction(
    utterance,
    task: Task,
    modality: str,
    text: str,
    heard: str | None = None,
    confidence: float | None = None,
    names: Names | None = None,
) -> Row:
    """One row of predictions.jsonl (decisions, section 8). `heard`: the transcript that a cascade answered.
    `confidence`: probability of the answer among all labels or choices, where these are scored by likelihood. `names`:
    under which labels were shown; `parsed` has their real ones. `duration_s` is the manifest's, `normaliser` (text
    answers) what error rates were counted after."""
    label = reference(utterance, task)
    parsed, valid = answers.parse(text, own_task(utterance, names.task if names else task))
    parsed = names.back(parsed) if names else parsed
    row = {
        "utterance": utterance.id,
        "task": task.name,
        "language": utterance.language,
        "speaker": utterance.speaker,
        "duration_s": utterance.duration_s,
        "modality": modality,
        "reference": label,
        "text": text,
        "parsed": parsed,
        "valid": valid,
        "counts": count(label, parsed if valid else None, task, confidence),
    }
    if task.answer == "text":
        row["normaliser"] = task.normaliser
    if names and names.permuted:
        row["counts"][FOLLOWING] = named(FOLLOWING).counts(label, parsed, task, names.shown)
    told = {"heard": heard, "confidence": confidence}
    return row | {key: value for key, value in told.items() if value is not None}


def put(row: Mapping[str, Any]) -> tuple[str, int | None, str, str | None]:
    """How an utterance, or those of a score, was put: modality, demonstrations, names of its labels, and what the
    demonstrations were looked up by; none of the last three where they are plain."""
    return row.get("modality", ""), row.get("shots"), row.get("labels") or "regular", row.get("query_text")


def in_words(row: Mapping[str, Any]) -> str:
    """`put` in words: 'speech', or 'speech, 3-shot by asr, labels permuted'."""
    modality, shots, labels, by = put(row)
    shown = [] if shots is None else [f"{shots}-shot{f' by {by}' if by else ''}"]
    return ", ".join([modality, *shown, *([] if labels == "regular" else [f"labels {labels}"])])


def limited(utterances: Sequence, limit: int | None, seed: int = 0) -> list:
    """The first `limit` utterances of one seeded order (of ids, hence whatever the manifest's order)."""
    if limit is None or limit >= len(utterances):
        return list(utterances)
    by_id = sorted(utterances, key=lambda u: u.id)
    return [by_id[i] for i in permutation(seed, "evaluate.limit", len(by_id))[:limit]]


def by_task(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows per task, in order of first appearance: metrics of different tasks do not mix."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["task"], []).append(row)
    return found


def right(row: Row, metric: str) -> bool:
    """Whether the answer is the reference, or as good as it by `metric` (a transcript in other spelling)."""
    if not row["valid"]:
        return False
    if row["parsed"] == row["reference"]:
        return True
    meter = named(metric)
    counts = row["counts"].get(metric)
    return counts is not None and meter.value(counts) == (1.0 if meter.higher_is_better else 0.0)


def to_lines(rows: Iterable[Row]) -> bytes:
    """Rows as a file of JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def read_lines(file: bytes) -> list[Row]:
    """The rows of such a file."""
    return [json.loads(line) for line in file.splitlines()]  # of bytes: a text's also split at what an answer may hold


def read_predictions(store: Store, attempt: str) -> dict[str, list[Row]]:
    """All rows that an attempt (its place in the store, without a slash at its end) left, by modality; of further
    conditions by modality and what tells them from the main one, parted by dots (`speech.3-shot`)."""
    keys = store.list(f"{attempt}/predictions/")
    return {key.rsplit("/", 1)[-1].removesuffix(".jsonl"): read_lines(store.get(key)) for key in keys}
