"""From cells with roles to records: text, recording, label; bad rows by line."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attune.importing.slots import from_json, has_inline, parse_cell, parse_inline
from attune.importing.source import AUDIO_SUFFIXES, BadRow, RawRow, Source, is_language, walk
from attune.importing.split import SPLITS, split_name
from trainer.manifest import Label

LONGEST_S = 1e6
"""Seconds: eleven days; no recording is longer, and samples are counted in whole numbers."""


@dataclass
class Record:
    """One row with its meaning; `audio` is a file that exists."""

    line: int
    id: str | None = None
    text: str | None = None
    audio: Path | None = None
    label: Label = None
    answer: str | None = None
    """What a chat row's assistant says, before it is known whether that is a label or a transcript."""
    speaker: str | None = None
    split: str | None = None
    language: str | None = None
    offset_s: float = 0.0
    duration_s: float | None = None
    words: tuple[dict[str, Any], ...] | None = None
    question: str | None = None
    choices: tuple[str, ...] | None = None
    file: str = ""
    """Which file of the source, where there are several."""
    meta: dict[str, Any] = field(default_factory=dict)


def read_records(source: Source, roles: Mapping[str, str], audio_root: Path) -> tuple[list[Record], list[BadRow]]:
    """Every row as a record, or as a bad row with the reason."""
    finder = AudioFinder(audio_root)
    text_column, slot_columns = roles.get("text"), [c for c in roles.get("slots", "").split(",") if c]
    inline = text_column is not None and any(has_inline(str(row.cells.get(text_column) or "")) for row in source.rows)
    records, bad = [], []
    for row in source.rows:
        try:
            records.append(_record(row, roles, slot_columns, inline, source.names, finder))
        except ValueError as error:
            bad.append(BadRow(row.line, str(error), row.file))
    return records, bad


def _empty(value: Any) -> bool:
    return value in (None, "", []) or value != value  # NaN is how pandas writes nothing


def _string(value: Any) -> str | None:
    """A cell as text; None where empty. 3.0 and 3 are both '3': JSON and spreadsheets mix them."""
    if _empty(value) or isinstance(value, list | dict):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return " ".join(str(value).split()) or None


def _record(
    row: RawRow,
    roles: Mapping[str, str],
    slot_columns: list[str],
    inline: bool,
    names: Mapping[str, list[str]],
    finder: "AudioFinder",
) -> Record:
    def cell(role: str) -> Any:
        return row.cells.get(roles[role]) if role in roles else None

    record = Record(row.line, id=_string(cell("id")), text=_string(cell("text")), speaker=_string(cell("speaker")))
    record.file = row.file
    record.language, record.answer = _string(cell("language")), _string(cell("answer"))
    if record.language and not is_language(record.language):
        raise ValueError(f"language {record.language!r}: must be a BCP-47 tag, e.g. it or fr-FR")
    slots: list[dict[str, str]] = []
    if inline and record.text:
        record.text, slots = parse_inline(record.text)
    if len(slot_columns) == 1:
        record.text, found = parse_cell(row.cells.get(slot_columns[0]), record.text)
        slots = slots or found
    elif slot_columns:
        slots += [{"type": c, "value": v} for c in slot_columns if (v := _string(row.cells.get(c)))]
    record.label = _label(row, roles, names, slots if inline or slot_columns else None)
    record.choices = _choices(cell("choices"), roles.get("choices"))
    if "split" in roles:
        given = _string(cell("split"))
        record.split = split_name(given or "")
        if record.split is None:
            remedy = "correct it, or say --split - to split all rows by speaker"
            raise ValueError(f"split {given or ''!r}: must be {', '.join(SPLITS)}; {remedy}")
    if "audio" in roles and (path := _string(cell("audio"))):
        record.audio = finder.find(path)
        record.offset_s = _seconds(cell("offset_s"), roles.get("offset_s")) or 0.0
        record.duration_s = _seconds(cell("duration_s"), roles.get("duration_s")) or None
    if record.audio is None and not record.text:
        raise ValueError("neither text nor recording")
    used = {column for columns in roles.values() for column in columns.split(",")} - {roles.get("prompt")}
    rest = {
        key: value
        for key, value in row.cells.items()
        if key not in used and not (_empty(value) or isinstance(value, Path))
    }
    inner = rest.pop("meta", None)  # a manifest of ours
    record.meta = rest | (inner if isinstance(inner, dict) else {"meta": inner} if inner else {})
    check_storable(record)
    return record


