"""Hugging Face: `data/<split>-00000-of-00001.parquet` with an Audio column; `load_dataset("parquet", …)` reads it.

A recording that one row uses alone stands in that row; one that several rows share (segments of a talk) stays a file,
named by its path, for it would be written as often as it is used.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from attune.exporting.recordings import Recordings
from attune.importing.ours import OURS, extra
from trainer.manifest import Utterance

ROWS = 100
"""Rows written at a time."""
AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
COLUMNS = {
    "id": pa.string(), "audio": AUDIO, "offset_s": pa.float64(), "duration_s": pa.float64(), "text": pa.string(),
    "label": pa.string(), "language": pa.string(), "speaker": pa.string(), OURS: pa.string(),
}  # fmt: skip
_DTYPES = {pa.string(): "string", pa.float64(): "float64"}


def write(rows: Sequence[Utterance], split: str, folder: Path, recordings: Recordings) -> list[tuple[Utterance, str]]:
    """All rows: a text without recording has none in `audio`. A structured label is JSON."""
    features = {
        name: {"_type": "Audio"} if kind == AUDIO else {"_type": "Value", "dtype": _DTYPES[kind]}
        for name, kind in COLUMNS.items()
    }
    about = {"huggingface": json.dumps({"info": {"features": features}}), OURS: "1"}
    schema = pa.schema(list(COLUMNS.items()), metadata=about)
    (folder / "data").mkdir(exist_ok=True)
    with parquet.ParquetWriter(folder / "data" / f"{split}-00000-of-00001.parquet", schema) as file:
        for start in range(0, len(rows), ROWS):
            cells = list(_cells(rows[start : start + ROWS], recordings))
            file.write_table(pa.Table.from_pylist(cells, schema))
    return []


def _cells(rows: Sequence[Utterance], recordings: Recordings) -> Iterator[dict[str, Any]]:
    for row in rows:
        label = row.label if isinstance(row.label, str | None) else json.dumps(row.label, ensure_ascii=False)
        yield {
            "id": row.id, "audio": _audio(row, recordings), "offset_s": row.offset_s, "duration_s": row.duration_s,
            "text": row.text, "label": label, "language": row.language, "speaker": row.speaker,
            OURS: json.dumps(extra(row), ensure_ascii=False),
        }  # fmt: skip


def _audio(row: Utterance, recordings: Recordings) -> dict[str, Any] | None:
    if row.audio is None:
        return None
    if recordings.users[row.audio] > 1 or recordings.link:
        return {"bytes": None, "path": recordings.path(row)}
    return {"bytes": Path(row.audio).read_bytes(), "path": Path(row.audio).name}
