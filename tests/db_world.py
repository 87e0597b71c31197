"""What surrounds the database in test_db_machine.py: users and runners who call the API, the worker's real ticks on an
imagined Ray, store and broker, and a clock. Whatever is answered is told to the model (db_watch.py)."""

import hashlib
import json
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from db_watch import Attempt, Job, Rows, Watch, rows
from fake_ray import FakeRay

from db import attempts, idempotency, jobs, keys, leases, outbox, runners, studies
from db.attempts import FencedError, GapError
from db.idempotency import ReusedError
from db.models import Idempotency
from db.outbox import Wake
from db.session import Database
from db.settings import Settings
from db.status import HELD, TERMINAL, IllegalCommand
from trainer.fields import problem
from trainer.store import MissingError
from worker import collect, finalize, reconcile, scheduler, ticks, validate

POOLS = ("tiny", "large")
ALIVE_S = 15.0
"""The API's own lease, as in api/app.py."""


class Killed(BaseException):
    """The worker's process dies here: nothing that would follow happens."""


class Stepped(Database):
    """Before each of its transactions anything else may happen."""

    point: Callable[[], None] = staticmethod(lambda: None)

    def write(self):
        self.point()
        return super().write()

    def read(self):
        self.point()
        return super().read()


class SteppedRay(FakeRay):
    """So may it before and after each call of Ray."""

    point: Callable[[], None] = staticmethod(lambda: None)

    def _answer(self, call: str) -> None:
        self.point()
        super()._answer(call)


class Objects:
    """A store in memory; `trouble` is raised by the next reads."""

    uri = "memory:"

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        self.trouble: Exception | None = None

    def get(self, key: str) -> bytes:
        if self.trouble is not None:
            raise self.trouble
        if key not in self.held:
            raise MissingError(key)
        return self.held[key]


@dataclass
class Trainer:
    """An attempt as its runner knows it."""

    job: str
    no: int
    token: str
    said: list[dict[str, Any]] = field(default_factory=list)
    acked: int = 0
    step: int = 0
    action: str = "continue"
    over: tuple[str, str | None, str | None] | None = None
    """(outcome, reason, sha256 of the result), once it has been decided."""

    @property
    def key(self) -> tuple[str, int]:
        return self.job, self.no

    def progress(self, kind: str) -> None:
        """The trainer's next event."""
        n = len(self.said) + 1
        match kind:
            case "loading" | "evaluating":
                self.said.append({"kind": "state", "state": kind, "n": n})
            case "training":
                self.said.append({"kind": "state", "state": kind, "step": self.step, "steps": 100, "n": n})
            case "step":
                self.step += 1
                self.said.append({"kind": "step", "step": self.step, "loss": self.no + n / 1000, "seconds": 0.5})
            case "slow step":
                self.step += 1
                self.said.append({"kind": "step", "step": self.step, "loss": self.no + n / 1000, "seconds": 50.0})
            case "checkpoint":
                prefix = f"attempts/{self.no}/checkpoints/{self.step}"
                self.said.append({"kind": kind, "step": self.step, "prefix": prefix, "n": n})
            case _:
                self.said.append({"kind": "note", "level": "info", "message": kind, "n": n})


@dataclass
class Process:
    """A runner's process. It may live on when Ray and the service have given it up."""

    id: str
    token: str
    at: Trainer | None = None
    leaving: bool = False


