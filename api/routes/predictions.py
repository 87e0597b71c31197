"""What a job answered to its test set, and what it was asked: rows and recordings."""

import json
import os
import tempfile
from functools import lru_cache
from typing import Any, Literal

import soundfile
from fastapi import APIRouter
from fastapi.responses import FileResponse, Response

from api import schema, shapes
from api.deps import App, Reader
from api.errors import ApiError, not_found
from api.routes.jobs import Limit, found
from db import datasets
from db.models import Job
from trainer import audio
from trainer.manifest import ManifestError, Utterance, load, locate
from trainer.predictions import Row, read_predictions, right
from trainer.source_rows import SourceRows, together
from trainer.store import Store

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


def scored(store: Store, job: Job) -> dict[str, list[Row]]:
    """Prediction rows of a finished job by modality, those of the attempt that finished; 409 for another job."""
    if job.status != "succeeded":
        raise ApiError(409, f"job {job.id} is {job.status}; it has no predictions before it has succeeded",
                       code="illegal_status")  # fmt: skip
    return read_predictions(store, f"projects/{job.project_id}/jobs/{job.id}/attempts/{final(store, job)['attempt']}")


def final(store: Store, job: Job) -> dict[str, Any]:
    """`final.json` of a job that has succeeded."""
    return json.loads(store.get(f"projects/{job.project_id}/jobs/{job.id}/final.json"))


def of_modality(rows: dict[str, list[Row]], modality: str | None) -> list[Row]:
    """The rows of one modality: the one asked for, else speech, else what there is. 404 where it was not scored."""
    name = modality or next((m for m in ("speech", "text") if m in rows), None)
    if name is None or name not in rows:
        have = ", ".join(rows) or "nothing"
        raise ApiError(404, f"modality {name!r} was not scored; there is {have}", code="modality_not_found",
                       param="modality")  # fmt: skip
    return rows[name]


@router.get("/{job_id}/predictions", response_model=schema.Page[dict[str, Any]])
def predictions(
    job_id: str,
    app: App,
    who: Reader,
    modality: str | None = None,
    after: str | None = None,
    limit: Limit = 20,
    only: Literal["wrong"] | None = None,
) -> dict[str, Any]:
    """What was answered to each test utterance, in the order of the test set; `only=wrong` leaves out what is right by
    the job's main metric. `after`: the utterance that the last page ended with."""
    with app.database.read() as session:
        job = found(session, job_id, who)
    rows = of_modality(scored(app.store, job), modality)
    start = 0
    if after is not None:
        start = next((n for n, row in enumerate(rows, 1) if row["utterance"] == after), -1)
        if start < 0:
            raise ApiError(400, f"after: no utterance {after!r}; give the last_id of a page", code="invalid_request",
                           param="after")  # fmt: skip
    metric = _metric(job)
    judged = ({"object": "prediction", "id": r["utterance"], "right": right(r, metric), **r} for r in rows[start:])
    shown: list[dict[str, Any]] = []
    for row in judged:
        if only == "wrong" and row["right"]:
            continue
        if len(shown) == limit:
            return shapes.page(shown, True)
        shown.append(row)
    return shapes.page(shown, False)


def _metric(job: Job) -> str:
    return (job.resolved or {})["spec"]["evaluate"]["metric"]


@router.get("/{job_id}/audio/{utterance:path}", response_class=Response,
            responses={200: {"content": {"audio/wav": {}}}, 206: {"content": {"audio/wav": {}}}})  # fmt: skip
def recording(job_id: str, utterance: str, app: App, who: Reader) -> Response:
    """The recording of a test utterance, from its offset for its duration: WAV, 16 kHz, mono; in parts (`Range`) too,
    without which a browser's player cannot seek."""
    with app.database.read() as session:
        job = found(session, job_id, who)
    if job.resolved is None:
        raise ApiError(409, f"job {job_id} is {job.status}; its test set is not known yet", code="illegal_status")
    datasets.bring(app.database, app.store, app.settings, job.project_id, job.resolved["spec"])
    test = job.resolved["test"]
    on = job.resolved["spec"]["evaluate"]["on"]
    refs = tuple(on) if isinstance(on, list) else (test["ref"],)
    row = _tested(refs, test["sha256"], tuple(app.settings.roots)).get(utterance)
    if row is None or row.audio is None:
        raise not_found("recording", utterance)
    try:
        wave = audio.read(row.audio, row.offset_s, row.duration_s)
    except audio.AudioError:  # its text would tell where it lies
        raise not_found("recording", utterance) from None
    kept = tempfile.NamedTemporaryFile(prefix="attune-", suffix=".wav")  # noqa: SIM115  # as long as the answer
    soundfile.write(kept.name, wave, audio.RATE, format="WAV", subtype="PCM_16")
    os.utime(kept.name, (0, int(job.created_at)))  # its parts are of one file: ETag and Last-Modified follow from this
    response = _Kept(kept.name, media_type="audio/wav", headers={"Cache-Control": "private, max-age=3600"})
    response.kept = kept
    return response


class _Kept(FileResponse):
    """An answer from a temporary file, which goes with it, also where the client hangs up."""

    kept: Any


@lru_cache(maxsize=16)
def _tested(refs: tuple[str, ...], sha256: str, roots: tuple[str, ...]) -> dict[str, Utterance]:
    """The test rows of a job by id; 410 where they are no longer those that it was resolved with."""
    try:
        read = [(ref, load(ref, roots), locate(ref, roots).folder) for ref in refs]
        found = together([SourceRows(ref, rows, len(rows), folder) for ref, rows, folder in read])
        rows, same = found.rows, found.sha256 == sha256
    except (ManifestError, OSError):
        same, rows = False, []
    if not same:
        message = f"the test set {', '.join(refs)!r} has changed since the job was resolved"
        raise ApiError(410, message, code="data_changed", param="evaluate.on")
    return {row.id: row for row in rows}
