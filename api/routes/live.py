"""A job's events as they come (server-sent events)."""

from typing import Annotated

from fastapi import APIRouter, Header
from fastapi.responses import StreamingResponse

from api.deps import App, Reader
from api.errors import ApiError
from api.routes.jobs import found

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


@router.get("/{job_id}/stream", response_class=StreamingResponse,
            responses={200: {"content": {"text/event-stream": {}}}})  # fmt: skip
async def stream(
    job_id: str, app: App, who: Reader, last: Annotated[str | None, Header(alias="Last-Event-ID")] = None
) -> StreamingResponse:
    """Events after `Last-Event-ID` (`<job>:<seq>`), then live ones; ends when the job has."""
    seq = 0
    if last is not None:
        of, _, number = last.rpartition(":")
        if of != job_id or not number.isdecimal():
            raise ApiError(400, f"Last-Event-ID: {last!r} is no event of job {job_id}", code="invalid_request",
                           param="Last-Event-ID")  # fmt: skip
        seq = int(number)
    with app.database.read() as session:
        found(session, job_id, who)
    return StreamingResponse(app.tailer.follow(job_id, seq), media_type="text/event-stream", headers=HEADERS)
