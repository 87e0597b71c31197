"""How wake-ups travel: Celery over Redis. The API sends, the worker receives; both have the same settings."""

from collections.abc import Callable
from functools import cache

from celery import Celery

from db.outbox import Wake

VISIBILITY_S = 300
"""Redis gives an unacknowledged message to another worker after so long; ticks last 30 s at most."""


@cache
def celery(url: str) -> Celery:
    """The Celery app on a broker; results are ignored, for state lives in the database."""
    app = Celery("attune", broker=url, set_as_current=False)
    app.conf.update(
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        task_default_queue="attune",
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_time_limit=60,
        task_soft_time_limit=45,
        worker_prefetch_multiplier=1,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "visibility_timeout": VISIBILITY_S,
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
            "socket_timeout": 10,
            "socket_connect_timeout": 5,
        },
    )
    return app


def sender(url: str) -> Callable[[Wake], None]:
    """Sends wake-ups as Celery tasks `attune.<topic>(key)`; raises where the broker is away."""
    app = celery(url)

    def send(wake: Wake) -> None:
        app.send_task(f"attune.{wake.topic}", [wake.key], retry=False)

    return send
