"""Is it alive, is it ready, how is it doing."""

from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from sqlalchemy import func, select

from api.deps import App
from db import jobs, runners
from db.models import Outbox
from db.session import now
from db.status import JOB

router = APIRouter(tags=["health"])


@router.get("/healthz")
def alive() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
def ready(app: App, response: Response) -> dict[str, Any]:
    """What the API needs to do its work: 503 with the part that is missing."""
    checks: dict[str, str] = {}
    for name, check in (("database", _database), ("store", _store), ("broker", _broker)):
        try:
            check(app)
            checks[name] = "ok"
        except Exception as error:  # whatever is wrong with a part, the answer says so
            checks[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    # jobs are accepted without the broker: the workers find them in the database
    bad = [name for name in ("database", "store") if checks[name] != "ok"]
    response.status_code = 503 if bad else 200
    return {"status": "unavailable" if bad else "ok", "checks": checks}


def _database(app: App) -> None:
    with app.database.read() as session:
        session.execute(select(1))


def _store(app: App) -> None:
    app.store.exists("readyz")


def _broker(app: App) -> None:
    app.ping_broker()


@router.get("/metrics", include_in_schema=False)
def prometheus(app: App) -> Response:
    """Figures of the whole service for Prometheus, read from the database, so that every replica tells the same."""
    registry = CollectorRegistry()
    by_status = Gauge("attune_jobs", "Jobs by status", ["status"], registry=registry)
    by_runner = Gauge("attune_runners", "Runners by status", ["status"], registry=registry)
    lag = Gauge("attune_outbox_lag_seconds", "Age of the oldest wake-up that was not sent", registry=registry)
    with app.database.read() as session:
        counts, alive = jobs.counts(session), runners.running(session)
        oldest = session.scalar(select(now(session) - func.min(Outbox.created_at)).where(Outbox.sent_at.is_(None)))
    for status in JOB:
        by_status.labels(status).set(counts.get(status, 0))
    for status in runners.RUNNING:
        by_runner.labels(status).set(sum(r.status == status for r in alive))
    lag.set(oldest or 0.0)
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
