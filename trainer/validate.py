"""One pass over a data set before any training: what is wrong, on which line, and what to do about it.

Errors make a row unusable or a result untrue; warnings deserve a look; notes are facts worth knowing.
"""

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from trainer.audio import AudioError
from trainer.manifest import ManifestError, Utterance, locate, read_numbered, shared_speakers
from trainer.recordings import Recording, examine
from trainer.spec import Task

Severity = Literal["error", "warning", "note"]

MOSTLY_SILENT = 0.9
CLIPPED = 0.001
SHORTEST_S = 0.1
TOLERANCE_S, TOLERANCE_SHARE = 0.1, 0.05
"""A stated duration may differ by 0.1 s or 5 %, whichever is more (containers round, codecs pad)."""


@dataclass(frozen=True, slots=True)
class Issue:
    """One thing wrong, with its remedy. `line` counts from 1; None and no id: the data set as a whole."""

    line: int | None
    id: str
    severity: Severity
    code: str
    field: str
    value: Any
    remedy: str

    def __str__(self) -> str:
        where = f"line {self.line}" if self.line else "data set"
        given = "" if self.value is None else f" {self.value!r}"
        row = f" ({self.id})" if self.id else ""
        return f"{where}{row}: {self.severity}: {self.code}: {self.field}{given}; {self.remedy}"


@dataclass
class Report:
    """What one pass found. `counts` has every issue by code, also where `issues` was cut short by `limit`."""

    rows: int = 0
    errors: int = 0
    warnings: int = 0
    notes: int = 0
    issues: list[Issue] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    by_split: dict[str, int] = field(default_factory=dict)
    recordings: int = 0
    speakers: int = 0
    seconds: float = 0.0
    """Seconds of audio that could be read."""
    silence_share: float | None = None
    """Share of those seconds that is silent (`audio.silence_share`); None without audio."""

    @property
    def ok(self) -> bool:
        """No errors."""
        return not self.errors

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return asdict(self)

    def add(self, issue: Issue, limit: int) -> None:
        """Count an issue, and keep it unless `limit` of its code are kept already."""
        self.counts[issue.code] = self.counts.get(issue.code, 0) + 1
        self.errors += issue.severity == "error"
        self.warnings += issue.severity == "warning"
        self.notes += issue.severity == "note"
        if self.counts[issue.code] <= limit:
            self.issues.append(issue)


def validate(
    rows: Sequence[Utterance],
    task: Task | Mapping[str, Task] | None = None,
    other_splits: Mapping[str, Sequence[Utterance]] | None = None,
    *,
    lines: Sequence[int] | None = None,
    listen: bool = True,
    recordings: Iterable[Recording | AudioError | None] | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    limit: int = 1000,
) -> Report:
    """Check rows (audio paths as `load` gives them) and report per line.

    `task`: one task for all rows, or tasks by the name in the row; without it labels are not checked.
    `other_splits`: rows that are not checked themselves but must not share utterances with these.
    `lines`: line numbers of the rows in their file; default 1, 2, ….
    `listen`: decode every recording; without it only paths and texts are checked.
    `recordings`: what `recordings.examine` said of each row already, so that nothing is decoded twice.
    `progress(done, total)` is called after each row. At most `limit` issues per code are kept; all are counted.
    """
    report, lines = Report(), lines or range(1, len(rows) + 1)
    users = Counter(row.audio for row in rows)
    seen_ids: dict[str, int] = {}
    silent_seconds = 0.0
    heard: list[Recording | None] = []
    with ThreadPoolExecutor(workers) as pool:
        examined = recordings or (pool.map(examine, rows) if listen else (None for _ in rows))
        for line, row, recording in zip(lines, rows, examined, strict=True):
            found = [*_text_issues(row), *_label_issues(row, task)]
            if (first := seen_ids.setdefault(row.id, line)) != line:
                remedy = f"already on line {first}; make ids unique"
                found.append(("error", "duplicate_id", "id", row.id, remedy))
            if isinstance(recording, AudioError):
                found.append(("error", f"audio_{recording.code}", "audio", row.audio, str(recording)))
            elif recording is not None:
                found += _recording_issues(row, recording, alone=users[row.audio] == 1)
                report.recordings += 1
                report.seconds += recording.seconds
                silent_seconds += recording.seconds * recording.silence
            heard.append(recording if isinstance(recording, Recording) else None)
            for severity, code, name, value, remedy in found:
                report.add(Issue(line, row.id, severity, code, name, value, remedy), limit)
            if progress:
                progress(len(heard), len(rows))
    for issue in _leaks(rows, lines, heard, other_splits or {}):
        report.add(issue, limit)
    report.rows = len(rows)
    report.by_split = dict(sorted(Counter(row.split for row in rows).items()))
    report.speakers = len({row.speaker for row in rows if row.speaker})
    report.silence_share = silent_seconds / report.seconds if report.seconds else None
    report.issues.sort(key=lambda issue: issue.line or 0)
    return report


