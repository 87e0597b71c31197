"""Runner protocol v1. Runners know the API alone: no database, no queue."""

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import AfterValidator, BaseModel, Field
from sqlalchemy.orm import Session

from api.bodies import finite
from api.deps import App, Context, bearer
from api.errors import ApiError
from db import attempts, datasets, jobs, runners
from db.attempts import LEASE_S, Claim

router = APIRouter(prefix="/internal/v1", tags=["internal"], include_in_schema=False)

POLL_S = 0.5
"""How often a waiting claim looks again; no connection is held in between."""


def _token(request: Request) -> str:
    token = bearer(request)
    if token is None:
        raise ApiError(401, "send the token as 'Authorization: Bearer …'", code="no_token")
    return token


Token = Annotated[str, Depends(_token)]


Events = Annotated[list[dict[str, Any]], AfterValidator(finite)]
"""What happened in an attempt; a loss that is no number is null, for neither JSON nor Postgres could hold it."""


class Register(BaseModel):
    code: str


class ClaimRequest(BaseModel):
    protocol: Literal[1]
    pool: str
    code: str
    world_size: int = Field(ge=1)
    device: str = ""
    kinds: list[str] = ["train"]
    max: int = Field(default=1, ge=1)
    wait_s: float = Field(default=20, ge=0, le=30)


class Beat(BaseModel):
    first_seq: int = Field(ge=1)
    events: Events = Field(max_length=10_000)
    state: str | None = None
    step: int | None = None
    progress_at: float | None = None


class Done(BaseModel):
    first_seq: int = Field(ge=1)
    events: Events = []
    outcome: Literal["succeeded", "failed", "yielded"]
    reason: str | None = None
    message: str = ""
    result_sha256: str | None = None


@router.post("/runners/{run}/register")
def register(run: str, body: Register, app: App) -> dict[str, str]:
    """The single-use code for the token."""
    with app.database.write() as session:
        token = runners.register(session, run, body.code)
    if token is None:
        raise ApiError(401, "the code is wrong or has been used", code="bad_code")
    return {"token": token}


@router.post("/runners/{run}/claim")
async def claim(run: str, body: ClaimRequest, app: App, token: Token, request: Request) -> Any:
    """The next job of the pool, or the one that the runner was given and has not ended; 204 where none comes within
    `wait_s`, 410 where the runner is to leave."""
    end = asyncio.get_running_loop().time() + body.wait_s
    while True:
        claimed = await run_in_threadpool(_claim, app, run, body, token)
        if claimed is not None:
            return claimed
        if asyncio.get_running_loop().time() + POLL_S > end or await request.is_disconnected():
            return Response(status_code=204)
        await asyncio.sleep(POLL_S)


def _claim(app: Context, run: str, body: ClaimRequest, token: str) -> dict[str, Any] | None:
    with app.database.read() as session:  # waiting runners look without taking SQLite's one writer's place
        waits = body.pool in jobs.waiting(session)
    with app.database.write() as session:
        runner = runners.seen(session, run, token)
        found = None if runner is None else attempts.held(session, runner, token)
        if runner is None or (found is None and runner.status != "alive"):
            raise ApiError(410, "the runner is to leave", code="gone")
        if (runner.pool, runner.code) != (body.pool, body.code):
            message = f"runner {run} was started for pool {runner.pool} with code {runner.code}"
            raise ApiError(409, message, code="wrong_pool")
        if found is None and waits:
            found = attempts.claim(session, runner, token)
        return None if found is None else {"claims": [_told(session, found)]}


def _told(session: Session, claim: Claim) -> dict[str, Any]:
    job = claim.job
    inputs = datasets.pins(session, job.project_id, (job.resolved or {}).get("spec", {}))
    return {
        "job_id": job.id, "attempt": claim.no, "kind": "train", "token": claim.token, "lease_s": LEASE_S,
        "resolved": job.resolved, "spec_hash": job.spec_hash, "inputs": inputs,
        "prefix": f"projects/{job.project_id}/jobs/{job.id}", "next_seq": 1,
    }  # fmt: skip


@router.post("/attempts/{job_id}/{no}/beat")
def beat(job_id: str, no: int, body: Beat, app: App, token: Token) -> dict[str, Any]:
    """A heartbeat with the events since the last."""
    with app.database.write() as session:
        acked, action = attempts.beat(session, job_id, no, token, body.first_seq, body.events)
    return {"acked_seq": acked, "action": action, "lease_s": LEASE_S}


@router.post("/attempts/{job_id}/{no}/done")
def done(job_id: str, no: int, body: Done, app: App, token: Token) -> dict[str, int]:
    """The attempt has come to its end."""
    with app.database.write() as session:
        acked = attempts.done(session, job_id, no, token, body.first_seq, body.events, body.outcome, body.reason,
                              body.message, body.result_sha256)  # fmt: skip
    app.nudge()
    return {"acked_seq": acked}
