"""The majority control: one answer for every test utterance, which needs no model (light)."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trainer import answers
from trainer.manifest import Utterance
from trainer.predictions import SPEECH, Row, prediction
from trainer.spec import Task
from trainer.tokens import reference

MOST_VALUES = 100
"""Values of an open slot that a control can answer: the most frequent ones of training."""

Part = Any
"""What one classifier answers: a label, a label's presence, an intent, or the tuple of a slot's values (empty:
absent)."""


def majority(
    train: Iterable[Utterance], test: Iterable[Utterance], task: Task, modality: str = SPEECH
) -> list[Row]:
    """The same answer for every test utterance, from the labels of the training rows alone.

    label: the most frequent label. label_set: the most frequent whole set. json: the most frequent intent, and
    for each slot its most frequent value or absence, whichever is more frequent (what a probe would learn from
    constant features). text: nothing. Ties go to the first in menu order, then alphabetically.
    """
    rows = of_task(train, task)
    if task.answer == "text":
        return [prediction(u, task, modality, "") for u in of_task(test, task)]
    parts = {name: _most_frequent(values, task) for name, values in parts_of(rows, task, whole_sets=True).items()}
    text = answers.render(assembled(parts, task), task)
    return [prediction(u, task, modality, text) for u in of_task(test, task)]


def of_task(rows: Iterable[Utterance], task: Task) -> list[Utterance]:
    """The rows that name the task."""
    return [u for u in rows if u.task == task.name]


def parts_of(rows: Sequence[Utterance], task: Task, *, whole_sets: bool = False) -> dict[str, list[Part]]:
    """A row's answer cut into what separate classifiers can say: {part: [value per row]}.

    label: {'label': names}. label_set: presence per label, or with `whole_sets` {'label': tuples}. json: 'intent'
    where there is one, and per slot the tuple of its values in the row. ValueError when there are no rows, and for
    choices, which are each row's own.
    """
    if task.answer == "choice":
        raise ValueError(f"task '{task.name}': what is right of a row's own choices no other row says; leave it out")
    if not rows:
        raise ValueError(f"task '{task.name}': no training rows, so there is no baseline to learn")
    labels: list[Any] = [reference(u, task) for u in rows]
    if task.answer == "label":
        return {"label": labels}
    if task.answer == "label_set":
        if whole_sets:
            return {"label": [tuple(answers.in_menu_order(given, task)) for given in labels]}
        return {name: [name in given for given in labels] for name in task.labels or []}
    parts: dict[str, list[Part]] = {}
    intents = [given.get("intent") for given in labels]
    if any(intent is not None for intent in intents):
        parts["intent"] = intents
    for slot, closed in (task.slots or {}).items():
        values = [tuple(s["value"] for s in given.get("slots") or [] if s["type"] == slot) for given in labels]
        if closed is None:
            most = {value for value, _ in Counter(sorted(v for v in values if v)).most_common(MOST_VALUES)}
            values = [value if value in most else () for value in values]
        parts[f"slot {slot}"] = values
    return parts


def assembled(parts: Mapping[str, Part], task: Task) -> answers.Label:
    """The label that the parts make up; slots in schema order."""
    if task.answer != "json":
        value = parts["label"]
        return list(value) if task.answer == "label_set" else value
    slots = [{"type": s, "value": v} for s in task.slots or {} for v in parts.get(f"slot {s}", ())]
    return {"intent": parts.get("intent"), "slots": slots}


def _most_frequent(values: Sequence[Part], task: Task) -> Part:
    menu = [*(task.labels or []), *(task.intents or [])]

    def place(value: Part) -> tuple:
        return (-counts[value], menu.index(value) if value in menu else len(menu), repr(value))

    counts = Counter(values)
    return min(counts, key=place)
