"""Immutable versions of data sets in a store (light): made from a folder of manifests, brought back anywhere.

    datasets/<sha256>/files.json          path, bytes and sha256 of every file; its own sha256 names the version
    datasets/<sha256>/<split>.jsonl …     canonical manifests, and task.yaml
    datasets/<sha256>/report.json
    blobs/<aa>/<sha256>                   recordings, once for all versions that share them
"""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trainer import recordings, streamed
from trainer.audio import AudioError
from trainer.corpus import tasks_of
from trainer.manifest import SPLITS, ManifestError, Utterance, locate, manifests_in, read_numbered, to_json
from trainer.object_store import TEMPORARY, file_digest, safe_key
from trainer.spec import Task
from trainer.store import ConflictError, DamagedError, Store, StoreError
from trainer.validate import Issue, Report, validate

Heard = recordings.Recording | AudioError | None
FILES, TASK = "files.json", "task.yaml"
NAMES = f"cannot be kept by this name; rename it: no backslash, no control character, no `{TEMPORARY}` at the beginning"
LIMIT = 200
"""Issues of each kind that a report keeps; all are counted."""


@dataclass(frozen=True)
class Version:
    """A version that could be made, not stored yet."""

    listing: bytes
    """Content of `files.json`."""
    written: Mapping[str, bytes]
    """Manifests and task by path."""
    recordings: Mapping[str, Path]
    """Where each recording lies, by sha256."""

    @property
    def sha256(self) -> str:
        """The version's name."""
        return hashlib.sha256(self.listing).hexdigest()


@dataclass
class _Manifest:
    """Rows of one manifest with their lines, and what is wrong with it before its recordings are heard."""

    stem: str
    rows: list[Utterance] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    broken: list[Issue] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    """The rows as a version's lines."""


def examine(
    ref: str, roots: Sequence[Path | str] = (".",), hear: Callable[[Utterance], Heard] = recordings.examine
) -> tuple[dict[str, Any], Version | None]:
    """Validate the data set that `ref` names, every manifest of its folder where it names the folder, and make a
    version of it unless there are errors. Recordings must lie in the data set's folder: nothing else is opened. `hear`
    examines one, or remembers what was found.

    The report is plain data, `manifests` with one `validate.Report` for the splits (lines run on from file to file) and
    one for each further manifest. ManifestError where there is no such data set, or no row in it; SpecError for its
    task.yaml.
    """
    if ref.startswith(streamed.SCHEME):
        message = "lies in S3 already: name it in a job's `data`, and its recordings are read from there"
        raise ManifestError(f"{ref}: {message}")
    place = locate(ref, roots)
    whole = any((Path(root) / ref).is_dir() for root in roots)
    files = manifests_in(place.folder).values() if whole else place.files
    groups: dict[str, list[Path]] = {}
    for file in files:
        stem = _stem(file)
        try:
            safe_key(file.name)
        except StoreError:
            raise ManifestError(f"the manifest {file.name!r}: {NAMES}") from None
        groups.setdefault("splits" if stem in SPLITS else stem, []).append(file)
    tasks, manifests, reports = tasks_of(ref, roots), [], {}
    for name, members in groups.items():
        read, offset = [], 0
        for file in sorted(members, key=lambda file: SPLITS.index(_stem(file)) if len(members) > 1 else 0):
            found, last = _read(file, place.folder, place.split, offset)
            read.append(found)
            offset += last
        reports[name] = _validated(read, tasks, hear)
        manifests += read
    if not sum(report.rows for report in reports.values()):
        raise ManifestError(f"{ref}: no rows; a data set has a manifest.jsonl or train/dev/test.jsonl with some")
    totals = {key: sum(getattr(r, key) for r in reports.values()) for key in ("rows", "errors", "warnings", "notes")}
    report = {**totals, "manifests": {name: report.to_json() for name, report in reports.items()}}
    # where the data set lies here is nobody's business, and another place next time
    here = json.dumps(f"{place.folder}{os.sep}", ensure_ascii=False)[1:-1]
    text = json.dumps(report, default=str, ensure_ascii=False).replace(here, "")
    report = json.loads(text.encode(errors="replace"))  # an unknown field's name may hold half a character
    return report, None if totals["errors"] else _version(manifests, place.folder)


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".jsonl")


def _read(file: Path, folder: Path, split: str | None, offset: int) -> tuple[_Manifest, int]:
    """The manifest and its number of lines. A row that no version can hold is broken."""
    found, number, root = _Manifest(_stem(file)), 0, os.path.realpath(folder)
    for number, row in read_numbered(file, folder):
        line = offset + number
        if isinstance(row, ManifestError):
            found.broken.append(Issue(line, "", "error", "bad_row", row.field or "", None, str(row)))
        elif split is None or row.split == split:
            if issue := _unfit(row, line, folder, root):
                found.broken.append(issue)
                continue
            row = replace(row, audio=os.path.normpath(row.audio)) if row.audio else row
            found.rows.append(row)
            found.written.append(to_json(row, folder) + "\n")
            found.lines.append(line)
    return found, number


