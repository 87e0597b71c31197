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

import numpy as np

from trainer import charset
from trainer.audio import RATE, AudioError
from trainer.leaks import leaks
from trainer.manifest import ManifestError, Utterance, locate, read_numbered
from trainer.recordings import Recording, examine
from trainer.spec import Task
from trainer.streamed import address
from trainer.utterance import unfit
from trainer.words import places

Severity = Literal["error", "warning", "note"]

MOSTLY_SILENT = 0.9
CLIPPED = 0.001
SHORTEST_S = 0.1
FEWEST_PLACES = 5
"""Rows whose right choice stands at one place before that is no chance."""
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
    clipping_share: float | None = None
    """Share of their samples that is clipped (`audio.clipping_share`); None without audio."""
    durations: dict[str, float] | None = None
    """Seconds: the shortest recording, the median, the 95th percentile, the longest (`min`, `median`, `p95`, `max`)."""
    rates: dict[int, int] = field(default_factory=dict)
    """Recordings by the sampling rate of their file, Hz."""
    scripts: dict[str, int] = field(default_factory=dict)
    """Letters of the transcripts by script."""
    labels: dict[str, int] = field(default_factory=dict)
    """Rows by label (intent, member of a label set), those of the task that no row has among them; free answers are not
    counted."""

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
    heard: list[Recording | None] = []
    with ThreadPoolExecutor(workers) as pool:
        examined = recordings or (pool.map(examine, rows) if listen else (None for _ in rows))
        for line, row, recording in zip(lines, rows, examined, strict=True):
            found = [*_text_issues(row), *_word_issues(row), *_label_issues(row, task)]
            if (first := seen_ids.setdefault(row.id, line)) != line:
                remedy = f"already on line {first}; make ids unique"
                found.append(("error", "duplicate_id", "id", row.id, remedy))
            if isinstance(recording, AudioError):
                found.append(("error", f"audio_{recording.code}", "audio", address(row.audio or ""), str(recording)))
            elif recording is not None:
                found += _recording_issues(row, recording, alone=users[row.audio] == 1)
            heard.append(recording if isinstance(recording, Recording) else None)
            for severity, code, name, value, remedy in found:
                report.add(Issue(line, row.id, severity, code, name, value, remedy), limit)
            if progress:
                progress(len(heard), len(rows))
    for line, row, *said in leaks(rows, lines, heard, other_splits or {}):
        report.add(Issue(line, row.id if row else "", *said), limit)  # type: ignore[arg-type]
    _sum_up(report, rows, heard, task)
    for severity, code, name, value, remedy in (*_rate_issues(rows, heard), *_place_issues(rows)):
        report.add(Issue(None, "", severity, code, name, value, remedy), limit)
    report.issues.sort(key=lambda issue: issue.line or 0)
    return report


def _sum_up(
    report: Report,
    rows: Sequence[Utterance],
    heard: Sequence[Recording | None],
    task: Task | Mapping[str, Task] | None,
) -> None:
    """The facts of a report: what there is, whether right or wrong."""
    report.rows = len(rows)
    report.by_split = dict(sorted(Counter(row.split for row in rows).items()))
    report.speakers = len({row.speaker for row in rows if row.speaker})
    known = [recording for recording in heard if recording is not None]
    seconds = np.array([recording.seconds for recording in known])
    report.recordings, report.seconds = len(known), float(seconds.sum())
    if report.seconds:
        report.silence_share = float(seconds @ [r.silence for r in known]) / report.seconds
        report.clipping_share = float(seconds @ [r.clipping for r in known]) / report.seconds
        points = np.quantile(seconds, [0, 0.5, 0.95, 1])
        report.durations = dict(zip(("min", "median", "p95", "max"), points.round(3).tolist(), strict=True))
    report.rates = dict(sorted(Counter(recording.rate for recording in known if recording.rate).items()))
    letters: Counter[str] = Counter()
    for row in rows:
        letters.update(charset.letters(row.text or ""))
    report.scripts = dict(letters.most_common())
    report.labels = _label_counts(rows, task)


def _label_counts(rows: Sequence[Utterance], task: Task | Mapping[str, Task] | None) -> dict[str, int]:
    tasks = {task.name: task} if isinstance(task, Task) else dict(task or {})
    counts: Counter[str] = Counter()
    for row in rows:
        own = next(iter(tasks.values())) if isinstance(task, Task) else tasks.get(row.task)
        if own is None or own.answer in ("text", "choice"):
            continue
        counts.update(dict.fromkeys(own.labels or own.intents or (), 0))
        match row.label:
            case str(label) | {"intent": str(label)}:
                counts[label] += 1
            case [*labels]:
                counts.update(label for label in labels if isinstance(label, str))
    return dict(counts.most_common())


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
    elif row.text:
        for code, value, remedy in charset.findings(row.text, row.language):
            yield "warning", code, "text", value, remedy


