"""The utterance: one row of a manifest, what makes it valid, and its canonical JSON line."""

import difflib
import json
import math
import os
import sys
from dataclasses import dataclass, fields
from typing import Any

from trainer.words import faulty

Label = str | list[str] | dict[str, Any] | None


class ManifestError(ValueError):
    """A manifest, a row or a reference to a data set that cannot be used. `line` counts from 1."""

    def __init__(self, message: str, *, line: int | None = None, field: str | None = None):
        super().__init__(message)
        self.line, self.field = line, field


@dataclass(frozen=True, slots=True)
class Utterance:
    """One labelled utterance: a text, a recording, or both."""

    id: str
    """Unique within the data set."""
    task: str
    """Name of the task whose label this is."""
    language: str
    """BCP-47 tag, e.g. `ar` or `en-US`."""
    split: str
    """`train`, `dev` or `test`."""
    text: str | None = None
    """Transcript, or the sentence itself; None where the source has none."""
    label: Label = None
    """A label, a set of labels, or `{"intent": …, "slots": [{"type", "value"}, …]}`."""
    audio: str | None = None
    """Path of the recording: in the file relative to the data set's folder, absolute after `load`."""
    offset_s: float = 0.0
    """Where the utterance starts in the recording, seconds."""
    duration_s: float | None = None
    """Seconds; None for text and for a recording used to its end."""
    speaker: str | None = None
    """Who speaks; None where unknown."""
    words: tuple[dict[str, Any], ...] | None = None
    """Timed words `{"text", "start", "end"}`, seconds from the utterance's start, in order."""
    meta: dict[str, Any] | None = None
    """Whatever else the source knows; nothing here changes training."""
    question: str | None = None
    """What is asked about this utterance, below the task's instruction (question answering)."""
    choices: tuple[str, ...] | None = None
    """The answers that this utterance's own one is among (tasks with `answer: choice`): two or more, all different; the
    label is one of them to the letter."""


_FIELDS = [f.name for f in fields(Utterance)]
_FIELD_SET = frozenset(_FIELDS)
_REQUIRED = ("id", "task", "language", "split")
_NUMBER = (float, int)  # by `type(x) in`, because bool is an int and true is no duration


def utterance(row: Any, folder: str = "") -> Utterance:
    """The utterance that one JSON object says (the object is used up), its audio path below `folder` if given.

    ManifestError names the field, the value and the remedy. Checks are by hand, not by pydantic: a manifest
    of a million rows has to open in seconds.
    """
    try:
        get = row.get
        key, task, language, split = row["id"], row["task"], row["language"], row["split"]
        text, label, audio, speaker = get("text"), get("label"), get("audio"), get("speaker")
        duration, offset, words, meta = get("duration_s"), get("offset_s", 0.0), get("words"), get("meta")
        question, choices = get("question"), get("choices")
        sane = (
            type(key) is type(task) is type(language) is type(split) is str
            and key and task and language and split
            and (type(text) is str or (text is None and audio))
            and (audio is None or (type(audio) is str and audio))
            and (speaker is None or type(speaker) is str)
            and (duration is None or (type(duration) in _NUMBER and 0 < duration < math.inf))
            and (type(offset) in _NUMBER and 0 <= offset < math.inf)
            and (label is None or type(label) is str or _is_label(label))
            and (words is None or (type(words) is list and faulty(words) is None))
            and (meta is None or type(meta) is dict)
            and (question is None or (type(question) is str and question))
            and (choices is None or unfit(choices, label) is None)
            and row.keys() <= _FIELD_SET
        )  # fmt: skip
    except (KeyError, AttributeError):
        sane = False
    if not sane:
        raise _explain(row)
    # Few distinct values over many rows: interned, a million rows take 0.4 GB less.
    row["task"], row["language"], row["split"] = sys.intern(task), sys.intern(language), sys.intern(split)
    if speaker is not None:
        row["speaker"] = sys.intern(speaker)
    if folder and audio is not None:
        row["audio"] = os.path.join(folder, audio)
    if duration is not None:
        row["duration_s"] = float(duration)
    if offset:
        row["offset_s"] = float(offset)
    if words is not None:
        row["words"] = tuple(words)
    if choices is not None:
        row["choices"] = tuple(choices)
    return Utterance(**row)


def _is_label(label: Any) -> bool:
    if type(label) is list:
        return all(type(item) is str for item in label)
    if type(label) is not dict or not isinstance(label.get("intent"), str | None):
        return False
    slots = label.get("slots", [])
    if type(slots) is not list or not label.keys() <= {"intent", "slots"}:
        return False
    for slot in slots:
        if type(slot) is not dict or len(slot) != 2:
            return False
        if type(slot.get("type")) is not str or type(slot.get("value")) is not str:
            return False
    return True


