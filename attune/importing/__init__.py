"""`attune import`: what teams have (tables, clips, BIO, chat files) and published corpora become data sets.

    report = import_dataset("orders.csv", "data/orders", ImportOptions(language="it"))
    report = import_dataset("SLURP/", "data/slurp", kind="slurp")

Columns are inferred and said; rows that cannot be used are listed with line and reason, the rest is imported.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

from attune.importing.assemble import assemble
from attune.importing.found import KINDS, Found, find, nothing
from attune.importing.options import ImportOptions
from attune.importing.report import ImportReport, readme
from attune.importing.source import BadRow, SourceError, is_language
from attune.importing.unpacked import unpacked
from attune.importing.write import check_writable, dataset_at, name_audio, place_of, task_yaml, write_dataset
from trainer.fields import nearest

__all__ = ["KINDS", "BadRow", "ImportOptions", "ImportReport", "SourceError", "import_dataset", "write_found"]


def import_dataset(
    source: str | Path,
    out: str | Path,
    options: ImportOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    kind: str | None = None,
) -> ImportReport:
    """Read `source` (a file, a folder, or an archive of one), check it, split it by speaker where it has no split, and
    write the data set folder `out`. `kind` says what it is, one of KINDS; None: by its looks.

    Returns the report, which is also in `out/report.json`. SourceError: the source cannot be read, nothing in it
    is usable, the language is unknown, or `out` holds another data set or cannot be written. The same import again
    changes nothing.
    """
    options = options or ImportOptions()
    path = Path(source)
    if kind is not None and kind not in KINDS:
        raise SourceError(f"{kind!r} is no kind of source; {nearest(kind, KINDS)}")
    dataset_at(Path(out))  # what must not be overwritten is said before an hour of decoding
    check_writable(Path(out))
    if options.language is not None and not is_language(options.language):
        raise SourceError(f"--language {options.language!r}: must be a BCP-47 tag, e.g. it or fr-FR")
    if options.audio_root is not None and not Path(options.audio_root).is_dir():
        raise SourceError(f"--audio-root {str(options.audio_root)!r}: no such folder; correct it")
    if not path.exists():
        raise SourceError(f"{path}: no such file or folder")
    with tempfile.TemporaryDirectory(prefix=f".{Path(out).name}-", dir=place_of(Path(out))) as work:
        found = find(unpacked(path, Path(work)), kind, options, Path(work))
        return write_found(found, path, Path(out), options, progress, Path(work))


def write_found(
    found: Found,
    path: Path,
    out: Path,
    options: ImportOptions,
    progress: Callable[[int, int], None] | None,
    work: Path,
) -> ImportReport:
    """Check what was found at `path`, split it and write it to `out`; recordings below `work` are moved there, others
    copied."""
    rows, validation, more_bad = assemble(
        found.records, found.task, _stem(path), found.notes,
        language=options.language, speaker_pattern=options.speaker_pattern, shares=options.shares,
        seed=options.seed, progress=progress,
    )  # fmt: skip
    bad = sorted([*found.bad, *more_bad], key=lambda row: (row.file, row.line or 0))
    if not rows:
        raise SourceError(nothing(path, bad))
    if options.link and any(row.audio and Path(row.audio).is_relative_to(work.absolute()) for row in rows):
        raise SourceError("--link: the recordings come out of an archive or of other files; leave --link out")
    named, files = (rows, {}) if options.link else name_audio(rows)
    report = ImportReport.of(
        path.name, found.format, found.columns, found.notes, found.suggestions, found.rows_read, bad, named
    )
    report.task, report.validation, report.provenance = found.task.name, validation.to_json(), found.provenance
    where = {old.audio: new.audio for old, new in zip(rows, named, strict=True)}
    for issue in report.validation["issues"]:  # paths as they are in the new folder, not on this machine
        issue["value"] = where.get(issue["value"], issue["value"]) if issue["field"] == "audio" else issue["value"]
    about = readme(report, found.task, out.name)
    files |= found.beside
    report.written = write_dataset(out, named, found.task, report.to_json(), files, about, ours=work.absolute())
    task_file = out / "task.yaml"
    if not report.written and not (task_file.is_file() and task_file.read_text("utf-8") == task_yaml(found.task)):
        report.notes.append(f"{task_file} says otherwise than this import would, and was left as it is")
    return report


def _stem(path: Path) -> str:
    return path.name.split(".")[0] or "row"