def _seconds(value: Any, column: str | None) -> float | None:
    if value is None or value == "":
        return None
    try:
        seconds = float(str(value).replace(",", "."))  # 1,5 in a German spreadsheet
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < LONGEST_S:
        raise ValueError(f"{column} {value!r}: must be seconds from 0 to {LONGEST_S:.0f}; correct it or leave it empty")
    return seconds


def check_storable(record: Record) -> None:
    """ValueError where a value has no place in a JSON line: it must not stop the rows beside it."""
    values = {"id": record.id, "text": record.text, "speaker": record.speaker, "label": record.label}
    values |= {"choices": record.choices, **record.meta}
    for name, value in values.items():
        try:
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name} {value!r}: half a character (a lone surrogate); write it again") from None
        except (ValueError, TypeError):
            raise ValueError(f"{name} {value!r}: JSON has no such value; write a number or leave it empty") from None


def _label(
    row: RawRow, roles: Mapping[str, str], names: Mapping[str, list[str]], slots: list[dict[str, str]] | None
) -> Label:
    column = roles.get("intent") or roles.get("label")
    value = row.cells.get(column) if column else None
    if column is not None and column in names and isinstance(value, int | float) and not isinstance(value, bool):
        known = names[column]
        if not 0 <= value < len(known):
            raise ValueError(f"{column} {value} is outside the {len(known)} class names")
        value = known[int(value)]
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise ValueError(f"{column} {value!r} begins like JSON but is not") from None
    if isinstance(value, dict):
        return {"intent": value.get("intent"), "slots": from_json(value.get("slots"))}
    if isinstance(value, list):
        return [str(item) for item in value]
    text = _string(value)
    if column and text is None:
        raise ValueError(f"no label in column {column!r}")
    return text if slots is None else {"intent": text, "slots": slots}


def _choices(value: Any, column: str | None) -> tuple[str, ...] | None:
    """A cell of choices: a list, or a list as JSON; the label is one of them."""
    if _empty(value):
        return None
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, list):
        form = 'a list of answers, in a table as JSON: ["one", "other"]'
        raise ValueError(f"{column} {value!r}: must be {form}; or say --choices - where these are none")
    return tuple(_string(item) or "" for item in found)


class AudioFinder:
    """Finds the file that a cell means: as written, or by its last parts below the audio folder.

    Tables are made on other machines (`C:\\data\\clips\\a.wav`), so leading folders are dropped one by one, and at
    last the name alone is looked for, whatever its case, where it is unique.
    """

    def __init__(self, root: Path):
        self.root = root.absolute()
        self._by_name: dict[str, list[Path]] | None = None

    def find(self, cell: str) -> Path:
        """The existing file; ValueError naming what was looked for."""
        if re.match(r"https?://|s3://|gs://", cell):
            raise ValueError(f"audio {cell!r} is an address; download the file first")
        name = cell.strip("\"'").removeprefix("file://").replace("\\", "/")
        if Path(name).is_absolute() and Path(name).is_file():
            return Path(name)
        parts = [part for part in re.sub(r"^[A-Za-z]:", "", name).split("/") if part not in ("", ".")]
        for n in range(len(parts)):
            path = self.root.joinpath(*parts[n:])
            if ".." not in parts[n:] and path.is_file():
                return path
        if ".." in parts and (self.root / name).is_file():
            return (self.root / name).resolve()
        same = self._named(parts[-1] if parts else "")
        if len(same) == 1:
            return same[0]
        if same:
            raise ValueError(f"audio {cell!r}: {len(same)} files have this name; write the path below {self.root}")
        raise ValueError(f"audio {cell!r} is missing; put it below {self.root} or say where with --audio-root")

    def any(self) -> bool:
        """Whether there is any recording below the folder."""
        self._named("")
        return bool(self._by_name)

    def _named(self, name: str) -> list[Path]:
        if self._by_name is None:
            self._by_name = {}
            for path in walk(self.root):
                if path.suffix.lower() in AUDIO_SUFFIXES:
                    for key in (path.name.lower(), path.stem.lower()):
                        self._by_name.setdefault(key, []).append(path)
        return self._by_name.get(name.lower(), [])
