"""Writing a data set: an immutable folder whose id is the sha256 of its canonical manifest."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import yaml

from attune.importing.source import SourceError
from trainer.manifest import Utterance, fingerprint, to_json, write_manifest
from trainer.spec import Task


def name_audio(rows: Sequence[Utterance]) -> tuple[list[Utterance], dict[str, Path]]:
    """(rows with paths `audio/<stem>-<hash>.<suffix>`, files to copy by that path).

    The first 12 digits of the file's sha256 are part of the name: equal names cannot collide, one file used by
    many rows is copied once, and the manifest's hash pins the recordings too.
    """
    names: dict[str, str] = {}
    files: dict[str, Path] = {}
    renamed = []
    for row in rows:
        if row.audio is not None:
            if row.audio not in names:
                path = Path(row.audio)
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                stem = re.sub(r"[^\w.-]+", "_", path.stem).strip("._")[:80] or "clip"
                stem = stem.removesuffix(f"-{digest[:12]}")  # named by us before
                names[row.audio] = f"audio/{stem}-{digest[:12]}{path.suffix.lower()}"
                files[names[row.audio]] = path
            row = replace(row, audio=names[row.audio])
        renamed.append(row)
    return renamed, files


def dataset_at(folder: Path) -> str | None:
    """Id of the data set in a folder, from its report; None where the folder is absent or empty.

    SourceError where it holds something else.
    """
    try:
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return None
        return str(json.loads((folder / "report.json").read_text(encoding="utf-8"))["id"])
    except (OSError, ValueError, KeyError, TypeError):
        raise SourceError(f"{folder} exists and is no data set of ours; choose another folder") from None


def place_of(out: Path) -> Path:
    """The nearest place above `out` that exists."""
    place = out.absolute().parent
    while not os.path.lexists(place):
        place = place.parent
    return place


def check_writable(out: Path) -> None:
    """SourceError where the folder `out` can surely not be made: said before the recordings are decoded."""
    place = place_of(out)
    if not place.is_dir():
        raise SourceError(f"{out}: cannot be made, {place} is a file; choose another folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise SourceError(f"{out}: no permission to write in {place}; choose another folder or change its permissions")


def task_yaml(task: Task) -> str:
    """task.yaml of a data set."""
    fields = task.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
    if task.slots:  # None is a value here: an open slot
        fields["slots"] = task.slots
    return yaml.safe_dump(fields, allow_unicode=True, sort_keys=False, width=110)


def write_dataset(
    out: Path,
    rows: Sequence[Utterance],
    task: Task,
    report: dict[str, Any],
    files: dict[str, Path],
    readme: str,
    *,
    ours: Path,
) -> bool:
    """Write the folder, whole or not at all; False if this very data set is there already.

    Recordings in the folder `ours` (unpacked ones) are moved, others copied. `rows` carry audio paths relative to the
    new folder (or absolute ones, linked). SourceError rather than overwrite.
    """
    identity = fingerprint(rows)
    if (there := dataset_at(out)) is not None:
        if there == identity:
            return False
        raise SourceError(f"{out} holds another data set ({there[:12]}); data sets are never changed: choose another")
    working = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        working = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        for name, path in files.items():
            (working / name).parent.mkdir(exist_ok=True)
            (shutil.move if path.is_relative_to(ours) else shutil.copyfile)(path, working / name)
        write_manifest(rows, working / "manifest.jsonl")
        _write_index(rows, working / "index.parquet")
        (working / "task.yaml").write_text(task_yaml(task), encoding="utf-8")
        (working / "README.md").write_text(readme, encoding="utf-8")
        text = json.dumps({"id": identity, **report}, ensure_ascii=False, indent=1)
        (working / "report.json").write_text(text + "\n", encoding="utf-8")
        os.chmod(working, 0o755)  # mkdtemp makes it private
        if out.exists():
            out.rmdir()  # empty, or this raises
        os.rename(working, out)
    except OSError as error:
        raise SourceError(
            f"{out}: cannot be written ({error.strerror or error}: {error.filename or out}); "
            "make room or choose another folder"
        ) from None
    finally:
        if working is not None:
            shutil.rmtree(working, ignore_errors=True)
    return True


def _write_index(rows: Sequence[Utterance], path: Path) -> None:
    """One row per utterance with what planning asks for, and the byte at which its manifest line begins."""
    starts, at = [], 0
    for row in rows:
        starts.append(at)
        at += len(to_json(row).encode()) + 1
    columns = {
        "id": pa.array([r.id for r in rows], pa.string()),
        "task": pa.array([r.task for r in rows]).dictionary_encode(),
        "language": pa.array([r.language for r in rows]).dictionary_encode(),
        "split": pa.array([r.split for r in rows]).dictionary_encode(),
        "speaker": pa.array([r.speaker for r in rows], pa.string()).dictionary_encode(),
        "has_text": pa.array([r.text is not None for r in rows]),
        "has_audio": pa.array([r.audio is not None for r in rows]),
        "offset_s": pa.array([r.offset_s for r in rows], pa.float64()),
        "duration_s": pa.array([r.duration_s for r in rows], pa.float64()),
        "manifest_byte": pa.array(starts, pa.int64()),
    }
    parquet.write_table(pa.table(columns), path)
