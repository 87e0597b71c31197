"""What only the database would know of a row, written to the store beside what the row is about: so that the store is
complete by itself, and the database can be made anew from it (`db.reingest`).

    projects/<p>/project.json
    projects/<p>/studies/<id>/study.json
    projects/<p>/uploads/<id>/dataset.json     settled.json with the end of its validation
    projects/<p>/jobs/<id>/job.json            end.json with its final status, attempts, times

Each is written once, when nothing in it changes any more. That it is to be written is a row of the outbox, so it is
forgotten neither by a crash nor while the store is away.
"""

import json
import logging
import time
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import outbox
from db.models import Attempt, Base, Checkpoint, Dataset, Job, Outbox, Project, Study
from db.outbox import RECORD
from db.session import Database
from db.status import TERMINAL
from trainer.store import ConflictError, DamagedError, Store

TICK_S = 20.0

PROJECT = ("id", "name", "created_at")
STUDY = ("id", "project_id", "name", "spec", "cells", "controls", "notes", "created_at")
DATASET = ("id", "project_id", "name", "created_at")
SETTLED = ("status", "manifest_sha256", "report")
JOB = ("id", "project_id", "study_id", "name", "spec", "priority", "retries", "created_at")
ENDED = (
    "status", "reason", "message", "wanted", "faults", "attempts", "summary", "resolved", "spec_hash", "pool",
    "queued_at", "started_at", "finished_at",
)  # fmt: skip
ATTEMPT = (
    "no", "status", "reason", "message", "runner_id", "used_runner", "step", "step_seconds", "start_step", "acked_seq",
    "result_sha256", "claimed_at", "ended_at",
)  # fmt: skip
CHECKPOINT = ("attempt_no", "step", "prefix", "created_at")

_log = logging.getLogger("attune.records")


def due(session: Session, id_: str) -> None:
    """Have the project, study, data set or job of this id written down once this transaction has been committed."""
    outbox.wake(session, RECORD, id_)


def wait(session: Session) -> bool:
    """Whether anything is to be written down."""
    return session.scalar(select(Outbox.id).where(*outbox.UNRECORDED).limit(1)) is not None


def write(database: Database, store: Store, within_s: float = TICK_S) -> int:
    """Write down what waits, oldest first, for so long; how many. Raises what the store raises where it is away: the
    rest waits on. Any number may do it at once."""
    end, done = time.monotonic() + within_s, 0
    while time.monotonic() < end:
        with database.read() as session:
            row = session.scalar(select(Outbox).where(*outbox.UNRECORDED).order_by(Outbox.id).limit(1))
            files = _files(session, row.key) if row is not None else {}
        if row is None:
            break
        for key, content in files.items():
            try:
                store.put(key, json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n")
            except ConflictError as error:  # written by hand, or by a database that was lost
                _log.warning("%s", error)
        with database.write() as session:
            outbox.sent(session, [row.id])
        done += 1
    return done


def _files(session: Session, id_: str) -> dict[str, dict[str, Any]]:
    """{key: content} of what can be written down of a row by now."""
    match id_.partition("-")[0]:
        case "proj":
            project = session.get(Project, id_)
            if project is None:  # another of its name took its place (db.reingest)
                return {}
            return {f"projects/{id_}/project.json": columns(project, PROJECT)}
        case "study":
            study = session.get_one(Study, id_)
            return {f"projects/{study.project_id}/studies/{id_}/study.json": columns(study, STUDY)}
        case "file":
            dataset = session.get_one(Dataset, id_)
            files = {f"{dataset.prefix}/dataset.json": columns(dataset, DATASET)}
            if dataset.status in ("ready", "refused"):
                files[f"{dataset.prefix}/settled.json"] = columns(dataset, SETTLED)
            return files
    job = session.get_one(Job, id_)
    place = f"projects/{job.project_id}/jobs/{job.id}"
    files = {f"{place}/job.json": {**columns(job, JOB), "tags": job.summary.get("tags", {})}}
    if job.status in TERMINAL:
        files[f"{place}/end.json"] = {**columns(job, ENDED), **_tried(session, job)}
    return files


def _tried(session: Session, job: Job) -> dict[str, Any]:
    tries = session.scalars(select(Attempt).where(Attempt.job_id == job.id).order_by(Attempt.no))
    saved = select(Checkpoint).where(Checkpoint.job_id == job.id).order_by(Checkpoint.step, Checkpoint.attempt_no)
    return {
        "attempt_list": [columns(row, ATTEMPT) for row in tries],
        "checkpoints": [columns(row, CHECKPOINT) for row in session.scalars(saved)],
    }


def read(store: Store, key: str) -> Any:
    """What such a file says; MissingError, DamagedError."""
    try:
        return json.loads(store.get(key))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DamagedError(f"{key}: is no JSON ({error})") from None


def columns(row: Base, names: tuple[str, ...]) -> dict[str, Any]:
    """These columns of a row."""
    return {name: getattr(row, name) for name in names}
