"""Data sets: named where they lie, uploaded at once, or uploaded in parts; validated; then immutable."""

import hashlib
import logging
import shutil
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from starlette.datastructures import UploadFile

from api import schema, shapes
from api.bodies import plain
from api.deps import App, Context, Reader, Writer
from api.errors import ApiError, not_found
from api.local_paths import leaves
from api.routes.jobs import Limit
from api.shapes import seconds
from db import datasets, idempotency, outbox
from db.ids import new_id
from db.keys import Holder
from db.models import Dataset
from db.turn import LONG, turn
from trainer.manifest import locate
from trainer.store import ConflictError

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])

MOST_PARTS = 64
"""Of at most `api.bodies.PART` bytes each: together what an archive may hold."""
SMALL_ROWS = 2000
"""Up to so many rows, or in one part, a data set is validated by this process; larger ones wait for a worker."""

_log = logging.getLogger("attune.api")
_slots = threading.BoundedSemaphore(2)
"""Validations at a time: each holds its rows in memory, and decodes."""


class NewDataset(BaseModel):
    """A data set to take over or to upload in parts."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1, max_length=200)
    uri: str | None = None
    """Reference of a data set in the service's data folders: `folder` or `folder:split`."""
    parts: bool = False
    """It will be uploaded in parts: `PUT …/parts/{n}`, then `POST …/complete`."""

    @model_validator(mode="after")
    def _one_way(self) -> "NewDataset":
        if bool(self.uri) == self.parts:
            raise ValueError("give uri, or parts: true, or send manifest and archive as multipart/form-data")
        return self


_FORM = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string"},
        "manifest": {"type": "string", "format": "binary", "description": "manifest.jsonl"},
        "task": {"type": "string", "format": "binary", "description": "task.yaml, where the task is not built in"},
        "archive": {
            "type": "string", "format": "binary",
            "description": "zip, tar or tar.gz of the recordings, and of the manifests where none is sent beside it",
        },
    },
}  # fmt: skip
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": NewDataset.model_json_schema()},
            "multipart/form-data": {"schema": _FORM},
        },
    }
}


@router.post("", openapi_extra=_BODY, response_model=schema.Dataset)
async def create(
    request: Request,
    app: App,
    who: Writer,
    key: Annotated[str | None, Header(alias="Idempotency-Key", max_length=255)] = None,
) -> dict[str, Any]:
    """A new data set, one of three ways: JSON with `uri`; JSON with `parts: true`; or multipart with the files."""
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        async with request.form(max_files=3, max_fields=1) as form:
            return await run_in_threadpool(_uploaded, app, who, dict(form), key)
    try:
        said = plain(await request.json())
        body = NewDataset.model_validate(said)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "body"
        raise ApiError(400, f"{place}: {first['msg']}", code="invalid_request", param=place) from None
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"body: {error}", code="invalid_request", param="body") from None
    return await run_in_threadpool(_named, app, who, body, key)


def _named(app: Context, who: Holder, body: NewDataset, key: str | None) -> dict[str, Any]:
    """A data set by reference, or one whose parts will come."""
    dataset_id, small = new_id("file-"), False
    if body.uri:
        if datasets.named([body.uri]) or (not app.settings.trusted and leaves(body.uri)):
            raise ApiError(400, f"uri: {body.uri!r} is no reference to the service's data folders; use a relative one "
                           "without '..'", code="invalid_request", param="uri")  # fmt: skip
        small = sum(_lines(file) for file in locate(body.uri, app.settings.roots).files) <= SMALL_ROWS
        app.store.put(f"{datasets.prefix(who.project_id, dataset_id)}/{datasets.URI}", body.uri.encode())
    with app.database.write() as session:

        def make() -> dict[str, Any]:
            status = "validating" if body.uri else "uploading"
            row = datasets.add(session, who.project_id, dataset_id, body.name, status)
            if body.uri and not small:
                outbox.wake(session, "dataset", dataset_id)
            return _shape(row)

        asked = body.model_dump()
        made, repeated = idempotency.once(session, who.project_id, "POST /v1/datasets", key, asked, make)
    if small and not repeated:
        _begin(app, dataset_id)
    app.nudge()
    return made