def validate_dataset(ref: str, roots: Sequence[str | Path] = (".",), **options: Any) -> Report:
    """`validate` for a reference: every manifest file of it, lines numbered as in the file, broken lines too.

    With several files the splits are checked against each other and line numbers run on from file to file.
    """
    place = locate(ref, roots)
    rows: list[Utterance] = []
    lines: list[int] = []
    broken: list[Issue] = []
    offset = 0
    for path in place.files:
        number = 0
        for number, row in read_numbered(path, place.folder):
            if isinstance(row, ManifestError):
                broken.append(Issue(offset + number, "", "error", "bad_row", row.field or "", None, str(row)))
            elif place.split is None or row.split == place.split:
                rows.append(row)
                lines.append(offset + number)
        offset += number
    limit = options.get("limit", 1000)
    report = validate(rows, lines=lines, **options)
    for issue in broken:
        report.add(issue, limit)
    report.rows += len(broken)
    report.issues.sort(key=lambda issue: issue.line or 0)
    return report


Finding = tuple[Severity, str, str, Any, str]
"""(severity, code, field, value, remedy): an Issue before its line is known."""


def _text_issues(row: Utterance) -> Iterator[Finding]:
    if row.text is not None and not row.text.strip():
        remedy = "write the transcript, or null where it is unknown"
        yield "error", "empty_text", "text", row.text, remedy