def _word_issues(row: Utterance) -> Iterator[Finding]:
    """Of timed words; their form is the manifest's business."""
    if not row.words:
        return
    last = row.words[-1]
    if row.audio is None:
        yield (
            "warning",
            "words_unheard",
            "words",
            None,
            "there is no recording that they could be times of; leave them out",
        )
    elif row.duration_s is not None and last["end"] > row.duration_s + TOLERANCE_S:
        remedy = f"the utterance has {row.duration_s:.2f} s; times count from its own start (offset_s), correct them"
        yield "error", "words_outside", "words", last, remedy
    if row.text and places(row.text, row.words) is None:
        remedy = "together they are not the transcript, so nothing can be cut between them; correct either"
        yield "warning", "words_differ", "words", " ".join(word["text"] for word in row.words)[:80], remedy


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
    if row.choices is not None and task.answer != "choice":
        remedy = f"task {task.name} answers {task.answer}, which takes none; leave them out, or use answer: choice"
        yield "error", "choices_unused", "choices", row.choices, remedy
    if task.answer == "text":
        if label is None and row.text is None:
            yield "error", "no_label", "text", None, "a transcript is the answer here; write it or drop the row"
    elif label is None:
        yield "error", "no_label", "label", None, f"task {task.name} needs a label; write it or drop the row"
    elif task.answer == "label":
        yield from _closed(label, task.labels, "label", "one label")
    elif task.answer == "choice":
        if row.choices is None:
            yield "error", "no_choices", "choices", None, f"task {task.name} asks for one of the row's own; list them"
        elif wrong := unfit(row.choices, label):  # of rows that come from elsewhere than a manifest
            yield "error", "label_outside", "choices", row.choices, wrong
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


def _place_issues(rows: Sequence[Utterance]) -> Iterator[Finding]:
    """Choices of the data set as a whole: as a list in the prompt they must not say by their order which is right."""
    places = [row.choices.index(row.label) for row in rows if row.choices and row.label in row.choices]
    if len(places) >= FEWEST_PLACES and len(set(places)) == 1:
        remedy = f"the right one is number {places[0] + 1} in all {len(places)} rows: a menu tells it; shuffle them"
        yield "warning", "choices_in_order", "choices", None, remedy


def _recording_issues(row: Utterance, recording: Recording, alone: bool) -> Iterator[Finding]:
    """`alone`: no other row uses this file, so a stated duration should be the file's own."""
    stated, real = row.duration_s, recording.seconds_to_end
    if stated is not None:
        slack = max(TOLERANCE_S, TOLERANCE_SHARE * real)
        if stated > real + slack:
            yield "error", "wrong_duration", "duration_s", stated, f"the recording has {real:.2f} s; correct it"
        elif alone and not row.offset_s and stated < real - slack:
            remedy = f"of {real:.2f} s the rest is not used; correct it unless this is a segment"
            yield "warning", "part_of_recording", "duration_s", stated, remedy
    if recording.seconds < SHORTEST_S:
        yield "warning", "too_short", "audio", row.audio, f"only {recording.seconds:.2f} s; record it again"
    if recording.silence == 1.0:
        yield "error", "silent", "audio", row.audio, "nothing is heard (below -60 dBFS); record it again"
    elif recording.silence > MOSTLY_SILENT:
        yield "warning", "mostly_silent", "audio", row.audio, f"{recording.silence:.0%} is silence; trim or look"
    if recording.clipping > CLIPPED:
        remedy = f"{recording.clipping:.1%} of the samples are clipped; lower the gain when recording"
        yield "warning", "clipping", "audio", row.audio, remedy


def _rate_issues(rows: Sequence[Utterance], heard: Sequence[Recording | None]) -> Iterator[Finding]:
    """Sampling rates of the data set as a whole."""
    by_split: dict[str, Counter[int]] = {}
    for row, recording in zip(rows, heard, strict=True):
        if recording is not None and recording.rate:
            by_split.setdefault(row.split, Counter())[recording.rate] += 1
    if low := sum(n for rates in by_split.values() for rate, n in rates.items() if rate < RATE):
        remedy = f"recordings are below {RATE} Hz and hold nothing above half their rate; record at {RATE} Hz or more"
        yield "note", "low_rate", "audio", low, remedy
    usual = {split: rates.most_common(1)[0][0] for split, rates in sorted(by_split.items())}
    if len({min(rate, RATE) for rate in usual.values()}) > 1:
        said = ", ".join(f"{split} {rate} Hz" for split, rate in usual.items())
        remedy = "splits differ in their usual rate, so a result mixes what was learnt with how it was recorded"
        yield "warning", "rates_differ", "audio", said, remedy
