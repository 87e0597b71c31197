"""Rows of Parquet and Arrow files as Hugging Face writes them, recordings as files: `Audio(decode=False)`.

An Audio column is a struct of `bytes` and `path` (docs of `datasets`, "Audio features"). Bytes are written to a
folder; a path without bytes is looked for below the data set. Needs pyarrow only.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from attune.importing.corpus import Corpus
from attune.importing.source import SourceError

ROWS = 64
"""Rows that are in memory at a time; each may hold minutes of audio."""
_SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}(-[0-9a-f]+)?")
_MAGIC = {b"RIFF": ".wav", b"fLaC": ".flac", b"OggS": ".ogg"}


def files_below(corpus: Corpus) -> list[Path]:
    """Parquet files (a hub folder) or Arrow files (`save_to_disk`) of a corpus; our own data sets' index is none."""
    found = corpus.files("*.parquet") or [p for p in corpus.files("*.arrow") if not p.name.startswith("cache-")]
    return [p for p in found if not (p.name == "index.parquet" and p.with_name("manifest.jsonl").is_file())]


def split_of(path: Path, root: Path) -> str | None:
    """The published name of a file's split: `train-00000-of-00002.parquet`, `train/0000.parquet`,
    `train/data-00000-of-00001.arrow`; None where neither name nor folder says it."""
    match = _SHARD.fullmatch(path.stem)
    name = match[1] if match else path.stem
    if name == "data" or name.isdigit():
        return path.parent.name if path.parent != root else None
    return name


def read(path: Path, corpus: Corpus) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row from 1, cells); an Audio cell becomes the Path of a file, or None. SourceError: no such file format."""
    line = 0
    try:
        for batch in _batches(path):
            for cells in batch.to_pylist():
                line += 1
                failed = False
                for column, cell in cells.items():
                    if isinstance(cell, dict) and cell.keys() == {"bytes", "path"}:
                        try:
                            cells[column] = _recording(cell, corpus, corpus.name(path), line)
                        except ValueError as error:
                            corpus.skip(path, line, str(error))
                            failed = True
                if not failed:
                    yield line, cells
    except pa.ArrowException as error:
        raise SourceError(f"{path}: not a whole Parquet or Arrow file ({error}); copy it again") from None


def schema(path: Path) -> pa.Schema:
    """Columns of a file."""
    try:
        if path.suffix == ".parquet":
            return parquet.read_schema(path)
        with pa.memory_map(str(path)) as file:
            return pa.ipc.open_stream(file).schema
    except pa.ArrowException as error:
        raise SourceError(f"{path}: not a whole Parquet or Arrow file ({error}); copy it again") from None


def class_names(path: Path) -> dict[str, list[str]]:
    """Class names by column, which Hugging Face keeps in the schema, where numbers stand for labels."""
    info = json.loads((schema(path).metadata or {}).get(b"huggingface", b"{}"))
    features = info.get("info", {}).get("features") or {}
    return {c: [str(n) for n in f["names"]] for c, f in features.items() if isinstance(f, dict) and f.get("names")}


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    if path.suffix == ".parquet":
        with parquet.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=ROWS)
    else:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
            for batch in stream:
                for start in range(0, batch.num_rows, ROWS):
                    yield batch.slice(start, ROWS)


def _recording(cell: dict[str, Any], corpus: Corpus, shard: str, line: int) -> Path | None:
    if cell["bytes"] is None:
        return corpus.finder.find(cell["path"]) if cell["path"] else None
    folder = corpus.work / re.sub(r"[^\w.-]", "_", shard)
    folder.mkdir(exist_ok=True)
    given = Path(cell["path"] or "")
    suffix = given.suffix.lower() or _MAGIC.get(cell["bytes"][:4], ".mp3")
    target = folder / f"{given.stem[:80] or f'row-{line:06d}'}{suffix}"
    if target.exists():  # another row's recording of the same name
        target = folder / f"{target.stem}-{line:06d}{suffix}"
    target.write_bytes(cell["bytes"])
    return target