def _near(value: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(value, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else "correct it or add it to the task"


def _label_issues(row: Utterance, task: Task | Mapping[str, Task] | None) -> Iterator[Finding]:
    if task is None:
        return
    if not isinstance(task, Task):
        if row.task not in task:
            remedy = f"no such task; known: {', '.join(task)}"
            yield "error", "unknown_task", "task", row.task, remedy
            return
        task = task[row.task]
    label = row.label
    if task.answer == "text":
        if label is None and row.text is None:
            yield "error", "no_label", "text", None, "a transcript is the answer here; write it or drop the row"
    elif label is None:
        yield "error", "no_label", "label", None, f"task {task.name} needs a label; write it or drop the row"
    elif task.answer == "label":
        yield from _closed(label, task.labels, "label", "one label")
    elif task.answer == "label_set":
        if not isinstance(label, list):
            yield "error", "label_form", "label", label, f"task {task.name} needs a list of labels"
        for item in label if isinstance(label, list) else []:
            yield from _closed(item, task.labels, "label", "a label")
    elif not isinstance(label, dict):
        yield "error", "label_form", "label", label, 'needs {"intent": …, "slots": [{"type", "value"}, …]}'
    else:
        if label.get("intent") is not None or task.intents:
            yield from _closed(label.get("intent"), task.intents, "label.intent", "an intent")
        for slot in label.get("slots", ()):
            yield from _closed(slot["type"], task.slots, "label.slots.type", "a slot type")
            values = (task.slots or {}).get(slot["type"])
            yield from _closed(slot["value"], values, f"label.slots.{slot['type']}", "a value")


def _closed(value: Any, known: Iterable[str] | None, name: str, what: str) -> Iterator[Finding]:
    if not isinstance(value, str):
        yield "error", "label_form", name, value, f"needs {what}"
    elif known is not None and value not in known:
        yield "error", "label_outside", name, value, _near(value, known)


def _recording_issues(row: Utterance, recording: Recording, alone: bool) -> Iterator[Finding]:
    """`alone`: no other row uses this file, so a stated duration should be the file's own."""
    stated, real = row.duration_s, recording.seconds_to_end
    if stated is not None:
        slack = max(TOLERANCE_S, TOLERANCE_SHARE * real)
        if stated > real + slack or (alone and not row.offset_s and stated < real - slack):
            yield "error", "wrong_duration", "duration_s", stated, f"the recording has {real:.2f} s; correct it"
    if recording.seconds < SHORTEST_S:
        yield "warning", "too_short", "audio", row.audio, f"only {recording.seconds:.2f} s; record it again"
    if recording.silence == 1.0:
        yield "error", "silent", "audio", row.audio, "nothing is heard (below -60 dBFS); record it again"
    elif recording.silence > MOSTLY_SILENT:
        yield "warning", "mostly_silent", "audio", row.audio, f"{recording.silence:.0%} is silence; trim or look"
    if recording.clipping > CLIPPED:
        remedy = f"{recording.clipping:.1%} of the samples are clipped; lower the gain when recording"
        yield "warning", "clipping", "audio", row.audio, remedy


def _leaks(
    rows: Sequence[Utterance],
    lines: Sequence[int],
    heard: Sequence[Recording | None],
    others: Mapping[str, Sequence[Utterance]],
) -> Iterator[Issue]:
    """The same recording, text or speaker in several splits; recordings repeated within one."""
    yield from _same_recording(rows, lines, heard, others)
    yield from _same_text(rows, lines, others)
    yield from _speaker_issues([*rows, *(row for split in others.values() for row in split)])


def _same_recording(
    rows: Sequence[Utterance],
    lines: Sequence[int],
    heard: Sequence[Recording | None],
    others: Mapping[str, Sequence[Utterance]],
) -> Iterator[Issue]:
    first_with: dict[str, Utterance] = {}
    if any(heard):
        for row in (row for split in others.values() for row in split):
            if isinstance(recording := examine(row), Recording):
                first_with.setdefault(recording.sha256, row)
    for line, row, recording in zip(lines, rows, heard, strict=True):
        first = first_with.setdefault(recording.sha256, row) if recording else row
        if first.split != row.split:
            remedy = f"the same recording is {first.id!r} in {first.split}; keep one of them"
            yield Issue(line, row.id, "error", "same_audio_in_splits", "audio", row.audio, remedy)
        elif first is not row:
            remedy = f"the same recording as {first.id!r}; keep one unless it is meant to count twice"
            yield Issue(line, row.id, "warning", "same_audio_twice", "audio", row.audio, remedy)


def _same_text(
    rows: Sequence[Utterance], lines: Sequence[int], others: Mapping[str, Sequence[Utterance]]
) -> Iterator[Issue]:
    """Held-out rows whose text is in train (and train rows whose text other splits hold out): each by line, or
    one note where it is most of them.

    Commands, digits and acted sentences say the same words in every split by design; a warning per row would bury
    everything else.
    """
    other = [row for split in others.values() for row in split]
    in_train = {_said(row) for row in [*rows, *other] if row.text and row.split == "train"}
    held_out_elsewhere = {_said(row) for row in other if row.text and row.split != "train"}
    asked, same = 0, []
    for line, row in zip(lines, rows, strict=True):
        forbidden = held_out_elsewhere if row.split == "train" else in_train
        asked += bool(row.text and forbidden)
        if row.text and _said(row) in forbidden:
            same.append((line, row))
    if len(same) * 2 > asked:
        remedy = f"of {asked} texts are in train and held out: right for a closed set of sentences only"
        yield Issue(None, "", "note", "closed_texts", "text", len(same), remedy)
    else:
        for line, row in same:
            remedy = f"both in train and held out ({row.split} here), so results flatter; move one of them"
            yield Issue(line, row.id, "warning", "same_text_in_splits", "text", row.text, remedy)


def _said(row: Utterance) -> tuple[str, str]:
    """What counts as the same text: language and words, whatever case and blanks."""
    return row.language, " ".join((row.text or "").casefold().split())


def _speaker_issues(rows: Sequence[Utterance]) -> Iterator[Issue]:
    train = [row for row in rows if row.split == "train"]
    for split in sorted({row.split for row in rows} - {"train"}):
        held_out = [row for row in rows if row.split == split]
        for speaker in shared_speakers(train, held_out):
            remedy = f"is in train and {split}: the result says nothing about new speakers; split by speaker"
            yield Issue(None, "", "warning", "speaker_in_splits", "speaker", speaker, remedy)
    unknown = sum(row.audio is not None and row.speaker is None for row in rows)
    if unknown:
        remedy = "recordings have no speaker: intervals use utterances as blocks and may be too narrow"
        yield Issue(None, "", "note", "no_speaker", "speaker", unknown, remedy)
