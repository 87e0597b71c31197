"""Documents with a summary: from a table, or from Parquet files of the hub, to the rows of a summarisation task."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attune.importing import BadRow, SourceError
from attune.importing.corpora.mega_ssum import TASK
from attune.importing.corpus import Corpus
from attune.importing.found import Found, nothing, read_rows
from attune.importing.records import AudioFinder
from attune.importing.source import RawRow, Source, is_language
from attune.importing.split import SPLITS, split_name
from attune.importing.unpacked import unpacked
from trainer.fields import nearest
from trainer.leaks import plain
from trainer.manifest import Utterance

COLUMNS: Mapping[str, str] = {
    "text": "text document article transcription transcript dialogue passage",
    "summary": "summary highlights abstract",
    "id": "id", "split": "split", "language": "language", "speaker": "speaker",
}  # fmt: skip
"""Columns that are taken where none is named, the first there is; a text and a summary there must be."""


@dataclass(frozen=True)
class PairOptions:
    """What is said of the source."""

    language: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    """Of `text`, `summary`, `split`, `id` and `speaker`, instead of COLUMNS."""
    audio: str | None = None
    """Speech that exists: a column with its files, or a folder with a recording named by each row's id."""
    audio_root: Path | None = None
    """Folder that the column's paths are relative to; default: where the source lies."""
    instruction: str | None = None
    encoding: str | None = None
    sheet: str | None = None


def read_pairs(source: Path, ask: PairOptions, work: Path) -> Found:
    """One record per document, its summary as the label; a text that comes twice counts once, and where one of them is
    held out, there. `work`: a folder to write in. SourceError: a column is missing, or nothing is usable."""
    if ask.language is not None and not is_language(ask.language):
        raise SourceError(f"--language {ask.language!r}: must be a BCP-47 tag, e.g. ar or ar-EG")
    if not source.exists():
        raise SourceError(f"{source}: no such file or folder")
    path = unpacked(source, work)
    root = path if path.is_dir() else path.parent
    folder = Path(ask.audio) if ask.audio and Path(ask.audio).is_dir() else None
    finder = AudioFinder(folder or ask.audio_root or root)
    corpus = Corpus(root, finder, work, only=None if path.is_dir() else path)
    read = read_rows(path, None, ask.encoding, ask.sheet, corpus)
    columns, rows_read = _columns(read, ask, folder), len(read.rows) + len(read.bad)
    for row in read.rows:
        where = root / row.file if row.file else path
        with corpus.row(where, row.line):
            _add(corpus, where, row, columns, folder)
    bad = list(dict.fromkeys([*read.bad, *corpus.bad]))  # of Parquet both are one list
    records = _once(corpus, bad, ask.language)
    if not records:
        raise SourceError(nothing(source, bad))
    said = {"instruction": {"en": ask.instruction}} if ask.instruction else {}
    found = Found(f"summaries ({read.format})", rows_read, records, bad, read.notes, TASK.model_copy(update=said))
    found.columns = {role: column for role, column in columns.items() if column}
    return found


def _columns(read: Source, ask: PairOptions, folder: Path | None) -> dict[str, str | None]:
    """Role → column. SourceError where a column that was named, or the text or the summary, is not there."""
    there = list(dict.fromkeys(key for row in read.rows for key in row.cells))
    found: dict[str, str | None] = {}
    for role, names in COLUMNS.items():
        given = ask.columns.get(role)
        if given is not None and given not in there:
            raise SourceError(f"--{role} {given}: no such column; {nearest(given, there)}")
        found[role] = given or next((name for name in names.split() if name in there), None)
        if found[role] is None and role in ("text", "summary"):
            raise SourceError(f"no column with the {role} among: {', '.join(there)}; say --{role} COLUMN")
    if found["text"] == found["summary"]:
        raise SourceError(f"--summary {found['summary']}: is the column with the text too; name another")
    if ask.audio and folder is None:
        if ask.audio not in there:
            raise SourceError(f"--audio {ask.audio}: neither a folder nor a column; {nearest(ask.audio, there)}")
        found["audio"] = ask.audio
    if folder and not found["id"]:
        raise SourceError(f"--audio {folder}: recordings are found by the rows' ids, which have no column; say --id")
    return found


def _add(corpus: Corpus, path: Path, row: RawRow, columns: Mapping[str, str | None], folder: Path | None) -> None:
    def cell(role: str) -> Any:  # a Path where the table itself holds the recording
        value = row.cells.get(columns.get(role) or "")
        return value if isinstance(value, Path) else " ".join(str(value if value is not None else "").split()) or None

    text, summary, split = cell("text"), cell("summary"), None
    if not text or not summary:
        raise ValueError("no summary" if text else "no text")
    if columns["split"] and (split := split_name(cell("split") or "")) is None:
        raise ValueError(f"split {cell('split') or ''!r}: must be {', '.join(SPLITS)}; correct it")
    if (language := cell("language")) and not is_language(language):
        raise ValueError(f"language {language!r}: must be a BCP-47 tag, e.g. ar")
    audio = cell("id") if folder else cell("audio")
    if audio is None and (folder or columns.get("audio")):
        raise ValueError("no recording")
    rest = {k: v for k, v in row.cells.items() if k not in columns.values() and isinstance(v, str | int | float)}
    said: dict[str, Any] = {"id": cell("id"), "language": language, "speaker": cell("speaker"), "split": split}
    corpus.add(path, row.line, audio=audio, text=text, label=summary, meta=rest, **said)


def _once(corpus: Corpus, bad: list[BadRow], language: str | None) -> list:
    """The records whose text no other has, whatever case and punctuation; of equal ones the held-out one, else the
    first, stays."""
    first: dict[tuple[str, str], Any] = {}
    for record in sorted(corpus.records, key=lambda r: r.split in (None, "train")):
        same = first.setdefault(plain(Utterance("-", "-", record.language or language or "", "-", record.text)), record)
        if same is not record:
            where = f"{same.file}:{same.line}" if same.file else f"line {same.line}"
            held = f", which is in {same.split}" if same.split not in (None, record.split) else ""
            bad.append(BadRow(record.line, f"has the text of {where!r}{held}", record.file))
    kept = {id(record) for record in first.values()}
    return [record for record in corpus.records if id(record) in kept]
