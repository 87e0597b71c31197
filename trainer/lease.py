"""An attempt as its runner holds it: its events on their way to the service, and what the service wants of it.

Training never waits for the network. A thread sends heartbeats; while the service is away events wait here and
training goes on, up to a limit.
"""

import json
import os
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from trainer.loop import Event
from trainer.protocol import Api, AwayError, GoneError, RefusedError
from trainer.store import Store
from trainer.terminal import Limit

MANY, MOST = 200, 1000
"""Events that are sent before the next heartbeat is due; events in one request."""
RETRY_S = 1.0
"""Wait after a first failed call; doubled with every further one, up to a quarter of the lease."""


LONGEST = 20_000
"""Characters of a text in an event; the whole is in the store."""


class FencedError(RuntimeError):
    """The service has taken the attempt away: nothing more may be written for it."""


class Spool:
    """Numbered events: what the service has not acknowledged in memory, all of them in a file, for a service that
    forgets what it had acknowledged (a database restored). Where the disk is full there is no file, and such a service
    counts as away."""

    def __init__(self, path: Path, first: int):
        self.path, self._first, self._next = path, first, first
        self._lock, self._waiting, self._whole = threading.Lock(), deque[Event](), True

    def add(self, event: Event) -> None:
        """The next number goes to `event`."""
        with self._lock:
            self._waiting.append(event)
            try:
                if self._whole:
                    with self.path.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(event) + "\n")
            except OSError as error:
                self._whole = False
                print(f"{self.path}: {error}; events are kept in memory only", file=sys.stderr, flush=True)

    def __len__(self) -> int:
        return len(self._waiting)

    def batch(self, most: int) -> tuple[int, list[Event]]:
        """Number of the first unacknowledged event (or of the next one), and up to `most` from there on."""
        with self._lock:
            return self._next, list(islice(self._waiting, most))

    def acknowledge(self, last: int) -> None:
        """The service has every event up to number `last`, and none after it."""
        with self._lock:
            if last + 1 < self._next and self._whole:
                lines = self.path.read_text(encoding="utf-8").splitlines()
                self._next = max(last + 1, self._first)
                self._waiting = deque(json.loads(line) for line in lines[self._next - self._first :])
            while self._waiting and self._next <= last:
                self._waiting.popleft()
                self._next += 1


