"""Whose number an attempt has (light): `attempts/<no>/claim.json`, written once; and of which job it is."""

import json
import time
import uuid

from trainer.fields import problem
from trainer.resolve import Resolved
from trainer.store import ConflictError, Store


def attempts(store: Store) -> list[int]:
    """Numbers of the attempts that have left anything, rising."""
    parts = {key.split("/")[1] for key in store.list("attempts/")}
    return sorted(int(p) for p in parts if p.isdecimal())


def claim(store: Store, number: int | None = None) -> int:
    """A number above every attempt's so far, for this attempt alone: of two that ask at once, each gets its own.
    `number`: the one that a service has given; ConflictError where another attempt has it."""
    given, number = number, number or max(attempts(store), default=0) + 1
    mine = json.dumps({"claim": uuid.uuid4().hex, "at": round(time.time(), 3)}).encode() + b"\n"
    while True:
        try:
            store.put(f"attempts/{number}/claim.json", mine)
            return number
        except ConflictError:
            if given is not None:
                raise
            number += 1


def same_job(resolved: Resolved, store: Store) -> None:
    """SpecError where the store holds another job: its checkpoints would be taken for this one's."""
    if store.exists("spec.json"):
        stored = Resolved.model_validate_json(store.get("spec.json"))
        if stored.hash != resolved.hash:
            raise problem("out", f"{store.uri} holds the job {stored.spec.name!r} of another spec; use a new folder")
