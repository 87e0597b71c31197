"""`python -m worker`: takes ticks off the queue. `python -m worker beat`: puts them there in time. `python -m worker
check`: exit code 0 where rounds are being made, 1 where not.

Settings come from the environment. TERM ends a worker after the ticks in hand, QUIT and KILL at once; nothing is lost
by either.
"""

import argparse
import logging
import os
import signal
import sys
from contextlib import closing

from celery import Celery
from celery.beat import SchedulingError
from celery.signals import setup_logging, worker_ready
from kombu.exceptions import OperationalError
from sqlalchemy.exc import SQLAlchemyError

from db import leases
from db.session import Database, trouble
from db.settings import Settings, from_environment
from worker.app import create_app, create_beat

_log = logging.getLogger("attune.worker")


def main() -> int:
    """Run until stopped. Exit code 2: the settings are wrong."""
    parser = argparse.ArgumentParser(prog="python -m worker", description="Do the service's work between requests.")
    parser.add_argument("part", nargs="?", choices=("worker", "beat", "check"), default="worker")
    options = parser.parse_args()
    setup_logging.connect(_log_plainly)
    worker_ready.connect(_say_ready)
    try:
        settings = from_environment()
        if options.part == "check":
            return 0 if _rounds_are_made(settings) else 1
        app = create_beat(settings) if options.part == "beat" else create_app(settings)
    except ValueError as error:  # of a setting
        print(error, file=sys.stderr)
        return 2
    except SQLAlchemyError as error:  # of the check
        print(trouble(error), file=sys.stderr)
        return 1
    if options.part == "beat":
        return _beat(app)
    worker = app.Worker(quiet=True, without_gossip=True, without_mingle=True, without_heartbeat=True)
    worker.start()
    return worker.exitcode or 0


def _beat(app: Celery) -> int:
    """Until TERM. A beat has nothing to save, and ends at once: Celery's own handler raises SystemExit wherever the
    beat is, and in the middle of a message that gets lost."""
    beat = app.Beat(quiet=True)
    beat.install_sync_handler = lambda service: None
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    beat.run()
    return 1


def _rounds_are_made(settings: Settings) -> bool:
    """A tick has lately gone all the way from a beat to a worker."""
    with closing(Database(settings.database_url)) as database, database.read() as session:
        return leases.held(session, leases.WORKER_ALIVE)


def _log_plainly(**_: object) -> None:
    """To stderr; of libraries only what is wrong."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("attune").setLevel(logging.INFO)
    logging.getLogger("py.warnings").setLevel(logging.ERROR)  # where Celery sends Python's warnings
    for handler in logging.getLogger().handlers:
        handler.addFilter(_brief)


def _brief(record: logging.LogRecord) -> bool:
    """A broker that is away is a line every second, not a page."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, SchedulingError | OperationalError | OSError) or "redis" in type(error).__module__:
        record.msg, record.args, record.exc_info = record.getMessage().splitlines()[0], None, None
    return True


def _say_ready(**_: object) -> None:
    _log.info("ready")


if __name__ == "__main__":
    sys.exit(main())