class Lease:
    """One claimed attempt until its end is acknowledged. `sink` and the lease itself (as `control`) go to
    `trainer.run`; everything that it writes goes through a `LeasedStore`."""

    def __init__(
        self,
        api: Api,
        claim: dict[str, Any],
        folder: Path,
        *,
        beat_s: float = 5.0,
        detached_max_s: float = 1800.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.name = f"{claim['job_id']}/{claim['attempt']}"
        self.api, self._token, self.beat_s, self.lease_s = api, claim["token"], beat_s, float(claim["lease_s"])
        self.detached_max_s, self.clock = detached_max_s, clock
        self.spool = Spool(folder / f"{self.name.replace('/', '-')}.jsonl", claim["next_seq"])
        self.limit, self.action, self.fenced = Limit(None), "continue", False
        self._state: dict[str, Any] = {"state": "loading", "step": 0, "progress_at": time.time()}
        self._failures, self._failing_since = 0, 0.0
        self._changed, self._end = threading.Condition(), None
        self._broken: Exception | None = None
        self._thread = threading.Thread(target=self._beats, name=f"beats {self.name}", daemon=True)

    def start(self) -> "Lease":
        """Heartbeats begin, the first one now."""
        self._thread.start()
        return self

    # ---- for trainer.run

    def sink(self, event: Event) -> None:
        """Takes an event to be sent; ignored once fenced."""
        if self.fenced:
            return
        at = time.time()
        match event:
            case {"kind": "state", "state": state}:
                self._state = {**self._state, "state": state, "step": event.get("step", self._state["step"])}
            case {"kind": "step", "step": step}:
                self._state = {**self._state, "step": step}
        if event["kind"] in ("state", "step", "checkpoint", "progress", "predicted"):
            self._state = {**self._state, "progress_at": at}
        self.spool.add({**{key: _short(value) for key, value in event.items()}, "at": at})
        if len(self.spool) >= MANY:
            with self._changed:
                self._changed.notify()

    def __call__(self) -> str:
        """What the attempt is to do before its next step: the strongest of what the service, the time limit and a
        lost connection ask for."""
        if self._broken is not None:
            raise RuntimeError(f"the heartbeat of {self.name} ended with an error") from self._broken
        if self.fenced:
            return "abort"
        if self.action == "continue" and self.detached:
            return "checkpoint_and_exit"
        return self.action if self.action != "continue" else self.limit()

    @property
    def reason(self) -> str | None:
        """`timeout` where it was the time limit that ended the run."""
        return self.limit.reason if self.action == "continue" else None

    @property
    def detached(self) -> bool:
        """Whether the service has been away for longer than an attempt may go on alone."""
        return bool(self._failures) and self.clock() - self._failing_since >= self.detached_max_s

    # ---- heartbeats

    def beat(self) -> bool:
        """One heartbeat with the events that wait; whether the service took it."""
        answer = self._send("beat", self._state)
        if answer is None:
            return False
        self.action, self.lease_s = answer["action"], float(answer.get("lease_s", self.lease_s))
        return True

    def _send(self, what: str, said: dict[str, Any]) -> dict[str, Any] | None:
        first, events = self.spool.batch(MOST)
        body = {"first_seq": first, "events": events, **said}
        try:
            answer = self.api.post(f"/attempts/{self.name}/{what}", body, self._token)
        except GoneError:
            self.fenced = True
            return None
        except AwayError as error:
            if isinstance(error, RefusedError) and error.gap is not None:
                self.spool.acknowledge(error.gap)
            if not self._failures:
                self._failing_since = self.clock()
                self._say(f"the service is away ({error}); the attempt goes on alone for {self.detached_max_s:g} s")
            self._failures += 1
            return None
        if self._failures:
            self._say(f"the service is back after {self.clock() - self._failing_since:.1f} s")
        self._failures = 0
        self.spool.acknowledge(answer["acked_seq"])
        return answer

    def _beats(self) -> None:
        try:
            while not self.fenced:
                self.beat()
                with self._changed:
                    self._changed.wait_for(self._hurried, self._pause())
                    if self._end is not None:
                        return
        except Exception as error:  # would otherwise end in silence, and the lease with it
            self._broken = error

    def _hurried(self) -> bool:
        return self._end is not None or (not self._failures and len(self.spool) >= MANY)

    def _pause(self) -> float:
        """Seconds until the next call."""
        if not self._failures:
            return self.beat_s
        longest = min(RETRY_S * 2 ** min(self._failures - 1, 20), self.lease_s / 4)
        return longest * random.uniform(0.5, 1)  # runners that lost the service together do not come back together

    # ---- the end

    def end(self, outcome: str, reason: str | None, message: str, result_sha256: str | None = None) -> None:
        """The attempt has come to this end; heartbeats stop, `acknowledged` tells the service."""
        with self._changed:
            self._end = {"outcome": outcome, "reason": reason, "message": message, "result_sha256": result_sha256}
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def acknowledged(self, within_s: float) -> bool:
        """Whether the service takes the end within so many seconds; to be asked again if not. FencedError."""
        assert self._end is not None, "end() comes first"
        until = self.clock() + within_s
        while True:
            last = len(self.spool) <= MOST
            taken = self._send("done", self._end) is not None if last else self.beat()
            self.check()
            if taken and last:
                self.spool.path.unlink(missing_ok=True)
                return True
            left = until - self.clock()
            if left <= 0:
                return False
            if self._failures:
                time.sleep(min(self._pause(), left))

    def check(self) -> None:
        """FencedError where the attempt is no longer this runner's."""
        if self.fenced:
            raise FencedError(f"attempt {self.name} was taken away; nothing more is written for it")

    def _say(self, message: str) -> None:
        print(f"{self.name}: {message}", file=sys.stderr, flush=True)


def _short(value: Any) -> Any:
    """A text without its middle where it is too long for an event: the service would refuse it for ever."""
    if not isinstance(value, str) or len(value) <= LONGEST:
        return value
    return f"{value[: LONGEST // 2]}\n… {len(value) - LONGEST} characters are left out …\n{value[-LONGEST // 2 :]}"


class LeasedStore:
    """The store of an attempt: readable always, writable while the lease holds (FencedError after it)."""

    def __init__(self, store: Store, lease: Lease):
        self._store, self._lease, self.uri = store, lease, store.uri

    def put(self, key: str, data: bytes) -> None:
        self._lease.check()
        self._store.put(key, data)

    def put_file(self, key: str, path: str | os.PathLike[str]) -> None:
        self._lease.check()
        self._store.put_file(key, path)

    def get(self, key: str) -> bytes:
        return self._store.get(key)

    def exists(self, key: str) -> bool:
        return self._store.exists(key)

    def list(self, prefix: str = "") -> "list[str]":
        return self._store.list(prefix)

    def fetch(self, key: str, path: str | os.PathLike[str]) -> None:
        self._store.fetch(key, path)

    def digest(self, key: str) -> tuple[int, str]:
        return self._store.digest(key)