def _unfit(row: Utterance, line: int, folder: Path, root: str) -> Issue | None:
    """Why no version can hold a row: it cannot be written, or its recording lies elsewhere or has an unsafe name."""

    def error(code: str, field: str, value: Any, remedy: str) -> Issue:
        return Issue(line, row.id, "error", code, field, value, remedy)

    try:
        to_json(row, folder).encode()
    except UnicodeEncodeError as half:
        given = half.object[max(0, half.start - 20) : half.end + 20]
        remedy = f"holds half of a character (given: {given!r}); write it whole, as UTF-8"
        return Issue(line, "", "error", "bad_row", "", None, remedy)
    except (ValueError, RecursionError) as said:
        remedy = f"holds what JSON cannot say ({said}); no NaN, no infinity, a few levels"
        return error("bad_row", "", None, remedy)
    try:
        if row.audio and not os.path.realpath(row.audio).startswith(root + os.sep):
            remedy = "lies outside the data set; put it beside the manifest and name it relative to that"
            return error("audio_outside", "audio", row.audio, remedy)
        if row.audio:
            safe_key(_path(row.audio, folder))
    except ValueError:  # a StoreError, or a NUL
        return error("audio_name", "audio", row.audio, NAMES)
    return None


def _path(audio: str, folder: Path) -> str:
    """A recording's path in a version."""
    return os.path.relpath(audio, folder).replace(os.sep, "/")


def _validated(
    read: Sequence[_Manifest], tasks: Mapping[str, Task], hear: Callable[[Utterance], Heard]
) -> Report:
    rows, lines = [u for m in read for u in m.rows], [n for m in read for n in m.lines]
    heard = (hear(row) for row in rows)
    report = validate(rows, tasks, lines=lines, recordings=heard, limit=LIMIT) if rows else Report()
    for issue in (issue for m in read for issue in m.broken):
        report.add(issue, LIMIT)
        report.rows += 1
    report.issues.sort(key=lambda issue: issue.line or 0)
    return report


def _version(read: Sequence[_Manifest], folder: Path) -> Version:
    written = {f"{m.stem}.jsonl": "".join(m.written).encode() for m in read if m.rows}
    if (folder / TASK).is_file():
        written[TASK] = (folder / TASK).read_bytes()
    entries = [_entry(path, len(data), hashlib.sha256(data).hexdigest()) for path, data in written.items()]
    recordings: dict[str, Path] = {}
    for path in dict.fromkeys(u.audio for m in read for u in m.rows if u.audio):
        size, sha256 = file_digest(Path(path))
        recordings[sha256] = Path(path)
        entries.append(_entry(_path(path, folder), size, sha256))
    entries.sort(key=lambda entry: entry["path"])
    return Version(json.dumps({"files": entries}, indent=1, sort_keys=True).encode() + b"\n", written, recordings)


def _entry(path: str, size: int, sha256: str) -> dict[str, Any]:
    return {"path": safe_key(path), "bytes": size, "sha256": sha256}


# ---- in the store


def store_version(store: Store, project: str, version: Version, report: Mapping[str, Any]) -> str:
    """Store a version below `project` (`projects/<id>`); its sha256. What is there already stays."""
    place = f"{project}/datasets/{version.sha256}"
    if store.exists(f"{place}/{FILES}"):
        return version.sha256
    for sha256, path in version.recordings.items():
        if not store.exists(key := _blob(project, sha256)):
            store.put_file(key, path)
    for path, data in version.written.items():
        store.put(f"{place}/{path}", data)
    with contextlib.suppress(ConflictError):  # of another validation of the same files, at another time
        store.put(f"{place}/report.json", json.dumps(report, indent=1, ensure_ascii=False).encode() + b"\n")
    store.put(f"{place}/{FILES}", version.listing)
    return version.sha256


def materialise(store: Store, project: str, sha256: str, folder: Path | str) -> Path:
    """The version as a local folder, whole or not at all; nothing to do where the folder is there. DamagedError for a
    file whose hash is another, MissingError where there is no such version. Any number may ask at once."""
    folder = Path(folder)
    if folder.is_dir():
        return folder
    place = f"{project}/datasets/{sha256}"
    listing = store.get(f"{place}/{FILES}")
    if hashlib.sha256(listing).hexdigest() != sha256:
        raise DamagedError(f"{place}/{FILES}: is not the one that it was; the data set must be sent again")
    temporary = folder.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    try:
        for entry in json.loads(listing)["files"]:
            path = safe_key(entry["path"])
            target = temporary / path
            key = f"{place}/{path}" if path == TASK or path.endswith(".jsonl") else _blob(project, entry["sha256"])
            store.fetch(key, target)
            if file_digest(target) != (entry["bytes"], entry["sha256"]):
                raise DamagedError(f"{key}: is not the file that the data set {sha256[:12]} was made of")
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.is_dir():  # else another was first, with the same files
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _blob(project: str, sha256: str) -> str:
    return f"{project}/blobs/{sha256[:2]}/{sha256}"
