"""The worker's Celery app: the broker's settings (`db.broker`), the ticks, and when they come by themselves."""

from celery import Celery

from db.broker import celery, sender
from db.session import Database
from db.settings import Settings
from trainer.store import open_store
from worker import ticks
from worker.ray_jobs import RayJobs

THREADS = 4
STALE_S = 60
"""A tick that came by itself and waited so long is not worth running: the next one does the same."""


def create_app(settings: Settings) -> Celery:
    """The app of a worker process."""
    app = _configured(settings)
    parts = ticks.Parts(
        Database(settings.database_url), settings, RayJobs(settings.ray_address, settings.ray_token),
        open_store(settings.store), sender(settings.broker_url),
    )  # fmt: skip
    ticks.install(app, parts)
    return app


def create_beat(settings: Settings) -> Celery:
    """The app of a beat process. Any number of them may run: ticks take turns."""
    return _configured(settings)


def _configured(settings: Settings) -> Celery:
    app = celery(settings.broker_url)
    app.conf.update(
        worker_pool="threads",
        worker_concurrency=THREADS,
        worker_enable_remote_control=False,
        broker_connection_max_retries=None,
        beat_scheduler="celery.beat:Scheduler",  # keeps no file
        beat_max_loop_interval=1,
        beat_schedule={
            name: {"task": f"attune.{name}", "schedule": seconds, "options": {"expires": STALE_S}}
            for name, seconds in ticks.EVERY_S.items()
        },
    )
    return app
