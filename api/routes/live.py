"""A job's events as they come (server-sent events)."""

from typing import Annotated

from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse

from api.deps import App, Reader
from api.errors import ApiError
from api.routes.jobs import found

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

MOST = (1 << 63) - 1
"""What a database's numbers hold; a stream that has begun could not refuse more."""
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


@router.get("/{job_id}/stream", response_class=StreamingResponse,
            responses={200: {"content": {"text/event-stream": {}}}})  # fmt: skip
def stream(
    job_id: str,
    app: App,
    who: Reader,
    last: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
    after: Annotated[str | None, Query(description="as Last-Event-ID, where no header can be set")] = None,
) -> StreamingResponse:
    """Events after `Last-Event-ID` (`<job>:<seq>`), then live ones; ends when the job has. The header comes before
    `after`, for a browser that reconnects repeats its address."""
    seq = 0
    name, given = ("after", after) if last is None else ("Last-Event-ID", last)
    if given is not None:
        of, _, number = given.rpartition(":")
        if of != job_id or not number.isdecimal():
            message = f"{name}: no event of this job; give the id of one, {job_id}:<seq> (given: {given!r})"
            raise ApiError(400, message, code="invalid_request", param=name)
        seq = min(int(number), MOST)
    with app.database.read() as session:  # may hang: the route is not `async`, so heartbeats go on
        found(session, job_id, who)
    return StreamingResponse(app.tailer.follow(job_id, seq), media_type="text/event-stream", headers=HEADERS)
