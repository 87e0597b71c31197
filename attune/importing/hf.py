"""Hugging Face data sets on disk: a hub folder of Parquet files, or what `save_to_disk` left.

Columns are guessed as those of a table are; the split is the name that the file was published under. What
`attune export hf` wrote comes back as it was.
"""

import json
from datetime import date, time
from pathlib import Path
from typing import Any

from attune.importing import arrow
from attune.importing.corpus import Corpus, need
from attune.importing.options import ImportOptions
from attune.importing.ours import OURS, restored
from attune.importing.source import RawRow, Source
from attune.importing.split import split_name

LAYOUT = "data/train-00000-of-00001.parquet, or a folder of save_to_disk"


def is_hf(corpus: Corpus) -> bool:
    """Whether the folder holds Parquet or Arrow files."""
    return bool(arrow.files_below(corpus))


def is_ours(corpus: Corpus) -> bool:
    """Whether all files were written by `attune export hf`."""
    found = arrow.files_below(corpus)
    return bool(found) and all(OURS.encode() in (arrow.schema(path).metadata or {}) for path in found)


def read_ours(corpus: Corpus, _options: ImportOptions) -> None:
    """Rows of our own export."""
    for path in arrow.files_below(corpus):
        for line, row in arrow.read(path, corpus):
            with corpus.row(path, line):
                said = {name: row[name] for name in ("text", "language", "speaker", "duration_s")}
                said |= restored(json.loads(row[OURS]))
                corpus.add(path, line, audio=row["audio"], offset_s=row["offset_s"] or 0.0, **said)


def read_hf(corpus: Corpus) -> Source:
    """Rows with the columns that the files have, and `split` where file names say one."""
    source = Source([], "hf", corpus.root)
    for path in need(arrow.files_below(corpus), corpus.root, "hf", LAYOUT):
        name = arrow.split_of(path, corpus.root)
        source.names |= arrow.class_names(path)
        for line, cells in arrow.read(path, corpus):
            if name and not split_name(str(cells.get("split") or "")):
                cells = {**cells, "split": name}
            source.rows.append(RawRow(line, {c: _plain(v) for c, v in cells.items()}, corpus.name(path)))
    spoken = {column for row in source.rows[:100] for column, cell in row.cells.items() if isinstance(cell, Path)}
    if len(spoken) > 1:
        source.notes.append(f"recordings in the columns {', '.join(sorted(spoken))}: one is used (--audio says which)")
    source.bad = corpus.bad
    return source


def _plain(value: Any) -> Any:
    """A cell that JSON can hold: times as text, bytes that are no recording as nothing."""
    if isinstance(value, bytes):
        return None
    return value.isoformat() if isinstance(value, date | time) else value
