"""What a source holds, whatever it is: records with their task, what was left out, what was assumed."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from attune.importing import hf
from attune.importing.corpora import CORPORA
from attune.importing.corpus import Corpus
from attune.importing.labels import answer_form, fit_labels, infer_task
from attune.importing.options import ImportOptions
from attune.importing.read import read_source
from attune.importing.records import AudioFinder, Record, read_records
from attune.importing.roles import infer_roles, task_name
from attune.importing.source import BadRow, Source, SourceError
from trainer.spec import Task, read_task

KINDS = ("table", "hf", *CORPORA)
"""What a source may be said to be; `table`: a table, a chat or BIO file, or a folder of clips, by its looks."""
OWN_TASK = ("hf", "nemo", "lhotse", "kaldi")
"""Kinds that define no task: a task.yaml in the folder does."""


@dataclass
class Found:
    """Records of a source with their task, and what was said on the way."""

    format: str
    rows_read: int
    records: list[Record]
    bad: list[BadRow]
    notes: list[str]
    task: Task
    suggestions: list[str] = field(default_factory=list)
    columns: Mapping[str, str] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)
    """Where texts and recordings come from and under which licence, for the card; empty where the source is all."""
    beside: dict[str, Path] = field(default_factory=dict)
    """Further files of the data set, by name."""


def find(path: Path, kind: str | None, options: ImportOptions, work: Path) -> Found:
    """Read the file or folder `path` as `kind`, or by its looks. SourceError: it cannot be read, or holds nothing."""
    root = path if path.is_dir() else path.parent
    corpus = Corpus(root, AudioFinder(Path(options.audio_root or root)), work, only=None if path.is_dir() else path)
    if kind is None and hf.is_hf(corpus):
        kind = "hf"
    reader = hf.read_ours if kind == "hf" and hf.is_ours(corpus) else CORPORA.get(kind or "")
    _check_options(kind, options, table=reader is None)
    if reader is None:
        return _table(path, kind, options, corpus)
    reader(corpus, options)
    languages = {str(record.language or options.language) for record in corpus.records}
    if languages and options.language not in (None, *languages):
        raise SourceError(
            f"{kind}: its rows are in {', '.join(sorted(languages))}, not in --language {options.language}"
        )
    rows_read, records = len(corpus.records) + len(corpus.bad), corpus.records
    task = corpus.task or _task_beside(root, kind)
    records, task, suggestions = _with_task(path, records, corpus.bad, corpus.notes, task, options)
    return Found(str(kind), rows_read, records, corpus.bad, corpus.notes, task, suggestions)


def _check_options(kind: str | None, options: ImportOptions, *, table: bool) -> None:
    """SourceError for what was said and would not be heeded."""
    of_kinds = {"target": ("must-c",), "config": ("italic", "common-voice")}
    for name, kinds in of_kinds.items():
        if getattr(options, name) is not None and kind not in kinds:
            raise SourceError(f"--{name} is for {' and '.join(kinds)}; leave it out")
    texts = ("encoding", "sheet") if kind in CORPORA or kind == "hf" else ()
    said = [name for name in texts if getattr(options, name) is not None]
    if said or (options.columns and not table):
        name = said[0] if said else next(iter(options.columns))
        raise SourceError(f"--{name.replace('_', '-')} has no meaning for {kind}, whose layout is known; leave it out")


def _table(path: Path, kind: str | None, options: ImportOptions, corpus: Corpus) -> Found:
    """A source of rows whose columns have to be told apart."""
    read = read_rows(path, kind, options.encoding, options.sheet, corpus)
    roles, guesses = infer_roles(read, options.columns)
    records, bad = read_records(read, roles, Path(options.audio_root or read.audio_root))
    bad, notes = [*read.bad, *bad], [*read.notes, *guesses]
    name, asked = options.task or task_name(read, roles.get("task")), options.instruction or read.instruction
    said = replace(options, task=name, instruction=asked)
    records, task, suggestions = _with_task(path, records, bad, notes, _task_beside(corpus.root, kind), said)
    rows_read = len(read.rows) + len(read.bad)
    return Found(read.format, rows_read, records, bad, notes, task, suggestions, roles)


def read_rows(path: Path, kind: str | None, encoding: str | None, sheet: str | None, corpus: Corpus) -> Source:
    """The rows of a table, or of Parquet files, before columns have a meaning; SourceError where there are none."""
    parquet = kind == "hf" or (kind is None and hf.is_hf(corpus))
    read = hf.read_hf(corpus) if parquet else read_source(path, encoding, sheet)
    if not read.rows:
        raise SourceError(nothing(path, read.bad))
    return read


def _task_beside(root: Path, kind: str | None) -> Task | None:
    """The task that a folder of a generic format brings along (our own exports do)."""
    path = root / "task.yaml"
    return read_task(path) if kind in OWN_TASK and path.is_file() else None


def _with_task(
    path: Path, records: list[Record], bad: list[BadRow], notes: list[str], task: Task | None, options: ImportOptions
) -> tuple[list[Record], Task, list[str]]:
    """(records, task, suggestions): the task that the source defines, or the one that its labels amount to."""
    if not records:
        raise SourceError(nothing(path, bad))
    if task is not None and options.answer in (None, task.answer):
        said: dict[str, Any] = {"name": options.task} if options.task else {}
        said |= {"instruction": {"en": options.instruction}} if options.instruction else {}
        return records, Task.model_validate(task.model_dump() | said), []
    answer = answer_form(records, options.answer, notes)
    records = fit_labels(records, answer, bad)
    if not records:
        raise SourceError(nothing(path, bad))
    return records, *infer_task(records, answer, options.task, options.instruction)


def nothing(path: Path, bad: list[BadRow]) -> str:
    """What to say of a source without usable rows."""
    first = "; ".join(str(row) for row in bad[:3])
    return f"{path.name}: no usable row{f' of {len(bad)}: {first}' if bad else ''}"