def unfit(choices: Any, label: Any) -> str | None:
    """Why an utterance cannot choose its label among these; None where it can, or where its label is unknown."""
    if type(choices) not in (list, tuple) or len(choices) < 2:
        return "must be a list of two answers or more"
    if not all(type(choice) is str and choice and choice == choice.strip() for choice in choices):
        return "every answer must be a string that is not empty and has no spaces around it"
    if len(set(choices)) < len(choices):
        twice = next(choice for n, choice in enumerate(choices) if choice in choices[:n])
        return f"{twice!r} stands there twice; leave one out"
    if label is not None and label not in choices:
        return f"the label {label!r} is none of them; write one of them to the letter as label, or add it"
    return None


def _explain(row: Any) -> ManifestError:
    """Why a row was refused: the slow, talkative twin of the checks in `utterance`."""

    def say(field: str, message: str) -> ManifestError:
        given = f" (given: {row[field]!r})" if field in row else ""
        return ManifestError(f"field '{field}': {message}{given}", field=field)

    def seconds(value: Any) -> bool:
        return type(value) in _NUMBER and 0 <= value < math.inf

    if not isinstance(row, dict):
        return ManifestError(f"a line must be a JSON object, not {type(row).__name__}")
    for key in row:
        if key not in _FIELD_SET:
            near = difflib.get_close_matches(str(key), _FIELDS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else "put what else you know under 'meta'"
            return ManifestError(f"unknown field '{key}'; {hint}", field=str(key))
    for key in _REQUIRED:
        if not isinstance(row.get(key), str) or not row[key]:
            return say(key, "a non-empty string is required")
    for key in ("text", "audio", "speaker", "question"):
        if not isinstance(row.get(key), str | None):
            return say(key, "must be a string or null")
    if row.get("question") == "":
        return say("question", "must be a question, or null")
    if row.get("audio") == "":
        return say("audio", "must be a path, or null for a text without recording")
    if row.get("audio") is None and row.get("text") is None:
        return ManifestError("field 'audio': a row needs a text, a recording, or both", field="audio")
    if row.get("duration_s") is not None and not (seconds(row["duration_s"]) and row["duration_s"]):
        return say("duration_s", "must be seconds, more than 0, or null")
    if not seconds(row.get("offset_s", 0.0)):
        return say("offset_s", "must be seconds, 0 or more")
    if not isinstance(row.get("words"), list | None):
        return say("words", "must be a list of {text, start, end}")
    if wrong := faulty(row.get("words") or []):
        return ManifestError(f"field 'words': {wrong}", field="words")
    if not isinstance(row.get("meta"), dict | None):
        return say("meta", "must be an object")
    label_fits = isinstance(row.get("label"), str | None) or _is_label(row["label"])
    if row.get("choices") is not None and label_fits and (wrong := unfit(row["choices"], row.get("label"))):
        return say("choices", wrong)
    return say("label", 'must be a string, a list of strings, or {"intent", "slots": [{"type", "value"}]}')


_ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_SORTED = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False, sort_keys=True).encode


def to_json(row: Utterance, root: str | os.PathLike[str] | None = None) -> str:
    """The canonical line of a row (no newline): fixed field order, audio relative to `root` if inside.

    `offset_s`, `words`, `meta`, `question` and `choices` are left out when empty; every other field is written, null
    if unknown.
    """
    label: Label = row.label
    if isinstance(label, dict):
        slots = [{"type": slot["type"], "value": slot["value"]} for slot in label.get("slots", ())]
        label = {"intent": label.get("intent"), "slots": slots}
    line = _ENCODE({
        "id": row.id, "task": row.task, "language": row.language, "split": row.split, "text": row.text,
        "label": label, "audio": relative_audio(row.audio, root), "duration_s": row.duration_s,
        "speaker": row.speaker,
    })  # fmt: skip
    if row.offset_s or row.words or row.meta or row.question or row.choices:
        extra: dict[str, Any] = {"offset_s": row.offset_s} if row.offset_s else {}
        extra |= {"words": list(row.words)} if row.words else {}
        extra |= {"meta": row.meta} if row.meta else {}
        extra |= {"question": row.question} if row.question else {}
        extra |= {"choices": list(row.choices)} if row.choices else {}
        line = f"{line[:-1]},{_SORTED(extra)[1:]}"
    return line


def relative_audio(audio: str | None, root: str | os.PathLike[str] | None) -> str | None:
    """`audio` relative to `root` with forward slashes where it lies inside, else as given."""
    if audio is None or root is None:
        return audio
    prefix = os.path.join(os.path.abspath(root), "")
    return audio[len(prefix) :].replace(os.sep, "/") if audio.startswith(prefix) else audio
