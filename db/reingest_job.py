"""One job from what it has left in the store: its row, attempts, checkpoints and metrics."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError
from sqlalchemy.orm import Session

from db import datasets, events, jobs, metrics, outbox, records
from db.attempts import plain
from db.events import New
from db.models import Attempt, Checkpoint, Job, Runner
from db.pools import pool_of
from db.session import clock
from db.status import FAULTS, TERMINAL, after_attempt, ending
from trainer.resolve import Resolved
from trainer.result import Result
from trainer.store import DamagedError, MissingError, Store

Model = TypeVar("Model", bound=BaseModel)

UNKNOWN = "run-unknown"
"""Runner of the attempts of which the store does not say whose they were."""
LOST = "it left no result: its runner died, or was at it when the database was lost"


class Left(NamedTuple):
    """What the store says of a job."""

    row: dict[str, Any]
    attempts: list[dict[str, Any]]
    checkpoints: list[dict[str, Any]]
    steps: dict[int, list[dict[str, Any]]]
    """Step events by attempt, each step once."""


def read(store: Store, place: str, keys: Sequence[str], code: str, created_at: float | None) -> Left:
    """What lies at `place`, where the store has these `keys` (relative to it). Whatever is damaged raises.
    `created_at`: for a job that does not say it."""

    def content(name: str) -> Any:
        return records.read(store, f"{place}/{name}")

    _, project_id, _, job_id = place.split("/")
    begun = _parsed(Resolved, content, "spec.json") if "spec.json" in keys else None
    if "job.json" in keys:
        row = content("job.json")
        tags = row.pop("tags")
    elif begun is not None:
        spec = begun.spec
        row = {
            "study_id": None, "name": spec.name, "spec": spec.model_dump(mode="json", by_alias=True),
            "priority": spec.resources.priority, "retries": spec.resources.retries, "created_at": created_at or 0.0,
        }  # fmt: skip
        tags = spec.tags
    else:
        raise MissingError(f"{place}: has neither job.json nor spec.json")
    steps = _steps(store, place, keys)
    if "end.json" in keys:
        end = content("end.json")
        attempts, checkpoints = end.pop("attempt_list"), end.pop("checkpoints")
    else:
        attempts = _attempts(content, keys, row["created_at"])
        checkpoints = _checkpoints(keys, {a["no"]: a["claimed_at"] for a in attempts})
        end = _standing(content, keys, begun, attempts, row["retries"])
        end["summary"] |= {"tags": tags, **_last(steps)}
        if begun is not None:
            resolved = begun.model_dump(mode="json", by_alias=True)
            end |= {"resolved": resolved, "spec_hash": begun.hash, "pool": pool_of(begun, code, job=job_id)}
    whole = {**row, **end, "id": job_id, "project_id": project_id, "last_seq": 0}
    return Left(whole, attempts, checkpoints, steps)


def add(session: Session, left: Left) -> bool:
    """Write the rows and the one event; False, and nothing done, where the database has the job. One that waits for a
    runner is validated again where a data set that it names is not ready yet; SpecError where it is not there, or
    refused: it is taken in once that is another."""
    row, at = {k: v for k, v in left.row.items() if v is not None}, clock(session)
    if row["status"] == "queued" and datasets.unsettled(session, row["project_id"], row["resolved"]["spec"]):
        left.row["status"] = row["status"] = "validating"
    if row["status"] == "queued":
        datasets.pins(session, row["project_id"], row["resolved"]["spec"])
        row["queued_at"] = at
    if row["status"] in TERMINAL and row.get("finished_at") is None:
        row["finished_at"] = at
    if session.scalar(metrics.insert_new(session, Job).values(**row).returning(Job.id)) is None:
        return False
    for attempt in left.attempts:
        _runner(session, attempt["runner_id"], row.get("pool") or "", at)
        token = {"token_sha256": "", "lease_expires_at": 0.0, "progress_at": attempt["claimed_at"]}
        session.add(Attempt(**attempt, **token, job_id=row["id"]))
    session.flush()
    session.add_all(Checkpoint(**checkpoint, job_id=row["id"]) for checkpoint in left.checkpoints)
    for no, steps in left.steps.items():
        metrics.record(session, session.get_one(Attempt, (row["id"], no)), steps)
    if row["status"] in TERMINAL:
        metrics.compact(session, row["id"])
    events.append(session, row["id"], [New("job.reingested", {"status": row["status"]})], actor="service")
    if row["status"] == "validating":
        outbox.wake(session, "validate", row["id"])
    elif row["status"] == "queued":
        outbox.wake(session, "scale", row["pool"])
    else:
        records.due(session, row["id"])
    return True


def _runner(session: Session, runner_id: str, pool: str, at: float) -> None:
    """The row that an attempt refers to; of the runner itself nothing else is known."""
    known = {"id": runner_id, "pool": pool, "code": "", "status": "ended", "reason": "reingested", "world_size": 1}
    known |= {"gpus": 0, "claims": 0, "created_at": at, "ended_at": at}
    session.execute(metrics.insert_new(session, Runner).values(**known))


def _parsed(model: type[Model], content: Callable[[str], Any], name: str) -> Model:
    try:
        return model.model_validate(content(name))
    except ValidationError as error:
        raise DamagedError(f"{name}: {error.error_count()} fields are wrong, {error.errors()[0]['loc']}") from None


# ---- of a job that did not say how it ended


def _standing(
    content: Callable[[str], Any], keys: Sequence[str], begun: Resolved | None, attempts: list[dict], retries: int
) -> dict[str, Any]:
    """Columns of a job whose end is not written down: what the service would have made of its last attempt. One that a
    lost database interrupted goes on from its newest checkpoint."""
    row: dict[str, Any] = {
        "status": "validating" if begun is None else "queued", "reason": None, "message": "", "wanted": "run",
        "attempts": max((a["no"] for a in attempts), default=0), "summary": {"state": None},
        "faults": sum(a["reason"] in FAULTS and a["message"] != LOST for a in attempts),
        "started_at": min((a["claimed_at"] for a in attempts), default=None),
    }  # fmt: skip
    if "final.json" in keys:
        final = _parsed(Result, content, "final.json")
        ended_at = next((a["ended_at"] for a in attempts if a["no"] == final.attempt), None)
        row["summary"] |= jobs.shown(final)
        return row | {"status": "succeeded", "finished_at": ended_at}
    if attempts:
        last = attempts[-1]
        if last["message"] != LOST and after_attempt(
            last["status"], last["reason"], "run", row["faults"], retries
        ) == "finalizing":  # fmt: skip
            result = _parsed(Result, content, f"attempts/{last['no']}/result.json")
            row["summary"] |= jobs.shown(result)
            row |= {"status": ending(last["status"], "run"), "finished_at": last["ended_at"]}
            row |= {"reason": last["reason"], "message": last["message"]}
    return row


def _attempts(content: Callable[[str], Any], keys: Sequence[str], created_at: float) -> list[dict[str, Any]]:
    """Attempts by what they have left: a claim, and a result unless they died."""
    parts = [key.split("/") for key in keys if key.startswith("attempts/")]
    found = []
    for no in sorted({int(p[1]) for p in parts if p[1].isdecimal()}):
        begun = [int(p[3].split("-")[0]) for p in parts if p[1] == str(no) and p[2] == "log"]
        saved = [int(p[3]) for p in parts if p[1] == str(no) and p[2] == "checkpoints" and p[-1] == "manifest.json"]
        at = content(f"attempts/{no}/claim.json")["at"] if f"attempts/{no}/claim.json" in keys else created_at
        row = {
            "no": no, "status": "lost", "reason": "lost_heartbeat", "message": LOST, "runner_id": UNKNOWN,
            "used_runner": False, "start_step": min(begun, default=None), "step": max(saved, default=0),
            "claimed_at": at, "ended_at": at,
        }  # fmt: skip
        if f"attempts/{no}/result.json" in keys:
            result = _parsed(Result, content, f"attempts/{no}/result.json")
            row |= {"status": result.outcome, "reason": result.reason, "message": result.message}
            row |= {"step": result.steps, "ended_at": at + result.wall_seconds}
        found.append(row)
    return found


def _committed(keys: Sequence[str]) -> list[tuple[int, int]]:
    """(step, attempt) of the checkpoints that have a manifest, furthest first."""
    parts = [key.split("/") for key in keys if key.startswith("attempts/") and key.endswith("/manifest.json")]
    return sorted(((int(p[3]), int(p[1])) for p in parts if len(p) == 5 and p[2] == "checkpoints"), reverse=True)


def _checkpoints(keys: Sequence[str], claimed: Mapping[int, float]) -> list[dict[str, Any]]:
    return [
        {"attempt_no": no, "step": step, "prefix": f"attempts/{no}/checkpoints/{step}", "created_at": claimed[no]}
        for step, no in _committed(keys)
    ]


def _steps(store: Store, place: str, keys: Sequence[str]) -> dict[int, list[dict[str, Any]]]:
    """The step events that lead to the furthest checkpoint whose state can be read, by attempt."""
    for step, no in _committed(keys):
        try:
            logs = json.loads(store.get(f"{place}/attempts/{no}/checkpoints/{step}/state.json"))["logs"]
            segments = [(int(log.split("/")[1]), store.get(f"{place}/{log}").decode()) for log in logs]
        except (MissingError, ValueError, KeyError):  # the trainer passes it over too
            continue
        found: dict[int, list[dict[str, Any]]] = {}
        for attempt, lines in segments:
            said = [plain(json.loads(line)) for line in lines.splitlines()]
            steps = [{k: v for k, v in e.items() if k != "row_losses"} for e in said if e["kind"] == "step"]
            found.setdefault(attempt, []).extend(steps)
        return found
    return {}


def _last(steps: Mapping[int, list[dict[str, Any]]]) -> dict[str, Any]:
    """What lists show of the last step."""
    every = [event for events in steps.values() for event in events]
    if not every:
        return {}
    last = max(every, key=lambda event: event["step"])
    return {key: last[key] for key in ("step", "stage", "loss") if key in last}
