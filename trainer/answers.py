"""Answers: the string a model is trained to write for a label, and the label read back from what it wrote.

One canonical string per label, so that every modality and every strategy trains on the same targets, and a
strict reader, so that "invalid" means one thing in every table. Nothing here repairs a bad answer.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.spec import Task

Label = str | list[str] | dict[str, Any]
"""A label name, a set of label names, a text (or several that are all right, the first to be trained on), or
{"intent": str, "slots": [{"type": str, "value": str}, ...]}."""

SET_SEPARATOR = ", "


def render(label: Label, task: "Task") -> str:
    """The canonical answer string of `label`.

    json: one line, `{"intent": ..., "slots": {type: value}}`; slots in schema order (or in order of first
    appearance with `slot_order: as_given`), absent slots left out, a repeated type holds a list of its values
    in the order given. A task without slots has no "slots" key, a label without intent no "intent" key.
    label and choice: the name. label_set: the names in menu order, joined by ", ". text: the text, the first of
    several. Raises ValueError when the label does not fit the task.
    """
    if task.answer == "json":
        return json.dumps(_json_object(label, task), ensure_ascii=False)
    if task.answer == "label_set":
        if not isinstance(label, list) or not label:
            raise ValueError(
                f"task '{task.name}': a label set must be a non-empty list, got {label!r}; "
                "give utterances without any label a label of their own, for example 'none'"
            )
        names = [_known(name, task.labels, task, "label") for name in label]
        if comma := [name for name in names if "," in name]:
            raise ValueError(f"task '{task.name}': label {comma[0]!r} has a comma, which separates labels")
        return SET_SEPARATOR.join(in_menu_order(names, task))
    if task.answer == "text" and isinstance(label, list) and label:
        label = label[0]
    if not isinstance(label, str):
        raise ValueError(f"task '{task.name}': answer '{task.answer}' needs a string, got {label!r}")
    return label.strip() if task.answer == "text" else _known(label, task.labels, task, task.answer)


def parse(text: str, task: "Task") -> tuple[Label | None, bool]:
    """(label, True) read from a model's output, or (None, False) when the output is not an answer.

    Spaces around the output, a label or a slot value are ignored; everything else is strict and
    case-sensitive. json is invalid when it is not exactly one JSON object, has unknown or repeated keys,
    lacks an intent that the task requires, or names an unknown intent, slot type or (closed slot) value;
    values are non-empty strings or non-empty lists of them. label, label_set and choice are invalid on any name
    outside the list; a repeated name in a set counts once. text is always valid (an empty text is an empty
    hypothesis). Never raises on any `text`.
    """
    try:
        text.encode()  # a lone surrogate could not be stored with the predictions
        if task.answer == "text":
            return text.strip(), True
        if task.picks_one:
            return _known(text, task.labels, task, task.answer), True
        if task.answer == "label_set":
            names = [_known(name, task.labels, task, "label") for name in text.split(",")]
            return in_menu_order(names, task), True
        return _from_json(text, task), True
    except (ValueError, RecursionError):
        return None, False


def instruction(
    task: "Task", language: str, question: str | None = None, demonstrations: Sequence[str] = ()
) -> str:
    """The task's instruction in `language` (then its base language, then 'en'), with the menu when
    `task.menu`, below it the demonstrations, and then the utterance's own `question` and choices.

    The menu lists labels, intents and slots with their definitions; closed slots list their values. Choices are no
    part of it: they differ from row to row, and stand last, behind all that rows have in common.
    Raises ValueError when no instruction fits.
    """
    for key in (language, language.split("-")[0].split("_")[0], "en"):
        if key in task.instruction:
            text = task.instruction[key].strip()
            break
    else:
        raise ValueError(
            f"task '{task.name}' has no instruction in '{language}' nor in 'en' "
            f"(it has: {', '.join(task.instruction)}); add one of them"
        )
    menu = _menu(task) if task.menu and task.answer != "choice" else ()
    return "\n".join([text, *menu, *demonstrations, *([question] if question else ()), *_choices(task)])


def demonstration(text: str, label: Label, task: "Task", question: str | None = None) -> str:
    """A labelled text as an instruction shows it, on a line each."""
    asked = [f"Question: {question}"] if question else []
    shown = [f"Input: {' '.join(text.split())}", *asked, *_choices(task)]
    return "\n".join([*shown, f"Answer: {render(label, task)}"])


def in_menu_order(names: list[str], task: "Task") -> list[str]:
    """The distinct names in the order of `task.labels` (alphabetical when the task lists none)."""
    distinct = set(names)
    return [n for n in task.labels if n in distinct] if task.labels else sorted(distinct)


def _choices(task: "Task") -> list[str]:
    """The choices of the utterance that the task is put to, a line each: they may be sentences."""
    wanted = task.menu and task.answer == "choice" and task.labels
    return ["Choices:", *(f"- {name}" for name in task.labels or ())] if wanted else []


def _menu(task: "Task") -> list[str]:
    lines: list[str] = []
    for heading, names in (("Labels", task.labels), ("Intents", task.intents)):
        if names:
            lines += _entries(heading, [(name, "") for name in names], task)
    if task.slots:
        slots = [(name, f" ({' | '.join(closed)})" if closed else "") for name, closed in task.slots.items()]
        lines += _entries("Slots", slots, task)
    return lines


def _entries(heading: str, names: list[tuple[str, str]], task: "Task") -> list[str]:
    # One line without definitions: a menu is read by the model at every example, so its tokens are the cost.
    if not any(name in task.definitions for name, _ in names):
        return [f"{heading}: " + ", ".join(name + values for name, values in names)]
    return [f"{heading}:"] + [
        f"- {name}{values}" + (f": {task.definitions[name]}" if name in task.definitions else "")
        for name, values in names
    ]


def _known(name: Any, names: list[str] | None, task: "Task", kind: str) -> str:
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"task '{task.name}': {kind} must be a non-empty string, got {name!r}")
    name = name.strip()
    if names is not None and name not in names:
        raise ValueError(f"task '{task.name}': unknown {kind} {name!r}; known: {', '.join(names[:20])}")
    return name


def _slot_value(kind: str, value: Any, task: "Task") -> str:
    slots = task.slots or {}
    _known(kind, list(slots), task, "slot type")
    return _known(value, slots[kind], task, f"value of slot '{kind}'")


def _json_object(label: Label, task: "Task") -> dict[str, Any]:
    if not isinstance(label, dict):
        raise ValueError(f"task '{task.name}': answer 'json' needs an intent/slots label, got {label!r}")
    answer: dict[str, Any] = {}
    if label.get("intent") is not None or task.intents is not None:
        answer["intent"] = _known(label.get("intent"), task.intents, task, "intent")
    values: dict[str, list[str]] = {}
    for slot in label.get("slots") or []:
        values.setdefault(slot["type"], []).append(_slot_value(slot["type"], slot["value"], task))
    if task.slots is not None:
        order = list(values) if task.slot_order == "as_given" else [k for k in task.slots if k in values]
        answer["slots"] = {kind: values[kind] if len(values[kind]) > 1 else values[kind][0] for kind in order}
    return answer


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("repeated key")  # json.loads would silently keep the last
    return dict(pairs)


def _from_json(text: str, task: "Task") -> dict[str, Any]:
    answer = json.loads(text.strip(), object_pairs_hook=_unique)
    if not isinstance(answer, dict) or not set(answer) <= {"intent", "slots"}:
        raise ValueError("not an object of intent and slots")
    label: dict[str, Any] = {"intent": None, "slots": []}
    if "intent" in answer or task.intents is not None:
        label["intent"] = _known(answer.get("intent"), task.intents, task, "intent")
        label["intent"].encode()
    slots = answer.get("slots", None if task.slots else {})
    if not isinstance(slots, dict):
        raise ValueError("slots must be an object")
    for kind, given in slots.items():
        values = given if isinstance(given, list) else [given]
        if not values:
            raise ValueError("empty list of values")
        for value in values:
            value = _slot_value(kind, value, task)
            value.encode()  # an escaped lone surrogate passes json.loads
            label["slots"].append({"type": kind, "value": value})
    return label