def _lines(manifest: Path) -> int:
    with open(manifest, "rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def _uploaded(app: Context, who: Holder, form: Mapping[str, Any], key: str | None) -> dict[str, Any]:
    """A data set whose files are in the request. Its row comes first, so that a repeated request goes on with it: the
    store takes the same bytes twice."""
    name, files = form.get("name"), {k: v for k, v in form.items() if isinstance(v, UploadFile)}
    if unknown := set(form) - {"name", "manifest", "task", "archive"}:
        message = f"unknown part; known: name, manifest, task, archive (given: {min(unknown)!r})"
        raise ApiError(400, message, code="invalid_request", param=min(unknown))
    given = TypeAdapter(str).validate_python(name) if isinstance(name, str) else ""
    if not 0 < len(given) <= 200 or not files.keys() & {"manifest", "archive"}:
        message = "send a name of up to 200 characters, and manifest or archive or both, as files"
        raise ApiError(400, message, code="invalid_request", param="name")
    if "task" in files and (files["task"].size or 0) > datasets.TASK_BYTES:
        raise ApiError(413, "task: a task.yaml may have 1 MiB", code="too_large", param="task")
    asked = {"name": given, "files": {part: _sha256(file) for part, file in files.items()}} if key is not None else None
    with app.database.write() as session:

        def make() -> dict[str, Any]:
            row = datasets.add(session, who.project_id, new_id("file-"), given, "uploading")
            return {**_shape(row), "status": "validating"}  # as it is by the time of the answer

        made, _ = idempotency.once(session, who.project_id, "POST /v1/datasets", key, asked, make)
        row = found(session, made["id"], who)
    if row.status == "uploading":
        _keep(app, row, files)
        with app.database.write() as session:
            first = datasets.completed(session, row.id)
        if first:
            _begin(app, row.id)
    return made


def _sha256(file: UploadFile) -> str:
    digest = hashlib.file_digest(file.file, "sha256").hexdigest()  # type: ignore[arg-type]
    file.file.seek(0)
    return digest


def _keep(app: Context, row: Dataset, files: Mapping[str, UploadFile]) -> None:
    for part, at in (("manifest", datasets.MANIFEST), ("task", datasets.TASK), ("archive", f"{datasets.PARTS}1")):
        if part in files:
            with tempfile.NamedTemporaryFile(prefix="attune-") as kept:
                shutil.copyfileobj(files[part].file, kept, 1 << 20)
                kept.flush()
                app.store.put_file(f"{row.prefix}/{at}", kept.name)


def _begin(app: Context, dataset_id: str) -> None:
    """Validate a data set beside the request."""
    threading.Thread(target=_validate, args=(app, dataset_id), name=dataset_id, daemon=True).start()


def _validate(app: Context, dataset_id: str) -> None:
    try:
        with _slots, turn(app.database, f"dataset:{dataset_id}", *LONG) as mine:
            if mine:
                datasets.validate(app.database, app.store, app.settings, dataset_id)
    except Exception:  # the thread's boundary: it waits on, and a worker finds it
        _log.exception("validation of %s", dataset_id)


def _shape(row: Dataset, report: bool = False) -> dict[str, Any]:
    found = row.report or {}
    counts = {key: found.get(key) for key in ("rows", "errors", "warnings", "notes")}
    return {
        "object": "dataset", "id": row.id, "name": row.name, "status": row.status, "sha256": row.manifest_sha256,
        **counts, "created_at": seconds(row.created_at), **({"report": row.report} if report else {}),
    }  # fmt: skip


@router.get("", response_model=schema.Page[schema.Dataset])
def listed(app: App, who: Reader, after: str | None = None, limit: Limit = 20) -> dict[str, Any]:
    """Data sets of the project, newest first."""
    with app.database.read() as session:
        if after is not None and datasets.find(session, after, who.project_id) is None:
            raise ApiError(400, f"after: no data set {after!r}; give the last_id of a page", code="invalid_request",
                           param="after")  # fmt: skip
        rows, more = datasets.page(session, who.project_id, after, limit)
        return shapes.page([_shape(row) for row in rows], more)


def found(session, dataset_id: str, who: Holder) -> Dataset:
    """The data set, or 404."""
    row = datasets.find(session, dataset_id, who.project_id)
    if row is None:
        raise not_found("dataset", dataset_id)
    return row


@router.get("/{dataset_id}", response_model=schema.DatasetInFull)
def one(dataset_id: str, app: App, who: Reader) -> dict[str, Any]:
    """A data set with the report of its validation, line by line."""
    with app.database.read() as session:
        return _shape(found(session, dataset_id, who), report=True)


def _uploading(app: Context, dataset_id: str, who: Holder) -> Dataset:
    with app.database.read() as session:
        row = found(session, dataset_id, who)
    if row.status != "uploading":
        raise ApiError(409, f"the data set is {row.status}; it takes no more parts", code="illegal_status")
    return row


@router.put("/{dataset_id}/parts/{number}", response_model=schema.DatasetPart)
async def part(dataset_id: str, number: int, request: Request, app: App, who: Writer) -> dict[str, Any]:
    """Part `number`, from 1, of the archive: any bytes up to 64 MiB. The same again is harmless."""
    row = await run_in_threadpool(_uploading, app, dataset_id, who)
    if not 1 <= number <= MOST_PARTS:
        raise ApiError(400, f"number: parts are numbered from 1 to {MOST_PARTS}", code="invalid_request",
                       param="number")  # fmt: skip
    size, digest = 0, hashlib.sha256()
    with tempfile.NamedTemporaryFile(prefix="attune-") as kept:
        async for block in request.stream():
            size += len(block)
            digest.update(block)
            kept.write(block)
        kept.flush()
        try:
            await run_in_threadpool(app.store.put_file, f"{row.prefix}/{datasets.PARTS}{number}", kept.name)
        except ConflictError:
            message = f"part {number} was sent before with other bytes; begin a new data set"
            raise ApiError(409, message, code="part_exists") from None
    return {"object": "dataset.part", "dataset_id": dataset_id, "number": number, "bytes": size,
            "sha256": digest.hexdigest()}  # fmt: skip


@router.post("/{dataset_id}/complete", response_model=schema.Dataset)
def complete(dataset_id: str, app: App, who: Writer) -> dict[str, Any]:
    """All parts are there: put together they are a zip, tar or tar.gz with manifests and recordings."""
    with app.database.read() as session:
        row = found(session, dataset_id, who)
    if row.status != "uploading":  # said before
        return _shape(row)
    keys = app.store.list(f"{row.prefix}/{datasets.PARTS}")
    numbers = sorted(int(key.rpartition("/")[2]) for key in keys)
    if not numbers or numbers != list(range(1, len(numbers) + 1)):
        missing = next(n for n in range(1, MOST_PARTS + 1) if n not in numbers)
        raise ApiError(409, f"part {missing} is missing; send it first", code="parts_missing")
    small = len(numbers) == 1
    with app.database.write() as session:
        first = datasets.completed(session, dataset_id)
        if first and not small:
            outbox.wake(session, "dataset", dataset_id)
        row = found(session, dataset_id, who)
    if first and small:
        _begin(app, dataset_id)
    app.nudge()
    return _shape(row)
