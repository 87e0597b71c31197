"""Finalization: the result that the last attempt left in the store, taken in; then the job has its final status."""

import hashlib
from typing import Any

from pydantic import ValidationError

from db import events, jobs
from db.events import New
from db.models import Attempt, Job
from db.session import Database
from db.turn import turn
from trainer.result import Result
from trainer.store import DamagedError, MissingError, Store


def finalize(database: Database, store: Store, job_id: str) -> bool:
    """Give a finalizing job its scores and its final status; False where it is past that, or another is at it.

    Raises what the store raises where it cannot be asked: the job then waits. A result that is missing or damaged is
    said in the history, and the job ends without scores.
    """
    with turn(database, f"finalize:{job_id}") as mine:
        if not mine:
            return False
        with database.read() as session:
            job = jobs.find(session, job_id)
            last = jobs.attempts(session, job_id)[-1:] if job is not None and job.status == "finalizing" else []
        if job is None or not last:
            return False
        shown, trouble = _read(store, job, last[0])
        with database.write() as session:
            if trouble and last[0].status == "succeeded":
                events.append(session, job_id, [New("result.missing", {"message": trouble})], actor="service")
            return jobs.finish(session, job_id, shown)


def _read(store: Store, job: Job, last: Attempt) -> tuple[dict[str, Any], str]:
    """(what lists show of the result, what is wrong with it)."""
    at = f"projects/{job.project_id}/jobs/{job.id}"
    key = f"{at}/final.json" if last.status == "succeeded" else f"{at}/attempts/{last.no}/result.json"
    try:
        found = store.get(key)
        if last.result_sha256 not in (None, hashlib.sha256(found).hexdigest()):
            return {}, f"{key} is not what the runner wrote: its sha256 is another"
        result = Result.model_validate_json(found)
    except MissingError:
        return {}, f"{key} is not in the store {store.uri}"
    except (DamagedError, ValidationError) as error:
        return {}, f"{key} cannot be read: {error}"
    return jobs.shown(result), ""
