"""`attune export`: a data set in another toolkit's form, so that nobody is locked in. `attune import` reads it back.

export_dataset("lhotse", "data/orders", "orders-lhotse")
"""

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from attune.exporting import hf, lhotse, nemo
from attune.exporting.recordings import Recordings
from attune.importing.source import BadRow, SourceError
from attune.importing.write import check_writable, place_of, task_yaml
from trainer.corpus import tasks_of
from trainer.manifest import Utterance, load, locate

FORMATS = {"nemo": nemo.write, "lhotse": lhotse.write, "hf": hf.write}
"""Writers: (rows of one split, its name, folder, recordings) -> rows that have no place in the format, with reasons."""

__all__ = ["FORMATS", "ExportReport", "export_dataset"]


@dataclass
class ExportReport:
    """What was written. `left_out`: rows that the format has no place for; `line` counts the data set's rows."""

    rows: int = 0
    by_split: dict[str, int] = field(default_factory=dict)
    left_out: list[BadRow] = field(default_factory=list)


def export_dataset(
    format: str, ref: str, out: Path | str, *, roots: Sequence[Path | str] = (".",), link: bool = False
) -> ExportReport:
    """Write the data set that `ref` names (`folder` or `folder:split`) into the new folder `out`, whole or not at all.

    `link`: name the recordings where they are instead of copying them. SourceError: unknown format, more than one task,
    or `out` is there already; ManifestError: no such data set.
    """
    if format not in FORMATS:
        raise SourceError(f"{format!r} is no format; known: {', '.join(FORMATS)}")
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SourceError(f"{out} exists; choose another folder")
    check_writable(out)
    rows = load(ref, roots)
    names = sorted({row.task for row in rows})
    if len(names) > 1:
        raise SourceError(f"{ref}: rows of several tasks ({', '.join(names)}); export a manifest of one task at a time")
    task = tasks_of(ref, roots).get(names[0])
    report, line = ExportReport(), {row.id: n for n, row in enumerate(rows, 1)}
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=place_of(out)))
    try:
        recordings = Recordings(rows, locate(ref, roots).folder, work, link=link)
        for split in dict.fromkeys(row.split for row in rows):
            chosen = [row for row in rows if row.split == split]
            left = FORMATS[format](chosen, split, work, recordings)
            report.left_out += [BadRow(line[row.id], f"{row.id!r}: {reason}") for row, reason in left]
            report.by_split[split] = len(chosen) - len(left)
        if task is not None:
            (work / "task.yaml").write_text(task_yaml(task), encoding="utf-8")
        report.rows = sum(report.by_split.values())
        if not report.rows:
            raise SourceError(f"{ref}: nothing to export; {report.left_out[0]}")
        os.chmod(work, 0o755)  # mkdtemp makes it private
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.exists():
            out.rmdir()  # empty, or this raises
        os.rename(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return report


Left = list[tuple[Utterance, str]]
