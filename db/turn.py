"""Turns: of all threads of all processes, one does a thing at a time.

A turn is a lease in the database. It ends with the block, or runs out some time after its process died.
"""

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from db import leases
from db.session import Database

LONG = (20.0, 3600.0)
"""`seconds` and `longest_s` of work that takes minutes: a dead process's turn runs out after 20 s, a living one's is
renewed for an hour."""

_log = logging.getLogger("attune.turn")


@contextmanager
def turn(database: Database, name: str, seconds: float = 60.0, longest_s: float = 0.0) -> Iterator[str | None]:
    """The holder's name while it is this block's turn at `name`; None where it is another's.

    A block that takes longer than `seconds` loses its turn, unless `longest_s` has it renewed for so long.
    """
    holder = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
    with database.write() as session:
        mine = leases.take(session, name, holder, seconds) is not None
    if not mine:
        yield None
        return
    over = threading.Event()
    if longest_s:
        threading.Thread(target=_renew, args=(database, name, holder, seconds, longest_s, over), daemon=True).start()
    try:
        yield holder
    finally:
        over.set()
        with database.write() as session:
            leases.give_back(session, name, holder)


def _renew(
    database: Database, name: str, holder: str, seconds: float, longest_s: float, over: threading.Event
) -> None:
    end = time.monotonic() + longest_s
    while not over.wait(seconds / 4) and time.monotonic() < end:
        try:
            with database.write() as session:
                if leases.take(session, name, holder, seconds) is None:
                    return
        except Exception:  # a database that restarts: the next round finds it again
            _log.exception("could not renew the turn %s", name)
