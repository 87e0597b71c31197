"""Data sets: uploaded or taken over, validated, and from then on immutable. A spec names one as `file-…[:split]`."""

import gzip
import logging
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from db import records
from db.heard import Heard
from db.idempotency import KEPT_S
from db.models import Dataset
from db.session import Database, now
from db.settings import Settings
from trainer.archive import ArchiveError, unpack
from trainer.datasets import examine, materialise, store_version
from trainer.fields import SpecError, UnfitDataError, problem
from trainer.manifest import ManifestError, manifests_in
from trainer.store import Store

TRIES, VALIDATION_RETRY_S = 5, 30.0
"""Validations that may fail, or die with their process, before the data set is refused; the wait after the first, and
as much again after every further one."""
AGAIN = "see the service's log, and send it again"

MANIFEST_BYTES, TASK_BYTES = 512 << 20, 1 << 20
"""Of an upload's manifests together, unpacked (some two million rows), and of its task.yaml: they are read into memory,
and a few bytes may unpack to any number."""
UNSETTLED = ("uploading", "validating")
"""Statuses of a data set that may yet become ready."""

_log = logging.getLogger("attune.datasets")
_ID = re.compile(r"(file-[0-9a-z]{26})(?::[^/]*)?")
FIELDS = ("corpus", "text", "speech", "synthetic", "extra_text")
URI, TASK, PARTS, MANIFEST = "uri", "task.yaml", "parts/", "manifest.jsonl"
"""What may lie below a data set's prefix before it is validated: a reference, or what was uploaded."""


def add(session: Session, project_id: str, dataset_id: str, name: str, status: str) -> Dataset:
    """A new data set, `uploading` or `validating`."""
    row = Dataset(
        id=dataset_id, project_id=project_id, name=name, status=status, prefix=prefix(project_id, dataset_id),
        created_at=now(session),
    )  # fmt: skip
    session.add(row)
    session.flush()
    session.refresh(row)
    records.due(session, row.id)
    return row


def prefix(project_id: str, dataset_id: str) -> str:
    """Where in the store an upload waits for its validation."""
    return f"projects/{project_id}/uploads/{dataset_id}"


def find(session: Session, dataset_id: str, project_id: str | None = None) -> Dataset | None:
    """The data set; None where there is none, or it is another project's."""
    row = session.get(Dataset, dataset_id, populate_existing=True)
    return row if row is not None and project_id in (None, row.project_id) else None


def page(session: Session, project_id: str, after: str | None = None, limit: int = 20) -> tuple[list[Dataset], bool]:
    """Data sets of a project, newest first, and whether there are more."""
    chosen = select(Dataset).where(Dataset.project_id == project_id)
    if after is not None:
        chosen = chosen.where(Dataset.id < after)
    found = list(session.scalars(chosen.order_by(Dataset.id.desc()).limit(limit + 1)))
    return found[:limit], len(found) > limit


def completed(session: Session, dataset_id: str) -> bool:
    """All parts have arrived; False where that was said before."""
    waiting = update(Dataset).where(Dataset.id == dataset_id, Dataset.status == "uploading")
    return session.execute(waiting.values(status="validating")).rowcount == 1  # type: ignore[attr-defined]


def settle(session: Session, dataset_id: str, report: Mapping[str, Any], sha256: str | None) -> bool:
    """The end of a validation: `ready` under its version's name, or `refused`. False where it was settled before."""
    waiting = update(Dataset).where(Dataset.id == dataset_id, Dataset.status == "validating")
    values = {"status": "ready" if sha256 else "refused", "report": dict(report), "manifest_sha256": sha256}
    if session.execute(waiting.values(**values)).rowcount != 1:  # type: ignore[attr-defined]
        return False
    records.due(session, dataset_id)
    return True


def sweep(session: Session) -> None:
    """Refuse uploads that were never completed, once a repeat of their request would be another data set."""
    report = _refused(f"its upload was not completed within {KEPT_S / 86_400:.0f} days; send it again")
    given_up = update(Dataset).where(Dataset.status == "uploading", Dataset.created_at < now(session) - KEPT_S)
    for dataset_id in session.scalars(given_up.values(status="refused", report=report).returning(Dataset.id)).all():
        records.due(session, dataset_id)


