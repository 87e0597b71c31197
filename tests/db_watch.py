"""What must be so after every move of the state machine in test_db_machine.py, whatever came before: a model in plain
Python of what jobs, attempts and runners may be, held against the rows."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import StaticPool, Table

from db.attempts import GRACE_S, LEASE_S, LOADING_S, STALLED_S, STALLED_STEPS
from db.models import Base
from db.session import Database
from db.status import ATTEMPT, ENDED, HELD, JOB, LIVE, TERMINAL

FAULTS = ("infrastructure", "lost_heartbeat", "stalled")
RUNNERS = ("starting", "alive", "draining", "ended")


class Rows(NamedTuple):
    """Every row that the service keeps, apart from leases on turns."""

    job: dict[str, Any]
    attempt: dict[tuple[str, int], Any]
    runner: dict[str, Any]
    event: list[Any]
    metric: list[Any]
    series: list[Any]
    checkpoint: list[Any]
    study: list[Any]
    idempotency: list[Any]
    outbox: list[Any]


def _query(table: Table) -> tuple[str, type]:
    columns = [c.name for c in table.columns]
    quoted = ", ".join(f'"{c}"' for c in columns)
    keys = ", ".join(f'"{c.name}"' for c in table.primary_key)
    row = NamedTuple(table.name, [(c, Any) for c in columns])  # type: ignore[misc]
    return f'SELECT {quoted} FROM "{table.name}" ORDER BY {keys}', row


_QUERIES = {name: _query(Base.metadata.tables[name]) for name in Rows._fields}


_last: tuple[Any, Rows] | None = None


def rows(database: Database) -> Rows:
    """All of it, read past the code under test."""
    global _last
    found: dict[str, Any] = {}
    with database.engine.connect() as connection:
        at = None  # a lone connection counts all changes there are: where there were none, nothing is read again
        if isinstance(database.engine.pool, StaticPool):
            driver = connection.connection.driver_connection
            at = (id(driver), driver.total_changes)  # type: ignore[union-attr]
            if _last is not None and _last[0] == at:
                return _last[1]
        for name, (query, row) in _QUERIES.items():
            found[name] = [row(*r) for r in connection.exec_driver_sql(query)]
    found["job"] = {r.id: r for r in found["job"]}
    found["attempt"] = {(r.job_id, r.no): r for r in found["attempt"]}
    found["runner"] = {r.id: r for r in found["runner"]}
    read = Rows(**found)
    _last = (at, read) if at else None
    return read


def plain(value: Any) -> Any:
    """A JSON column: text on SQLite."""
    return json.loads(value) if isinstance(value, str) else value


@dataclass
class Attempt:
    """What is known of an attempt from outside: what it was answered, and when."""

    runner: str
    used: bool
    renewed_at: float
    progress_at: float
    accepted: list[dict[str, Any]] = field(default_factory=list)
    """Events that were acknowledged, in order."""
    status: str = "claimed"
    reason: str | None = None
    start: int | None = None
    step_seconds: float = 0.0
    heard: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """(type, data) of its events in the job's history."""

    @property
    def live(self) -> bool:
        return self.status in LIVE

    def steps(self) -> dict[int, float]:
        return {e["step"]: e["loss"] for e in self.accepted if e["kind"] == "step"}

    def told(self) -> list[tuple[str, dict[str, Any]]]:
        """What the history must say of it."""
        return [
            (f"attempt.{e['state']}" if e["kind"] == "state" else e["kind"],
             {k: v for k, v in e.items() if k not in ("kind", "state")})
            for e in self.accepted if e["kind"] != "step"
        ]  # fmt: skip


@dataclass
class Job:
    """What a user knows of a job."""

    retries: int
    wanted: str = "run"
    wanted_at: float | None = None
    status: str = "validating"
    seq: int = 0
    reached: list[str] = field(default_factory=list)


