"""Source files for the tests of `attune import`, written on the spot."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import soundfile
import yaml

from attune.importing import ImportOptions, ImportReport, import_dataset
from trainer.manifest import Utterance, load
from trainer.spec import Task, read_task

EN = ImportOptions(language="en")


def clip(path: Path, seed: int = 0, seconds: float = 0.3) -> Path:
    """A recording of noise; another seed is another recording."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = np.random.default_rng(seed).normal(0, 0.1, round(seconds * 16_000)).astype(np.float32)
    soundfile.write(path, wave, 16_000)
    return path


def slot(kind: str, value: str) -> dict[str, str]:
    return {"type": kind, "value": value}


class Bring:
    """Write a source file below `folder`/in, import it, give (report, rows, task)."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(
        self, name: str, content: str | bytes | None, options: ImportOptions = EN, out: str = "out"
    ) -> tuple[ImportReport, list[Utterance], Task]:
        path = self.folder / "in" / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            path.write_text(content, encoding="utf-8")
        report = import_dataset(path, self.folder / out, options)
        task = yaml.safe_load((self.folder / out / "task.yaml").read_text(encoding="utf-8"))
        return report, load(str(self.folder / out)), Task(**task)


def json_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """One object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def sound(folder: Path, seed: int, name: str = "x.wav", seconds: float = 0.3) -> dict[str, Any]:
    """An Audio cell as the hub's Parquet files hold it."""
    return {"bytes": clip(folder / "sounds" / f"{seed}-{name}", seed, seconds).read_bytes(), "path": name}


def shard(path: Path, rows: list[dict[str, Any]], names: dict[str, list[str]] | None = None) -> None:
    """A Parquet file as `datasets` writes it; `names` are the classes of columns whose labels are numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    features = {column: {"_type": "ClassLabel", "names": classes} for column, classes in (names or {}).items()}
    table = pa.Table.from_pylist(rows)
    about = json.dumps({"info": {"features": features}})
    parquet.write_table(table.replace_schema_metadata({"huggingface": about}), path)


def cut(
    id: str, source: str, start: float, duration: float, supervisions: list[dict[str, Any]], **recording: Any
) -> dict[str, Any]:
    """A cut as Lhotse writes it."""
    sources = [{"type": "file", "channels": [0], "source": source}]
    return {
        "id": id, "start": start, "duration": duration, "channel": 0, "supervisions": supervisions,
        "recording": {"id": "r", "sources": sources, "sampling_rate": 16000, "num_samples": 32000, "duration": 2.0,
                      "channel_ids": [0], **recording},
        "type": "MonoCut",
    }  # fmt: skip


def bring_kind(
    folder: Path, kind: str, out: str = "out", source: str = "in", **options: Any
) -> tuple[ImportReport, dict[str, Utterance], Task]:
    """Import `folder`/in as a kind of source: (report, rows by id, task)."""
    report = import_dataset(folder / source, folder / out, ImportOptions(**options), kind=kind)
    rows = load(str(folder / out))
    return report, {row.id: row for row in rows}, read_task(folder / out / "task.yaml")