def unsettled(session: Session, project_id: str, spec: Mapping[str, Any]) -> bool:
    """Whether a data set that the spec names may yet become ready."""
    found = [find(session, dataset_id, project_id) for dataset_id in named(references(spec).values())]
    return any(row is not None and row.status in UNSETTLED for row in found)


def unvalidated(session: Session, limit: int = 100) -> list[str]:
    """Data sets that wait for their validation, oldest first; those that failed, after a while."""
    waiting = select(Dataset.id).where(Dataset.status == "validating")
    due = (Dataset.retry_at.is_(None)) | (Dataset.retry_at <= now(session))
    return list(session.scalars(waiting.where(due).order_by(Dataset.id).limit(limit)))


def validating(session: Session, dataset_id: str) -> int | None:
    """Note that a validation begins; how many there have been, with this one. None where the data set is past that."""
    waiting = update(Dataset).where(Dataset.id == dataset_id, Dataset.status == "validating")
    retry_at = now(session) + VALIDATION_RETRY_S * (Dataset.tries + 1)
    return session.scalar(waiting.values(tries=Dataset.tries + 1, retry_at=retry_at).returning(Dataset.tries))


# ---- validation: files, so outside of any transaction


def validate(database: Database, store: Store, settings: Settings, dataset_id: str) -> bool:
    """Unpack, validate and store a data set; whether this call settled it. One at a time is the caller's business.

    What the user can do something about makes it `refused`; anything else is raised, and tried again, `TRIES` times in
    all. Where another process has begun and died, this one goes on from what it had heard.
    """
    with database.write() as session:
        tries = validating(session, dataset_id)
        row = find(session, dataset_id)
        if row is None or tries is None:
            return False
        if tries > TRIES:
            message = f"its validation was begun {TRIES} times and never came to an end; {AGAIN}"
            return settle(session, dataset_id, _refused(message), None)
    uploads = Path(settings.cache) / "uploads"
    uploads.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{dataset_id}-", dir=uploads))
    try:
        if store.exists(f"{row.prefix}/{URI}"):
            ref, roots = store.get(f"{row.prefix}/{URI}").decode(), settings.roots
        else:
            ref, roots = str(_unpacked(store, row.prefix, folder)), ["."]
        report, version = examine(ref, roots, Heard(store, row.prefix))
        if version is not None:
            store_version(store, f"projects/{row.project_id}", version, report)
    except Exception as error:
        if isinstance(error, ArchiveError | ManifestError | SpecError):
            message = str(error)
        elif isinstance(error, RecursionError):
            message = "a manifest or task.yaml is nested too deeply; both need a few levels only"
        elif tries < TRIES:
            raise
        else:
            _log.warning("validation of %s failed, try %d", dataset_id, tries, exc_info=error)
            message = f"its validation failed {tries} times, at last with {type(error).__name__}: {error}; {AGAIN}"
        for path, said in ((f"{folder}/content/", ""), (f"{folder}/content", "the upload"), (f"{folder}", "")):
            message = message.replace(path, said)
        report, version = _refused(message), None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    with database.write() as session:
        return settle(session, dataset_id, report, version.sha256 if version else None)


def _refused(message: str) -> dict[str, Any]:
    """The report on a data set of which no line could be examined."""
    said = message.encode(errors="replace").decode()
    return {"rows": 0, "errors": 1, "warnings": 0, "notes": 0, "message": said, "manifests": {}}