class Watch:
    """The model. The world (db_world.py) tells it what was answered; `check` compares it with the rows."""

    def __init__(self, database: Database, clock) -> None:
        self.database, self.clock = database, clock
        self.jobs: dict[str, Job] = {}
        self.attempts: dict[tuple[str, int], Attempt] = {}
        self.runners: dict[str, str] = {}
        self.api_up: list[list[float]] = []
        """[from, until] in which heartbeats could arrive."""
        self.checked: Rows | None = None
        self.frozen: dict[Any, Any] = {}
        """Rows that must never change again."""

    # ---- what the world tells

    def accept(self, key: tuple[str, int], first: int, sent: Sequence[dict[str, Any]], acked: int) -> None:
        """A heartbeat was answered: from here on its events count, once."""
        mine, at = self.attempts[key], self.clock()
        assert mine.live, f"{key} has ended and was heard"
        assert first <= len(mine.accepted) + 1, f"{key}: a gap was taken"
        new = sent[len(mine.accepted) + 1 - first :]
        mine.accepted += new
        assert acked == len(mine.accepted), f"{key}: {acked} are acknowledged of {len(mine.accepted)}"
        mine.renewed_at = at
        for event in new:
            if event["kind"] == "state" and event["state"] in ATTEMPT[mine.status]:  # type: ignore[index]
                mine.status, mine.progress_at = event["state"], at
            if event["kind"] == "state" and event["state"] == "training":
                mine.start = event["step"]
        if seconds := sorted(e["seconds"] for e in new if e["kind"] == "step"):
            mine.progress_at, mine.step_seconds = at, seconds[len(seconds) // 2]

    def asked(self, job_id: str, wanted: str, held: bool) -> None:
        """A command was accepted."""
        job = self.jobs[job_id]
        if job.wanted != wanted:
            job.wanted, job.wanted_at = wanted, self.clock() if held and wanted != "run" else None

    # ---- what must be so

    def check(self) -> Rows:
        """AssertionError where the rows are not what they may be."""
        found = rows(self.database)
        if found is self.checked:
            return found
        self.checked = found
        assert set(found.job) == set(self.jobs)
        assert set(found.attempt) == set(self.attempts)
        self._runners(found)
        for key, row in found.attempt.items():
            self._attempt(key, row, found)
        told: dict[str, list[Any]] = {job_id: [] for job_id in found.job}
        for event in found.event:
            told[event.job_id].append(event)
        for job_id, row in found.job.items():
            self._history(job_id, row, told[job_id])
            self._job(job_id, row, found)
        self._metrics(found)
        self._idempotency(found)
        return found

    def _runners(self, found: Rows) -> None:
        for runner_id, row in found.runner.items():
            before = self.runners.get(runner_id, "starting")
            assert RUNNERS.index(row.status) >= RUNNERS.index(before), f"{runner_id}: {before} → {row.status}"
            self.runners[runner_id] = row.status
            live = [k for k, a in found.attempt.items() if a.runner_id == runner_id and a.status in LIVE]
            assert len(live) <= 1, f"{runner_id} holds {live}"
            assert row.claims == sum(a.runner_id == runner_id for a in found.attempt.values())
            if row.status == "ended":
                assert not live, f"{runner_id} has ended and holds {live}"
                assert row.token_sha256 is None
                assert row.bootstrap_sha256 is None
                self._is_frozen(("runner", runner_id), row)

    def _is_frozen(self, key: Any, row: Any) -> None:
        assert self.frozen.setdefault(key, row) == row, f"{key} changed after its end"

    def _attempt(self, key: tuple[str, int], row: Any, found: Rows) -> None:
        mine = self.attempts[key]
        assert (row.runner_id, row.used_runner) == (mine.runner, mine.used)
        if row.status in ENDED and mine.live:
            self._justify(key, mine, row)
            mine.status, mine.reason = row.status, row.reason
        assert (row.status, row.reason) == (mine.status, mine.reason), f"{key} is {row.status}, not {mine.status}"
        assert row.acked_seq == len(mine.accepted), f"{key}: {row.acked_seq} of {len(mine.accepted)} events"
        assert row.start_step == mine.start
        assert row.lease_expires_at == mine.renewed_at + LEASE_S
        assert (row.ended_at is not None) == (row.status in ENDED)
        if row.status in ENDED:
            self._is_frozen(("attempt", key), row)

    def _justify(self, key: tuple[str, int], mine: Attempt, row: Any) -> None:
        """The service may end an attempt for four reasons only, and none of them while the API was away."""
        at, job = row.ended_at, self.jobs[key[0]]
        patience = max(STALLED_S, STALLED_STEPS * mine.step_seconds) if mine.status == "training" else LOADING_S
        match row.status, row.reason:
            case "lost", "lost_heartbeat":
                assert at > mine.renewed_at + LEASE_S, f"{key}: its lease had not run out"
            case "lost", "infrastructure":
                assert found_ended(self.database, mine.runner), f"{key}: its runner has not ended"
                return
            case "fenced", "user":
                assert job.wanted != "run", f"{key}: nobody asked it to stop"
                assert job.wanted_at is not None
                assert at > job.wanted_at + GRACE_S, f"{key}: it was not given its grace"
            case "fenced", "yielded":
                asked_at = rows(self.database).runner[mine.runner].asked_at
                assert asked_at is not None, f"{key}: its runner was not to leave"
                assert at > asked_at + GRACE_S, f"{key}: it was not given its grace"
            case "fenced", "stalled":
                assert at > mine.progress_at + patience, f"{key}: it was getting on"
            case other:
                raise AssertionError(f"{key} ended as {other}, which nobody said")
        heard = sum(max(0.0, min(until, at) - max(since, at - LEASE_S)) for since, until in self.api_up)
        assert heard > 0, f"{key}: judged while no heartbeat could arrive"

    def _history(self, job_id: str, row: Any, events: list[Any]) -> None:
        job = self.jobs[job_id]
        assert [e.seq for e in events] == list(range(1, row.last_seq + 1)), f"{job_id}: gaps in its history"
        assert row.last_seq >= job.seq
        for before, event in itertools.pairwise(events):
            assert before.at <= event.at
        for event in events[job.seq :]:
            data = plain(event.data)
            if event.type == "job.status":
                assert data["status"] in JOB[job.status], f"{job_id}: {job.status} → {data['status']}"  # type: ignore[index]
                job.status = data["status"]
                job.reached.append(job.status)
                if job.status not in HELD:
                    job.wanted_at = None
            if event.actor.startswith("runner:") and event.type not in ("job.status", "attempt.ended"):
                self.attempts[job_id, event.attempt_no].heard.append((event.type, data))
        job.seq = row.last_seq
        assert row.status == job.status, f"{job_id} is {row.status}; its history says {job.status}"
        for (owner, no), mine in self.attempts.items():
            if owner == job_id:
                assert mine.heard == mine.told(), f"{job_id}/{no}: events lost or doubled"

    def _job(self, job_id: str, row: Any, found: Rows) -> None:
        job = self.jobs[job_id]
        own = [a for (owner, _), a in found.attempt.items() if owner == job_id]
        live = [a for a in own if a.status in LIVE]
        assert [a.no for a in own] == list(range(1, row.attempts + 1))
        assert len(live) == (row.status in HELD), f"{job_id} is {row.status} with {len(live)} live attempts"
        assert row.wanted == job.wanted, f"{job_id}: its user wants {job.wanted}, not {row.wanted}"
        assert row.wanted_at == job.wanted_at, f"{job_id}: wanted at {row.wanted_at}, not {job.wanted_at}"
        assert row.wanted in {
            "validating": ("run", "pause"), "queued": ("run",), "running": ("run", "cancel"),
            "pausing": ("pause", "cancel"), "paused": ("pause",), "cancelled": ("cancel",),
        }.get(row.status, ("run", "pause", "cancel")), f"{job_id}: {row.status} and wanted {row.wanted}"  # fmt: skip
        faults = sum(a.reason in FAULTS for a in own)
        assert row.faults == faults, f"{job_id}: {row.faults} faults are counted of {faults}"
        assert (row.finished_at is not None) == (row.status in TERMINAL)
        if own and not live:
            self._led(job_id, own, row, faults)
        if row.status in TERMINAL:
            self._is_frozen(("job", job_id), row)

    def _led(self, job_id: str, own: list[Any], row: Any, faults: int) -> None:
        """What became of a job is what the end of its last attempt says, told backwards."""
        last, job = own[-1], self.jobs[job_id]
        fresh_oom = any(a.reason == "out_of_memory" and not a.used_runner for a in own)
        over = row.status in ("finalizing", "succeeded", "failed")
        if last.status == "succeeded" or last.reason in ("diverged", "timeout"):
            assert over or row.status == "cancelled", f"{job_id} is {row.status} after {last.status} {last.reason}"
        elif over and row.wanted != "cancel":
            charged = last.status != "yielded" and last.reason in FAULTS and faults > job.retries
            assert charged or (last.reason == "out_of_memory" and (fresh_oom or not last.used_runner)), (
                f"{job_id} was given up after {last.status} {last.reason} with {faults} of {job.retries} faults"
            )
        if row.status == "queued" and last.reason in FAULTS and last.status != "yielded":
            assert faults <= job.retries, f"{job_id} is tried again after {faults} faults"
        if row.status == "succeeded":
            assert last.status == "succeeded", f"{job_id} succeeded after {last.status}"

    def _metrics(self, found: Rows) -> None:
        recorded: dict[tuple[str, int], dict[int, float]] = {}
        for m in found.metric:
            recorded.setdefault((m.job_id, m.attempt_no), {})[m.step] = plain(m.values)["loss"]
        for (job_id, no), mine in self.attempts.items():
            if found.job[job_id].status not in TERMINAL:
                got = recorded.get((job_id, no), {})
                assert got == mine.steps(), f"{job_id}/{no}: metric rows {got}, sent {mine.steps()}"
            else:
                assert (job_id, no) not in recorded, f"{job_id}/{no}: rows of an ended job were not folded"
        folded = {s.job_id: (plain(s.steps), plain(s.values)) for s in found.series if s.name == "loss"}
        for job_id, row in found.job.items():
            if row.status in TERMINAL:
                steps, values = folded.get(job_id, ([], []))
                assert list(zip(steps, values, strict=True)) == self.curve(job_id), f"{job_id}: its curve"

    def curve(self, job_id: str) -> list[tuple[int, float]]:
        """Each attempt counts up to where a later one began."""
        own = [a for (owner, _), a in sorted(self.attempts.items()) if owner == job_id]
        points = []
        for n, mine in enumerate(own):
            upto = min((a.start for a in own[n + 1 :] if a.start is not None), default=float("inf"))
            points += [(s, loss) for s, loss in mine.steps().items() if s <= upto]
        return sorted(points)

    def _idempotency(self, found: Rows) -> None:
        made = [plain(r.response)["id"] for r in found.idempotency]
        assert len(made) == len(set(made))
        assert set(made) <= set(self.jobs)


def found_ended(database: Database, runner_id: str) -> bool:
    """Whether the runner has ended by now."""
    return rows(database).runner[runner_id].status == "ended"
