"""`attune import`: what teams have (tables, clips, BIO, chat files, Hugging Face JSON) becomes a data set.

    report = import_dataset("orders.csv", "data/orders", ImportOptions(language="it"))

Columns are inferred and said; rows that cannot be used are listed with line and reason, the rest is imported.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from attune.importing.assemble import assemble
from attune.importing.labels import answer_form, fit_labels, infer_task
from attune.importing.read import read_source
from attune.importing.records import read_records
from attune.importing.report import ImportReport, readme
from attune.importing.roles import infer_roles, task_name
from attune.importing.source import BadRow, SourceError, is_language
from attune.importing.split import SHARES
from attune.importing.write import check_writable, dataset_at, name_audio, task_yaml, write_dataset

__all__ = ["BadRow", "ImportOptions", "ImportReport", "SourceError", "import_dataset"]


@dataclass(frozen=True)
class ImportOptions:
    """What may be said instead of inferred."""

    language: str | None = None
    """BCP-47 tag of every row; needed unless a column gives it."""
    columns: Mapping[str, str | None] = field(default_factory=dict)
    """Role → column (audio, text, label, intent, slots, speaker, split, language, id, offset_s, duration_s); None:
    there is none. `slots` may name several columns, separated by commas: one slot type each."""
    answer: str | None = None
    """json | label | label_set | text."""
    task: str | None = None
    """Name of the task; default by its answer form."""
    instruction: str | None = None
    """What the model is asked, in English."""
    audio_root: str | Path | None = None
    """Folder of the recordings; default: where the source lies."""
    speaker_pattern: str | None = None
    """Regular expression for the file name (without folder) whose first group is the speaker."""
    shares: Mapping[str, float] = field(default_factory=lambda: dict(SHARES))
    """Shares of train, dev and test where the source has no split."""
    seed: int = 0
    """Seed of the split."""
    link: bool = False
    """Refer to the recordings where they are (absolute paths) instead of copying them."""
    encoding: str | None = None
    """Encoding of a text source; default UTF-8 or what its byte order mark says."""
    sheet: str | None = None
    """Sheet of a workbook; default the first."""


def import_dataset(
    source: str | Path,
    out: str | Path,
    options: ImportOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImportReport:
    """Read `source`, check it, split it by speaker and write the data set folder `out`.

    Returns the report, which is also in `out/report.json`. SourceError: the source cannot be read, nothing in it
    is usable, the language is unknown, or `out` holds another data set or cannot be written. The same import again
    changes nothing.
    """
    options = options or ImportOptions()
    path = Path(source)
    dataset_at(Path(out))  # what must not be overwritten is said before an hour of decoding
    check_writable(Path(out))
    if options.language is not None and not is_language(options.language):
        raise SourceError(f"--language {options.language!r}: must be a BCP-47 tag, e.g. it or fr-FR")
    read = read_source(path, options.encoding, options.sheet)
    if options.audio_root is not None and not Path(options.audio_root).is_dir():
        raise SourceError(f"--audio-root {str(options.audio_root)!r}: no such folder; correct it")
    if not read.rows:
        raise SourceError(_nothing(path, read.bad))
    roles, guesses = infer_roles(read, options.columns)
    notes = [*read.notes, *guesses]
    rows_read = len(read.rows) + len(read.bad)
    records, bad = read_records(read, roles, Path(options.audio_root or read.audio_root))
    bad = [*read.bad, *bad]
    if not records:
        raise SourceError(_nothing(path, bad))
    answer = answer_form(records, options.answer, notes)
    records = fit_labels(records, answer, bad)
    if not records:
        raise SourceError(_nothing(path, bad))
    task, suggestions = infer_task(
        records, answer, options.task or task_name(read, roles.get("task")), options.instruction or read.instruction
    )
    rows, validation, more_bad = assemble(
        records, task, _stem(path), notes,
        language=options.language, speaker_pattern=options.speaker_pattern, shares=options.shares,
        seed=options.seed, progress=progress,
    )  # fmt: skip
    bad = sorted([*bad, *more_bad], key=lambda row: row.line or 0)
    if not rows:
        raise SourceError(_nothing(path, bad))
    named, files = (rows, {}) if options.link else name_audio(rows)
    report = ImportReport.of(path.name, read.format, roles, notes, suggestions, rows_read, bad, named)
    report.task, report.validation = task.name, validation.to_json()
    report.written = write_dataset(
        Path(out), named, task, report.to_json(), files, readme(report, task, Path(out).name)
    )
    task_file = Path(out) / "task.yaml"
    if not report.written and not (task_file.is_file() and task_file.read_text("utf-8") == task_yaml(task)):
        report.notes.append(f"{task_file} says otherwise than this import would, and was left as it is")
    return report


def _stem(path: Path) -> str:
    return path.name.split(".")[0] or "row"


def _nothing(path: Path, bad: list[BadRow]) -> str:
    first = "; ".join(str(row) for row in bad[:3])
    return f"{path.name}: no usable row{f' of {len(bad)}: {first}' if bad else ''}"
