"""The task that a set of labels amounts to: answer form, labels, slots in schema order, what might be closed."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from attune.importing.records import Record
from attune.importing.source import BadRow, SourceError
from trainer.spec import Task
from trainer.utterance import unfit

INSTRUCTIONS = {
    "json": "What is the intent of the utterance and which slots does it fill? Answer in JSON.",
    "label": "Which label fits the utterance? Answer with the label only.",
    "label_set": "Which labels fit the utterance? Answer with the labels, separated by commas.",
    "choice": "Which of the choices is right? Answer with its words only.",
    "text": "Transcribe the speech.",
}
NAMES = {
    "json": "intent_slots", "label": "label", "label_set": "labels", "choice": "multiple_choice", "text": "transcribe",
}  # fmt: skip

CLOSED_VALUES, ROWS_PER_VALUE = 20, 5


def answer_form(records: Sequence[Record], said: str | None, notes: list[str]) -> str:
    """json | label | label_set | choice | text, from what the labels look like unless `said`.

    A chat row's answer is a transcript where the answers are sentences of many kinds, else a label.
    """
    answers = [r.answer for r in records if r.answer is not None]
    if said:
        return said
    if any(r.choices for r in records):
        return "choice"
    if answers and all(r.label is None for r in records):
        words = sum(len(a.split()) for a in answers) / len(answers)
        if len(set(answers)) * 2 > len(answers) and words >= 3:
            notes.append("the answers are sentences, mostly different: taken as transcripts (--answer label overrides)")
            return "text"
        return "label"
    labels = [r.label for r in records if r.label is not None]
    if any(isinstance(label, dict) for label in labels):
        return "json"
    if any(isinstance(label, list) for label in labels):
        return "label_set"
    if not labels:
        if not any(r.audio for r in records):
            raise SourceError("neither labels nor recordings: there is nothing to learn; say --label COLUMN")
        notes.append("no labels: the task is to transcribe")
        return "text"
    distinct = len({str(label) for label in labels})
    if distinct > 50 and distinct * 2 > len(labels):
        notes.append(
            f"{distinct} different labels in {len(labels)} rows: if they are transcripts, say --text COLUMN --label -"
        )
    return "label"


def fit_labels(records: list[Record], answer: str, bad: list[BadRow]) -> list[Record]:
    """The records with labels in the task's form; those without one, or in another form, go to `bad`."""
    fitted = []
    for record in records:
        if record.answer is not None and record.label is None:
            if answer == "text":
                record.text = record.text or record.answer
            else:
                record.label = record.answer
        if answer == "label_set" and isinstance(record.label, str):
            parts = record.label.replace(";", ",").replace("|", ",").split(",")
            record.label = [part.strip() for part in parts if part.strip()]
        if answer == "json" and isinstance(record.label, str):
            record.label = {"intent": record.label, "slots": []}
        if record.choices and answer not in ("choice", "text"):
            reason = f"has choices, which answer {answer} does not take; leave --answer out, or say --choices -"
            bad.append(BadRow(record.line, reason))
            continue
        form = {"json": dict, "label": str, "label_set": list, "choice": str}.get(answer)
        if answer == "text":
            record.label = record.choices = None
            if not record.text:
                bad.append(BadRow(record.line, "no transcript"))
                continue
        elif form is not None and not isinstance(record.label, form):
            bad.append(BadRow(record.line, f"no {answer} label (given: {record.label!r})"))
            continue
        elif answer == "choice" and (wrong := unfit(record.choices, record.label)):
            bad.append(BadRow(record.line, f"choices: {wrong}"))
            continue
        fitted.append(record)
    return fitted


def infer_task(
    records: Sequence[Record], answer: str, name: str | None, instruction: str | None
) -> tuple[Task, list[str]]:
    """(the task, suggestions). Slots keep the order of their first appearance; their values stay open.

    Closing a slot is suggested, never done: a value that the data set lacks would become an invalid answer.
    """
    if answer not in INSTRUCTIONS:
        raise SourceError(f"--answer {answer!r}: must be one of {', '.join(INSTRUCTIONS)}")
    fields: dict[str, Any] = {
        "name": name or NAMES[answer],
        "instruction": {"en": instruction or INSTRUCTIONS[answer]},
        "answer": answer,
    }
    suggestions = []
    if answer == "json":
        labels = [r.label for r in records if isinstance(r.label, dict)]
        intents = sorted({label["intent"] for label in labels if label["intent"]})
        fields["intents"] = intents or None
        values: dict[str, Counter[str]] = {}
        for label in labels:
            for slot in label["slots"]:
                values.setdefault(slot["type"], Counter())[slot["value"]] += 1
        fields["slots"] = dict.fromkeys(values) or None
        for kind, counts in values.items():
            if len(counts) <= CLOSED_VALUES and counts.total() >= ROWS_PER_VALUE * len(counts):
                suggestions.append(
                    f"slot {kind!r} has {len(counts)} values in {counts.total()} rows; if these are all there are, "
                    f"close it in task.yaml: {kind}: [{', '.join(sorted(counts))}]"
                )
    elif answer == "choice":
        fields["menu"] = True
    elif answer == "label":
        fields["labels"] = sorted({r.label for r in records if isinstance(r.label, str)})
    elif answer == "label_set":
        fields["labels"] = sorted({item for r in records if isinstance(r.label, list) for item in r.label})
    try:
        return Task(**fields), suggestions
    except ValueError as error:
        raise SourceError(f"task: {error}") from None
