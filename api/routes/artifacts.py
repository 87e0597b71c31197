"""What a job has left in the store."""

import mimetypes
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse, RedirectResponse, Response

from api import schema, shapes
from api.deps import App, Context, Reader
from api.errors import not_found
from api.routes.jobs import found
from db.keys import Holder
from trainer.s3_store import S3Store
from trainer.store import StoreError

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


def prefix(app: Context, job_id: str, who: Holder) -> str:
    """Where the job's things lie; 404 for another project's job."""
    with app.database.read() as session:
        job = found(session, job_id, who)
        return f"projects/{job.project_id}/jobs/{job.id}/"


@router.get("/{job_id}/artifacts", response_model=schema.Page[schema.Artifact])
def listed(job_id: str, app: App, who: Reader) -> dict[str, Any]:
    """Paths of everything the job has left so far."""
    start = prefix(app, job_id, who)
    data = [{"id": key.removeprefix(start), "object": "artifact"} for key in app.store.list(start)]
    return shapes.page(data, False)


@router.get("/{job_id}/artifacts/{path:path}", response_class=Response,
            responses={200: {"content": {"application/octet-stream": {}}}, 302: {"description": "it is on S3"}},
            )  # fmt: skip
def download(job_id: str, path: str, app: App, who: Reader) -> Response:
    """One of them: the file, or where it lies on S3 a redirect to a link that holds for ten minutes."""
    key = prefix(app, job_id, who) + path
    try:
        if not app.store.exists(key):
            raise not_found("artifact", path)
    except (StoreError, OSError):  # a path that climbs out, or longer than a name may be
        raise not_found("artifact", path[:200]) from None
    kind = mimetypes.guess_type(path)[0] or ("text/plain" if path.endswith(".jsonl") else "application/octet-stream")
    if isinstance(app.links, S3Store):
        return RedirectResponse(app.links.link(key, seconds=600), 302)
    return FileResponse(app.links.path(key), media_type=kind, filename=Path(path).name)