def _unpacked(store: Store, place: str, folder: Path) -> Path:
    """The folder of an upload's manifests: its archive unpacked, with what was sent beside it."""
    content = folder / "content"
    content.mkdir()
    parts = sorted(store.list(f"{place}/{PARTS}"), key=lambda key: int(key.rpartition("/")[2]))
    if parts:
        archive = folder / "archive"
        with open(archive, "wb") as out:
            for key in parts:
                store.fetch(key, folder / "part")
                with open(folder / "part", "rb") as part:
                    shutil.copyfileobj(part, out, 1 << 20)
        unpack(archive, content)
        archive.unlink()
    inside = list(content.iterdir())
    if len(inside) == 1 and inside[0].is_dir() and not store.exists(f"{place}/{MANIFEST}"):
        content = inside[0]  # an archive of one folder
    for name in (MANIFEST, TASK):
        if store.exists(f"{place}/{name}"):
            if (content / name).exists():
                raise ArchiveError(f"{name} was sent and is in the archive too; leave one out")
            store.fetch(f"{place}/{name}", content / name)
    if (content / TASK).is_file() and (content / TASK).stat().st_size > TASK_BYTES:
        raise ArchiveError(f"{TASK} has more than 1 MiB; a task is a few lines of instructions and labels")
    if sum(_unpacked_size(path) for path in manifests_in(content).values()) > MANIFEST_BYTES:
        most = f"{MANIFEST_BYTES / 2**20:.0f} MiB"
        raise ArchiveError(f"its manifests hold more than {most}, unpacked; make several data sets of it")
    return content


def _unpacked_size(manifest: Path) -> int:
    """Bytes of a manifest, packed or not; counted no further than what is too much."""
    if manifest.suffix != ".gz":
        return manifest.stat().st_size
    size = 0
    with suppress(gzip.BadGzipFile, EOFError, zlib.error), gzip.open(manifest) as file:  # who reads it will say so
        while size <= MANIFEST_BYTES and (block := file.read(1 << 20)):
            size += len(block)
    return size


# ---- in specs


def references(spec: Mapping[str, Any]) -> dict[str, str]:
    """{field: reference} of a job's data, as its spec (parsed or resolved) says them."""
    data, evaluate, source = (spec.get(name) or {} for name in ("data", "evaluate", "source"))
    said = {f"data.{name}": data.get(name) for name in FIELDS}
    said |= {f"evaluate.{name}": evaluate.get(name) for name in ("on", "dev", "guards")}
    said["source.data"] = source.get("data")
    said["evaluate.demos.from"] = (evaluate.get("demos") or {}).get("from")
    found = {name: ref for name, ref in said.items() if isinstance(ref, str)}
    several = {name: refs for name, refs in said.items() if isinstance(refs, list)}
    found |= {f"{name}[{n}]": ref for name, refs in several.items() for n, ref in enumerate(refs)}
    return {name: ref for name, ref in found.items() if isinstance(ref, str)}


def named(refs: Iterable[str]) -> dict[str, str]:
    """{id: reference} of the uploaded data sets among references; wherever in a path, for it would be found there."""
    found = {}
    for ref in refs:
        for part in PurePosixPath(ref).parts:
            if match := _ID.fullmatch(part):
                found[match[1]] = ref
    return found


def pins(session: Session, project_id: str, spec: Mapping[str, Any]) -> dict[str, str]:
    """{id: sha256 of its version} of the uploaded data sets that a spec names. SpecError for one that the project does
    not have, or that is not ready."""
    said = references(spec)
    found = {}
    for dataset_id, ref in named(said.values()).items():
        name = next(key for key, value in said.items() if value == ref)
        row = find(session, dataset_id, project_id)
        if row is None:
            raise problem(name, "no such data set; `GET /v1/datasets` lists those of the project", ref)
        if row.status != "ready" or row.manifest_sha256 is None:
            raise problem(name, f"the data set is {row.status}; a job needs one that is ready", ref, UnfitDataError)
        found[dataset_id] = row.manifest_sha256
    return found


def bring(
    database: Database, store: Store, settings: Settings, project_id: str, spec: Mapping[str, Any]
) -> None:
    """Have the uploaded data sets that a spec names at hand under `settings.roots`. To be called before the spec is
    resolved; errors as of `pins` and `trainer.datasets.materialise`."""
    with database.read() as session:
        wanted = pins(session, project_id, spec)
    for dataset_id, sha256 in wanted.items():
        materialise(store, f"projects/{project_id}", sha256, Path(settings.datasets) / dataset_id)
