"""Data sets that are too large for the API's own process, validated by a worker."""

import logging
import threading

from db import datasets
from db.session import Database
from db.settings import Settings
from db.turn import LONG, turn
from trainer.store import Store

TICK_S = 25.0

_log = logging.getLogger("attune.worker")
_slot = threading.Lock()


def tick(database: Database, store: Store, settings: Settings) -> None:
    """Validate what waits; returns after `TICK_S` at the latest, while the work goes on beside it."""
    if not _slot.acquire(blocking=False):
        return

    def work() -> None:
        try:
            with database.read() as session:
                waiting = datasets.unvalidated(session)
            for dataset_id in waiting:
                try:
                    validate_dataset_version(database, store, settings, dataset_id)
                except Exception:  # it is found again by the next tick, and must not keep the others waiting
                    _log.exception("validation of %s", dataset_id)
        finally:
            _slot.release()

    thread = threading.Thread(target=work, name="datasets", daemon=True)
    thread.start()
    thread.join(TICK_S)


def validate_dataset_version(database: Database, store: Store, settings: Settings, dataset_id: str) -> bool:
    """Validate one data set; whether this call settled it. A repeated one does nothing."""
    with turn(database, f"dataset:{dataset_id}", *LONG) as mine:
        return bool(mine) and datasets.validate(database, store, settings, dataset_id)
