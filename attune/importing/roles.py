"""Which column is what: by the names in use, then by content; what the user says rules."""

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any

from attune.importing.source import AUDIO_SUFFIXES, Source, SourceError, is_language
from attune.importing.split import split_name

ROLES: Mapping[str, str] = {
    "audio": "audio path file filename file_name wav clip recording audio_path audio_file audio_filepath wav_path "
    "audiopath file_path filepath fname sound clip_path",
    "text": "text sentence transcript transcription transcribed utterance utt query raw_text normalized_text "
    "phrase annot_utt annotated",
    "label": "label class category command emotion sentiment target labels classes keyword tag",
    "intent": "intent intent_name intent_class intent_label intent_str",
    "slots": "slots slot entities annot_utt annotation annotations slot_values tags bio slot_tags",
    "speaker": "speaker speaker_id spk spk_id spkid client_id user user_id speakerid worker worker_id actor "
    "participant reader_id",
    "split": "split partition subset fold_name",
    "language": "language lang locale language_code",
    "id": "id utt_id uid utterance_id example_id key",
    "offset_s": "offset_s offset start start_s start_time begin onset",
    "duration_s": "duration_s duration dur length_s seconds",
    "choices": "choices",
    "answer": "answer",
    "task": "task",
    "prompt": "prompt",
}
"""Names of columns by role, best first; compared in lower case with blanks and dashes as underscores."""

_OPTIONS = ("audio", "text", "label", "intent", "slots", "speaker", "split", "choices")
"""Roles that the command line has an option for; the others can be said in Python only."""


def infer_roles(source: Source, said: Mapping[str, str | None]) -> tuple[dict[str, str], list[str]]:
    """(role → column, notes on every guess). `said` overrides: a column's name, or None for 'there is none'.

    SourceError for a column that is not there, and where nothing can be told apart.
    """
    columns = list(dict.fromkeys(key for row in source.rows for key in row.cells))
    roles: dict[str, str] = {}
    notes: list[str] = []
    for role, column in said.items():
        if role not in ROLES:
            raise SourceError(f"{role!r} is no role of a column; roles: {', '.join(ROLES)}")
        if column is None:
            continue
        for name in column.split(","):  # several columns may hold slots, one type each
            if name not in columns:
                near = difflib.get_close_matches(name, columns, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"columns: {', '.join(columns)}"
                raise SourceError(f"{_option(role)} {name}: no such column; {hint}")
        roles[role] = column
    plain = {column.strip().lower().replace(" ", "_").replace("-", "_"): column for column in reversed(columns)}
    for role, names in ROLES.items():
        if role not in said:
            free = [plain[n] for n in names.split() if n in plain and plain[n] not in roles.values()]
            free = [column for column in free if any(_filled(row.cells.get(column)) for row in source.rows)]
            fits = [column for column in free if role not in _VALUES or _mostly(source, column, role)]
            if fits:
                roles[role] = fits[0]
            elif free:
                notes.append(_no_guess(source, free[0], role))
    notes += _by_content(source, columns, roles, said)
    if "audio" not in roles and "text" not in roles and "slots" not in roles:
        raise SourceError(
            f"no column with recordings or text among: {', '.join(columns)}; say --audio COLUMN or --text COLUMN"
        )
    return roles, notes


def task_name(source: Source, column: str | None) -> str | None:
    """The task that all rows name in a column; None where they differ, or it is no name that a spec accepts."""
    values = {str(row.cells.get(column)) for row in source.rows} if column else set()
    name = values.pop() if len(values) == 1 else ""
    return name if re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", name) else None


def _filled(value: Any) -> bool:
    return value is not None and value != "" and value != []


_VALUES: Mapping[str, tuple[Callable[[str], object], str]] = {
    "split": (split_name, "train, dev or test"),
    "language": (is_language, "BCP-47 tags such as it or fr-FR"),
}
"""Roles whose values are known: (what accepts one, their name)."""


def _mostly(source: Source, column: str, role: str) -> bool:
    """Whether at least half of a column's values fit its role.

    The others become bad rows. One misspelt value must not undo the team's own split: its test rows would be
    trained on. A column of other things under that name must not make every row bad.
    """
    values = [str(row.cells[column]).strip() for row in source.rows if _filled(row.cells.get(column))]
    return sum(bool(_VALUES[role][0](value)) for value in values) * 2 >= len(values)


def _no_guess(source: Source, column: str, role: str) -> str:
    values = dict.fromkeys(str(row.cells[column]) for row in source.rows if _filled(row.cells.get(column)))
    shown = ", ".join(repr(value[:40]) for value in list(values)[:3]) + (", …" if len(values) > 3 else "")
    rule = f", or say --split {column}: rows with other values are left out then" if role == "split" else ""
    why = f"most of its values ({shown}) are not {_VALUES[role][1]}"
    return f"{role}: column {column!r} is not used, {why}; rename them{rule}"


def _option(role: str) -> str:
    return f"--{role}" if role in _OPTIONS else f"column of {role}:"


def _by_content(
    source: Source, columns: list[str], roles: dict[str, str], said: Mapping[str, str | None]
) -> list[str]:
    values = {
        column: [str(row.cells[column]) for row in source.rows if _filled(row.cells.get(column))]
        for column in columns
        if column not in roles.values()
    }
    notes = []
    if "audio" not in roles and "audio" not in said:
        for column, cells in values.items():
            if cells and sum(c.lower().endswith(AUDIO_SUFFIXES) for c in cells) > 0.8 * len(cells):
                roles["audio"] = column
                notes.append(f"audio = {column!r}: its values are names of audio files")
                break
    rest = {column: cells for column, cells in values.items() if cells and column not in roles.values()}
    if "text" not in roles and "text" not in said:
        wordy = {c: sum(len(cell.split()) for cell in cells) / len(cells) for c, cells in rest.items()}
        best = max(wordy, key=lambda column: wordy[column], default=None)
        if best is not None and wordy[best] > 2:
            roles["text"] = best
            notes.append(f"text = {best!r}: its values have most words")
            del rest[best]
    if not roles.keys() & {"label", "intent", "slots", "answer"} and not said.keys() & {"label", "intent", "slots"}:
        few = [c for c, cells in rest.items() if 2 <= len(set(cells)) <= max(2, len(cells) // 3)]
        if few:
            roles["label"] = few[0]
            others = f" ({', '.join(few[1:])} would do too: say --label COLUMN)" if few[1:] else ""
            notes.append(f"label = {few[0]!r}: few distinct values{others}")
    return notes