class World:
    """One service. Methods without an underscore are moves; those of users and runners need the API."""

    verdict: Exception | None = None
    """What reading a job's data raises."""

    def __init__(self, database: Stepped, clock) -> None:
        self.database, self.clock, self.ray, self.store = database, clock, SteppedRay(), Objects()
        self.watch = Watch(database, clock)
        self.settings = Settings(
            database_url="sqlite:///unused", broker_url="redis://nowhere", store="/s", code="code", max_runners=2
        )
        self.broker: list[Wake] = []
        self.processes: list[Process] = []
        self.past: list[Trainer] = []
        """Attempts that their processes have left or never heard of; once ended, their tokens are good for nothing."""
        self.keys: dict[str, tuple[Any, dict[str, Any], float]] = {}
        self._pending: list[tuple[int, Callable[[], None]]] = []
        database.point = self.ray.point = self._point
        with database.write() as session:
            self.project = keys.project(session, "default").id
        self.api_up = False
        self.api(True)

    # ---- what happens in between

    @contextmanager
    def meanwhile(self, after: int, what: Callable[[], None] | None):
        """Within the block, before the transaction (or call of Ray) of this number, something else happens."""
        self._pending = [(after, what)] if what is not None else []
        try:
            yield
        except Killed:
            pass
        finally:
            self._pending = []

    def _point(self) -> None:
        if not self._pending:
            return
        (after, what), *_ = self._pending
        if after:
            self._pending = [(after - 1, what)]
            return
        self._pending = []
        what()
        self.watch.check()

    def kill(self) -> None:
        """The worker in whose tick this happens dies; its last words (a turn given back) are not heard either."""

        def dead() -> None:
            self._pending = [(0, dead)]
            raise Killed

        dead()

    def advance(self, seconds: float) -> None:
        """Time passes; an API that is there goes on renewing its lease."""
        self.clock.at += seconds
        if self.api_up:
            self.watch.api_up[-1][1] = self.clock.at
            self._alive()

    def _alive(self) -> None:
        with self.database.write() as session:
            assert leases.take(session, leases.API_ALIVE, "api", ALIVE_S) is not None

    def api(self, up: bool) -> None:
        """The API goes or comes back."""
        if up and not self.api_up:
            self.watch.api_up.append([self.clock.at, self.clock.at])
            self._alive()
        self.api_up = up

    def untouched(self, call: Callable[[], Any], *refusals: type[Exception]) -> Any:
        """The refusal of a call that must change nothing, or its answer where it is not refused."""
        before = rows(self.database)
        try:
            answer = call()
        except refusals as error:
            answer = error
        assert rows(self.database) == before, f"{answer!r} left a trace"
        return answer

    # ---- users

    def submit(self, key: str | None, priority: int, retries: int, pool: str) -> str | None:
        """A job; None where the key was used for another request."""
        request = {"priority": priority, "retries": retries, "pool": pool}

        def post() -> tuple[dict[str, Any], bool]:
            with self.database.write() as session:

                def make() -> dict[str, Any]:
                    made = jobs.create(session, self.project, request, name="t", priority=priority, retries=retries,
                                       actor="user:1")  # fmt: skip
                    return {"id": made.id}

                return idempotency.once(session, self.project, "POST /v1/jobs", key, request, make)

        known = self.keys.get(key or "")
        if known is not None and self.clock() - known[2] > idempotency.KEPT_S and self._forgotten(key):
            known = None
        if known is not None and known[0] != request:
            assert isinstance(self.untouched(post, ReusedError), ReusedError)
            return None
        body, repeated = self.untouched(post) if known else post()
        assert repeated == (known is not None)
        if known is not None:
            assert body == known[1]
            return body["id"]
        if key is not None:
            self.keys[key] = (request, body, self.clock())
        self.watch.jobs[body["id"]] = Job(retries)
        return body["id"]

    def _forgotten(self, key: str | None) -> bool:
        with self.database.read() as session:
            return session.get(Idempotency, (self.project, "POST /v1/jobs", key)) is None

    def study(self, count: int) -> str:
        """A grid of jobs, queued at once."""
        new = {
            str(n): studies.NewJob(resolved(POOLS[0]).model_dump(), "0" * 64, POOLS[0], f"s{n}", 0, 1)
            for n in range(count)
        }
        cells = [{"name": "a", "jobs": list(new)}]
        with self.database.write() as session:
            made = studies.create(session, self.project, name="s", spec={}, cells=cells, new=new, controls=[],
                                  notes=[], actor="user:1")  # fmt: skip
            for job in studies.members(session, made.id):
                self.watch.jobs[job.id] = Job(1)
        return made.id

    def order(self, job_id: str, asked: Any) -> None:
        """A user's command, carried out or refused whole."""
        status = self._status(job_id)

        def call() -> Any:
            with self.database.write() as session:
                found = jobs.find(session, job_id)
                assert found is not None
                return jobs.order(session, found, asked, "user:1")

        legal = status not in TERMINAL and (status != "finalizing" or asked == "cancel")
        if not legal and (status, asked) != ("cancelled", "cancel"):
            assert isinstance(self.untouched(call, IllegalCommand), IllegalCommand)
            return
        wanted = "run" if asked == "resume" else asked
        (call if legal else lambda: self.untouched(call))()
        self.watch.asked(job_id, wanted, status in HELD)

    def cancel_study(self, study_id: str) -> None:
        """All of its jobs that have not ended."""
        members = {j.id: j.status for j in rows(self.database).job.values() if j.study_id == study_id}
        with self.database.write() as session:
            studies.cancel(session, study_id, "user:1")
        for job_id, status in members.items():
            if status not in ("succeeded", "failed"):
                self.watch.asked(job_id, "cancel", status in HELD)

    def _status(self, job_id: str) -> str:
        return rows(self.database).job[job_id].status

    # ---- runners

    def boot(self, runner_id: str, answered: bool = True) -> None:
        """Ray gives the job its resources; the process registers, if nobody has given it up meanwhile."""
        self.ray.run(runner_id)
        if self.ray.jobs[runner_id].ended or not self.api_up:
            return
        code = self.ray.submitted[runner_id].env["ATTUNE_BOOTSTRAP_CODE"]
        waited = rows(self.database).runner[runner_id].status == "starting"

        def register(code: str = code) -> str | None:
            with self.database.write() as session:
                return runners.register(session, runner_id, code)

        assert self.untouched(lambda: register("forged")) is None
        token = register() if waited else self.untouched(register)
        assert (token is not None) == waited
        assert self.untouched(register) is None, "a code was good twice"
        if token is None or not answered:
            self.ray.end(runner_id, "FAILED", "its code was used before")
        else:
            self.processes.append(Process(runner_id, token))

    def claim(self, process: Process, answered: bool = True) -> None:
        """The runner asks for work. Where the answer is lost it holds an attempt that it does not know of, and is told
        of it when it asks again."""
        found = rows(self.database)
        row = found.runner[process.id]

        def call() -> attempts.Claim | None:
            with self.database.write() as session:
                runner = runners.seen(session, process.id, process.token)
                return None if runner is None else attempts.claim(session, runner, process.token)

        if row.status == "ended":
            assert self.untouched(call) is None
        got = call()
        mine = [k for k, a in found.attempt.items() if a.runner_id == process.id and self.watch.attempts[k].live]
        queue = [j for j in found.job.values() if j.status == "queued" and j.pool == row.pool]
        if mine and row.status != "ended":
            assert got is not None
            assert [(got.job.id, got.no)] == mine, f"{row} holds {mine}: {got}"
            again = next(trainer for trainer in self.past if trainer.key == mine[0])
            assert got.token == again.token
            self.watch.attempts[again.key].renewed_at = self.clock()
            if answered:
                self.past.remove(again)
                process.at = again
            return
        assert (got is not None) == (row.status == "alive" and bool(queue)), f"{row}: {got}"
        process.leaving = row.status != "alive"
        if got is None:
            return
        assert got.job.priority == max(j.priority for j in queue)
        assert got.no == sum(owner == got.job.id for owner, _ in found.attempt) + 1
        at = self.clock()
        self.watch.attempts[got.job.id, got.no] = Attempt(process.id, row.claims > 0, at, at)
        saved = [c.step for c in found.checkpoint if c.job_id == got.job.id]
        trainer = Trainer(got.job.id, got.no, got.token, step=max(saved, default=0))
        if answered:
            process.at = trainer
        else:
            self.past.append(trainer)

    def beat(self, trainer: Trainer, first: int, count: int) -> None:
        """Some of what the trainer has said, from any place on: refused whole, or taken once."""
        sent = trainer.said[first - 1 : first - 1 + count]
        self._say(trainer, first, sent, lambda: self._beat(trainer, first, sent))

    def _beat(self, trainer: Trainer, first: int, sent: list[dict[str, Any]], token: str | None = None) -> Any:
        with self.database.write() as session:
            return attempts.beat(session, *trainer.key, token or trainer.token, first, sent)

    def _say(self, trainer: Trainer, first: int, sent: list[dict[str, Any]], call: Callable[[], Any]) -> None:
        mine = self.watch.attempts[trainer.key]
        if not mine.live:
            assert isinstance(self.untouched(call, FencedError), FencedError)
            trainer.action = "fenced"
        elif first > len(mine.accepted) + 1:
            gap = self.untouched(call, GapError)
            assert isinstance(gap, GapError)
            trainer.acked = gap.acked
        else:
            trainer.acked, trainer.action = call()
            self.watch.accept(trainer.key, first, sent, trainer.acked)
            wanted, runner = self.watch.jobs[trainer.job].wanted, rows(self.database).runner[mine.runner]
            stop = wanted == "pause" or runner.status == "ended" or runner.asked_at is not None
            expected = "abort" if wanted == "cancel" else "checkpoint_and_exit" if stop else "continue"
            assert trainer.action == expected, f"{trainer.key} is told {trainer.action}; its user wants {wanted}"

    def done(self, trainer: Trainer, outcome: Any, reason: str | None, result: str, first: int | None = None) -> None:
        """The attempt comes to its end, once; the first word of it is what any repetition says."""
        if trainer.over is None:
            trainer.over = (outcome, reason, self._leave_result(trainer, outcome, result))
        outcome, reason, sha256 = trainer.over
        first = trainer.acked + 1 if first is None else first
        sent, mine = trainer.said[first - 1 :], self.watch.attempts[trainer.key]

        def call() -> int:
            with self.database.write() as session:
                return attempts.done(session, *trainer.key, trainer.token, first, sent, outcome, reason, "", sha256)

        if not mine.live and mine.status == outcome:
            assert self.untouched(call) == len(mine.accepted)
        elif not mine.live:
            assert isinstance(self.untouched(call, FencedError), FencedError)
        elif first > len(mine.accepted) + 1:
            assert isinstance(self.untouched(call, GapError), GapError)
        else:
            self.watch.accept(trainer.key, first, sent, call())
            mine.status, mine.reason = outcome, reason

    def _leave_result(self, trainer: Trainer, outcome: str, result: str) -> str | None:
        """`whole`, `missing` or `damaged`; the digest that the runner tells."""
        at = f"projects/{self.project}/jobs/{trainer.job}"
        key = f"{at}/final.json" if outcome == "succeeded" else f"{at}/attempts/{trainer.no}/result.json"
        whole = json.dumps({"attempt": trainer.no}).encode()
        if result != "missing":
            self.store.held[key] = whole if result == "whole" else b"{"
        return hashlib.sha256(whole).hexdigest()

    def forge(self, trainer: Trainer, token: str, no: int) -> None:
        """Whatever is not this attempt's own token changes nothing, however it is used."""
        told = trainer.said[-2:]
        key = (trainer.job, no)

        def beat() -> Any:
            with self.database.write() as session:
                return attempts.beat(session, *key, token, 1, told)

        def done() -> Any:
            with self.database.write() as session:
                return attempts.done(session, *key, token, 1, told, "failed", "infrastructure")

        for call in (beat, done):
            assert isinstance(self.untouched(call, FencedError), FencedError)

    def die(self, process: Process, how: Any) -> None:
        """Ray's word on a process that is no more: `vanished` is none at all."""
        self.processes.remove(process)
        if process.at is not None:
            self.past.append(process.at)
        if how == "vanished":
            self.ray.jobs.pop(process.id, None)
        elif process.id in self.ray.jobs and not self.ray.jobs[process.id].ended:
            self.ray.end(process.id, how, "told by the test")

    # ---- the worker

    def validate(self, job_id: str, verdict: Exception | None) -> None:
        """One validation."""
        World.verdict = verdict
        validate.validate(self.database, self.settings, self.store, job_id)  # type: ignore[arg-type]

    def finalize(self, job_id: str, trouble: Exception | None = None) -> None:
        """One finalization; `trouble`: the store's."""
        self.store.trouble = trouble
        try:
            finalize.finalize(self.database, self.store, job_id)  # type: ignore[arg-type]
        except OSError:
            assert trouble is not None
        finally:
            self.store.trouble = None

    def tick(self, wake: Wake) -> None:
        """What a worker does with a wake-up."""
        match wake.topic:
            case "validate":
                World.verdict = None
                validate.validate_waiting(self.database, self.settings, self.store)  # type: ignore[arg-type]
            case "finalize":
                self.finalize(wake.key)
            case "scale":
                scheduler.scale(self.database, self.settings, self.ray)  # type: ignore[arg-type]
            case "reconcile":
                reconcile.reconcile(self.database, self.ray)  # type: ignore[arg-type]
            case "collect":
                collect.collect(self.database, self.ray)  # type: ignore[arg-type]
            case "relay":
                parts = SimpleNamespace(database=self.database, send=self.broker.append)
                ticks.relay(parts)  # type: ignore[arg-type]

    # ---- everything healthy

    def heal(self) -> None:
        """From now on nothing fails; what was under way when it did may be lost."""
        self.api(True)
        self.ray.away, self.ray.lost_answers, self.ray.refuses = False, False, ""
        for process in list(self.processes):
            job = self.ray.jobs.get(process.id)
            if job is None or job.ended:
                self.die(process, "STOPPED")
        self.broker.clear()
        with self.database.write() as session:  # and the wake-ups that wait are sent to nobody
            session.execute(outbox.update(outbox.Outbox).values(sent_at=self.clock()))

    def settled(self) -> bool:
        """Every job at its end, or paused as its user wanted."""
        left = [j for j in self.watch.jobs.values() if j.status not in TERMINAL]
        return all((j.status, j.wanted) == ("paused", "pause") for j in left)

    def round(self, seconds: float, ends: bool = False) -> Rows:
        """Runners and workers at work for a while, as far as API and Ray are there. `ends`: attempts succeed soon."""
        self.advance(seconds)
        for runner_id, job in list(self.ray.jobs.items()):
            if job.status == "PENDING" and self.api_up:
                self.boot(runner_id)
        for process in list(self.processes):
            if process.id in self.ray.jobs and self.ray.jobs[process.id].ended:
                self.die(process, "STOPPED")
            elif self.api_up:
                self._work(process, ends)
        for topic in ("reconcile", "scale", "relay"):
            self.tick(Wake(topic, ""))
        while self.broker:
            self.tick(self.broker.pop(0))
        return self.watch.check()

    def _work(self, process: Process, ends: bool) -> None:
        if process.at is None:
            self.claim(process)
            if process.leaving:
                self.die(process, "SUCCEEDED")
            return
        trainer = process.at
        trainer.progress("training" if not trainer.said else "step")
        if trainer.over is None:
            self.beat(trainer, trainer.acked + 1, len(trainer.said))
        match trainer.action:
            case "fenced":
                self.die(process, "FAILED")
                return
            case "abort":
                end = ("failed", "user")
            case "checkpoint_and_exit":
                end = ("yielded", "yielded")
            case _ if trainer.over is not None or (ends and len(trainer.said) > 3):
                end = ("succeeded", None)
            case _:
                return
        self.done(trainer, *end, "whole")
        self.past.append(trainer)
        process.at = None


class resolved:  # noqa: N801
    """What reading a job's data leads to."""

    hash = "0" * 64
    base_revision = None
    spec = SimpleNamespace(base="tiny")

    def __init__(self, pool: str) -> None:
        self.pool = pool

    def model_dump(self, **_: Any) -> dict[str, Any]:
        return {"spec": {"resources": {"gpus": 0}}}


def read_imagined(monkeypatch) -> None:
    """Validation without a data set: its verdict is the world's."""

    def parse(spec: dict[str, Any]) -> dict[str, Any]:
        if World.verdict is not None:
            raise World.verdict
        return spec

    monkeypatch.setattr(validate, "parse_job", parse)
    monkeypatch.setattr(validate, "read_and_resolve", lambda spec, roots: (resolved(spec["pool"]),))
    monkeypatch.setattr(validate, "pool_of", lambda found, code, job: found.pool)


VERDICTS: dict[str, Exception | None] = {
    "good": None, "bad": problem("steps", "must be at least 1", 0), "trouble": OSError("the disk is away")
}  # fmt: skip
