"""From records to utterances: recordings are heard, copies and faulty rows leave, the rest is split."""

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
    bad: list[BadRow] = []
    kept = _without_copies(rows, records, bad)
    rows, records = [rows[n] for n in kept], [records[n] for n in kept]
    heard = _hear(rows, progress)
    rows = [_timed(row, recording) for row, recording in zip(rows, heard, strict=True)]
    faults = {
        issue.line: str(issue.remedy) if issue.code.startswith("audio_") else f"{issue.code}: {issue.remedy}"
        for issue in validate([replace(r, split="-") for r in rows], task, recordings=heard, limit=len(rows)).issues
        if issue.severity == "error"
    }
    bad += [BadRow(records[n - 1].line, reason, records[n - 1].file) for n, reason in faults.items() if n]
    kept = [n for n in range(len(rows)) if n + 1 not in faults]
    rows, heard = [rows[n] for n in kept], [heard[n] for n in kept]
    rows = _split(rows, heard, shares, seed, notes)
    # with several files the lines of the new manifest are meant
    lines = None if any(record.file for record in records) else [records[n].line for n in kept]
    return rows, validate(rows, task, lines=lines, recordings=heard), bad


def _hear(rows: Sequence[Utterance], progress: Callable[[int, int], None] | None) -> list[Heard]:
    """What every row's recording is like; None for a text."""
    heard: list[Heard] = [None] * len(rows)
    spoken = [n for n, row in enumerate(rows) if row.audio]
    done = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding and resampling leave the interpreter to others
        for start in range(0, len(spoken), 10_000):  # not a future for each of a million rows
            part = spoken[start : start + 10_000]
            for n, recording in zip(part, pool.map(examine, [rows[n] for n in part]), strict=True):
                heard[n] = recording
                done += 1
                if progress:
                    progress(done, len(spoken))
    return heard


def _ids(records: Sequence[Record], stem: str, notes: list[str]) -> list[str]:
    given = [record.id for record in records]
    if all(given) and len(set(given)) == len(given):
        return [str(i) for i in given]
    if any(given):
        notes.append("the ids of the source are not unique or incomplete; new ones were made from the lines")
    files = {r.file: re.sub(r"[^\w.-]+", "-", r.file).split(".json")[0] or stem for r in records}
    made = [f"{files[record.file]}-{record.line:06d}" for record in records]
    seen: Counter[str] = Counter()
    for n, name in enumerate(made):  # a line may hold several rows: recordings of a sentence, parts of a cut
        seen[name] += 1
        made[n] = name if seen[name] == 1 else f"{name}-{seen[name]}"
    return made


def _pattern(text: str | None) -> re.Pattern[str] | None:
    try:
        pattern = re.compile(text) if text else None
    except re.error as error:
        raise SourceError(f"--speaker-pattern {text!r}: no regular expression ({error}); correct it") from None
    if pattern and not pattern.groups:
        raise SourceError(f"--speaker-pattern {text!r}: put the speaker in a group, e.g. '(.+?)_'")
    return pattern


def _utterance(r: Record, id: str, task: Task, language: str | None, pattern: re.Pattern[str] | None) -> Utterance:
    speaker = r.speaker
    if speaker is None and pattern and r.audio and (match := pattern.search(r.audio.name)):
        speaker = match[1]
    return Utterance(
        id, task.name, r.language or language or "", r.split or "", r.text, r.label,
        None if r.audio is None else str(Path(r.audio).absolute()), r.offset_s, r.duration_s, speaker,
        words=r.words, meta=r.meta or None, question=r.question, choices=r.choices,
    )  # fmt: skip


def _without_copies(rows: list[Utterance], records: Sequence[Record], bad: list[BadRow]) -> list[int]:
    """Rows that repeat another in everything are left out; a published test set's rows with own ids all stay."""
    first: dict[str, Record] = {}
    kept = []
    for n, (row, record) in enumerate(zip(rows, records, strict=True)):
        same = first.setdefault(to_json(replace(row, id=record.id or "-")), record)
        if same is record:
            kept.append(n)
        else:
            where = f"{same.file}:{same.line}" if same.file else f"line {same.line}"
            bad.append(BadRow(record.line, f"repeats {where}", record.file))
    return kept


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
