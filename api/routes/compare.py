"""Is b better than a? Two jobs, or two sets of seeds, compared on the same test utterances."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query

from api.bodies import finite
from api.deps import App, Reader
from api.errors import ApiError
from api.routes.jobs import found
from api.routes.predictions import of_modality, scored
from db.models import Job
from trainer.compare import compare, interval
from trainer.metrics import METRICS

router = APIRouter(prefix="/v1", tags=["studies"])

Ids = Annotated[str, Query(min_length=1, description="a job, or the runs of one cell separated by commas")]


@router.get("/compare")
def compared(
    app: App,
    who: Reader,
    a: Ids,
    b: Ids,
    metric: str | None = None,
    modality: str | None = None,
    task: str | None = None,
    confidence: Annotated[float, Query(gt=0, lt=1)] = 0.95,
) -> dict[str, Any]:
    """The difference b − a with its interval, p and verdict, and the interval of each side. `task`: which, where the
    test has several; `metric`: default the main one of the first job, of several tasks the task's own first."""
    sides = {"a": a.split(","), "b": b.split(",")}
    for side, ids in sides.items():
        if len(set(ids)) < len(ids):
            raise ApiError(400, f"{side}: a job stands twice; each counts as a run of its own", code="invalid_request",
                           param=side)  # fmt: skip
    with app.database.read() as session:
        jobs = {side: [found(session, job_id, who) for job_id in ids] for side, ids in sides.items()}
    spec = _spec(jobs["a"][0])
    if metric is not None and metric not in METRICS:
        raise ApiError(400, f"metric: no metric {metric!r}; known: {', '.join(METRICS)}", code="invalid_request",
                       param="metric")  # fmt: skip
    rows = {side: [of_modality(scored(app.store, job), modality) for job in runs] for side, runs in jobs.items()}
    subsets = {side: [_spec(job)["data"]["subset_seed"] for job in runs] for side, runs in jobs.items()}
    tested = sorted({row["task"] for runs in rows.values() for run in runs for row in run})
    if (task is None and len(tested) > 1) or (task is not None and task not in tested):
        said = "give one" if task is None else f"{task!r} is none of them"
        message = f"task: what was tested is {', '.join(tested)}; {said}"
        raise ApiError(400, message, code="invalid_request", param="task")
    own = next((t["metrics"][0] for t in spec["tasks"] if t["name"] == task), None) if len(tested) > 1 else None
    name = metric or own or spec["evaluate"]["metric"]
    cells = {side: [[r for r in run if task in (None, r["task"])] for run in runs] for side, runs in rows.items()}
    try:
        answer = compare(cells["a"], cells["b"], name, confidence=confidence, subsets=(subsets["a"], subsets["b"]))
        alone = {s: interval(cells[s], name, confidence=confidence, subsets=subsets[s]) for s in cells}
    except ValueError as error:
        raise ApiError(400, str(error), code="not_comparable") from None
    return finite({
        "object": "comparison", **asdict(answer), "confidence": confidence,
        **{side: {"jobs": sides[side], **asdict(value)} for side, value in alone.items()},
    })  # fmt: skip


def _spec(job: Job) -> dict[str, Any]:
    if job.resolved is None:  # refused, or not validated yet
        raise ApiError(409, f"job {job.id} is {job.status}; it has no predictions to compare", code="illegal_status")
    return job.resolved["spec"]
