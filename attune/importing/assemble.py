"""From records to utterances: recordings are heard, copies and faulty rows leave, the rest is split."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from attune.importing.records import Record
from attune.importing.source import BadRow, SourceError
from attune.importing.split import split_groups
from trainer.audio import AudioError
from trainer.manifest import Utterance, to_json
from trainer.recordings import Recording, examine
from trainer.spec import Task
from trainer.validate import Report, validate

Heard = Recording | AudioError | None


def assemble(
    records: Sequence[Record],
    task: Task,
    stem: str,
    notes: list[str],
    *,
    language: str | None,
    speaker_pattern: str | None,
    shares: Mapping[str, float],
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[Utterance], Report, list[BadRow]]:
    """(rows with a split and absolute audio paths, their validation, rows left out). `notes` gets what was decided."""
    if language is None and not all(record.language for record in records):
        why = next((f" ({note})" for note in notes if note.startswith("language:")), "")
        raise SourceError(f"the language is unknown{why}; say it, e.g. --language it")
    ids = _ids(records, stem, notes)
    pattern = _pattern(speaker_pattern)
    rows = [_utterance(r, i, task, language, pattern) for r, i in zip(records, ids, strict=True)]
    lines = [record.line for record in records]
    bad: list[BadRow] = []
    rows, lines = _without_copies(rows, lines, bad, [record.id for record in records])
    heard: list[Heard] = []
    for row in rows:
        heard.append(examine(row))
        if progress:
            progress(len(heard), len(rows))
    rows = [_timed(row, recording) for row, recording in zip(rows, heard, strict=True)]
    faults = {
        issue.line: str(issue.remedy) if issue.code.startswith("audio_") else f"{issue.code}: {issue.remedy}"
        for issue in validate([replace(r, split="-") for r in rows], task, lines=lines, recordings=heard).issues
        if issue.severity == "error"
    }
    bad += [BadRow(line, reason) for line, reason in faults.items()]
    kept = [n for n, line in enumerate(lines) if line not in faults]
    rows, lines, heard = [rows[n] for n in kept], [lines[n] for n in kept], [heard[n] for n in kept]
    rows = _split(rows, heard, shares, seed, notes)
    return rows, validate(rows, task, lines=lines, recordings=heard), bad


def _ids(records: Sequence[Record], stem: str, notes: list[str]) -> list[str]:
    given = [record.id for record in records]
    if all(given) and len(set(given)) == len(given):
        return [str(i) for i in given]
    if any(given):
        notes.append("the ids of the source are not unique or incomplete; new ones were made from the lines")
    return [f"{stem}-{record.line:06d}" for record in records]


def _pattern(text: str | None) -> re.Pattern[str] | None:
    try:
        pattern = re.compile(text) if text else None
    except re.error as error:
        raise SourceError(f"--speaker-pattern {text!r}: no regular expression ({error}); correct it") from None
    if pattern and not pattern.groups:
        raise SourceError(f"--speaker-pattern {text!r}: put the speaker in a group, e.g. '(.+?)_'")
    return pattern


def _utterance(
    r: Record, id: str, task: Task, language: str | None, pattern: re.Pattern[str] | None
) -> Utterance:
    speaker = r.speaker
    if speaker is None and pattern and r.audio and (match := pattern.search(r.audio.name)):
        speaker = match[1]
    return Utterance(
        id, task.name, r.language or language or "", r.split or "", r.text, r.label,
        None if r.audio is None else str(Path(r.audio).absolute()), r.offset_s, r.duration_s, speaker,
        meta=r.meta or None,
    )  # fmt: skip


def _without_copies(
    rows: list[Utterance], lines: list[int], bad: list[BadRow], given_ids: Sequence[str | None]
) -> tuple[list[Utterance], list[int]]:
    """Rows that repeat another in everything are left out; a published test set's rows with own ids all stay."""
    first: dict[str, int] = {}
    kept = []
    for n, row in enumerate(rows):
        key = to_json(replace(row, id=given_ids[n] or "-"))
        if key in first:
            bad.append(BadRow(lines[n], f"repeats line {first[key]}"))
        else:
            first[key] = lines[n]
            kept.append(n)
    return [rows[n] for n in kept], [lines[n] for n in kept]


def _timed(row: Utterance, recording: Heard) -> Utterance:
    """The row with the recording's own duration where none was given."""
    if isinstance(recording, Recording) and row.duration_s is None:
        return replace(row, duration_s=round(recording.seconds, 3) or None)
    return row


def _split(
    rows: list[Utterance], heard: list[Heard], shares: Mapping[str, float], seed: int, notes: list[str]
) -> list[Utterance]:
    open_rows = [n for n, row in enumerate(rows) if not row.split]
    if not open_rows:
        notes.append("split: as the source says")
        return rows
    if len(open_rows) < len(rows):
        notes.append(f"split: as the source says, and {len(open_rows)} rows without one are split here")
    groups, how = _groups([rows[n] for n in open_rows], [heard[n] for n in open_rows])
    notes.append(f"split: {how} (seed {seed})")
    for n, split in zip(open_rows, split_groups(groups, shares, seed), strict=True):
        rows[n] = replace(rows[n], split=split)
    held_out = {row.text.casefold(): row.split for row in rows if row.audio and row.text and row.split != "train"}
    if len(set(groups)) > 1 and "by text" in how:
        for n in open_rows:  # a sentence that a held-out recording says must not be trained on as text
            if rows[n].audio is None and (split := held_out.get((rows[n].text or "").casefold())):
                rows[n] = replace(rows[n], split=split)
    for split, share in shares.items():
        if share and not any(row.split == split for row in rows):
            notes.append(f"split: nothing was left for {split}; there are too few speakers or texts")
    return rows


def _groups(rows: Sequence[Utterance], heard: Sequence[Heard]) -> tuple[list[str], str]:
    """(what must stay together for each row, said in words): speaker, else text, else the recording itself."""
    texts = [" ".join(row.text.casefold().split()) for row in rows if row.text]
    varied = len(set(texts)) * 2 >= len(texts) and bool(texts)
    groups, kinds = [], set()
    for row, recording in zip(rows, heard, strict=True):
        if row.speaker:
            groups.append(f"speaker/{row.speaker}")
            kinds.add("by speaker")
        elif row.text and varied:
            groups.append(f"text/{' '.join(row.text.casefold().split())}")
            kinds.add("by text" if row.audio is None else "by text where the speaker is unknown")
        else:
            groups.append(recording.sha256 if isinstance(recording, Recording) else row.id)
            kinds.add("by utterance: speakers are unknown, so results say little about new ones")
    return groups, "; ".join(sorted(kinds))
