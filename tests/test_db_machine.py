"""The service's database under any interleaving of users, runners, workers, Ray, faults and time: a state machine over
the real functions of `db/` and the worker's real ticks, on a clock that the rules move.

After every rule all rows are held against a model (db_watch.py); at the end of an example everything is healthy again,
all wake-ups are lost once more, and every job must come to its end or to the pause that its user wants.

An interleaving is one executed rule; a rule is one call of a user or runner, one tick of a worker (with another call in
the middle of it, or the worker's death), one fault, or time. `ATTUNE_INTERLEAVINGS` says how many on SQLite.
"""

import contextlib
import itertools
import logging
import os
import time
from collections import Counter
from typing import Any

import pytest
from databases import fresh
from db_rows import Clock
from db_world import POOLS, VERDICTS, Process, Stepped, Trainer, World, read_imagined
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import StaticPool

from db import leases, runners
from db.migrations import migrate
from db.models import Base
from db.outbox import Wake
from db.status import JOB

pytest_plugins = ["databases"]

RULES = 50
"""Per example."""
ASKED = os.environ.get("ATTUNE_INTERLEAVINGS")
COUNTS = {"sqlite": int(ASKED or 1000), "postgres": 200}
MOST_JOBS = 6
ROUNDS, ROUND_S = 300, 40.0
"""With everything healthy nothing takes longer; the longest wait is that of a pool whose runners failed to start."""

pick = st.integers(0, 11)
seconds = st.sampled_from([1, 5, 20, 44, 61, 61, 130, 700, 2000, 7200, 700_000])
OUTCOMES = [
    ("succeeded", None), ("yielded", "yielded"), ("yielded", "timeout"), ("failed", "diverged"), ("failed", "user"),
    ("failed", "infrastructure"), ("failed", "out_of_memory"), ("yielded", None),
]  # fmt: skip
SAYS = ["loading", "training", "step", "slow step", "checkpoint", "evaluating", "hello"]
between = st.none() | st.tuples(
    st.integers(0, 12),
    st.sampled_from(["cancel", "pause", "resume", "claim", "beat", "done", "die", "late", "kill", "time", "reconcile",
                     "submit", "finalize", "scale"]),
    pick,
)  # fmt: skip


class Machine(RuleBasedStateMachine):
    """Rules pick among what is there by number, so that every number means something in every state."""

    database: Stepped
    clock: Clock
    executed = 0
    reached: Counter[str]
    """Statuses of jobs, and reasons for which the service ended attempts."""

    def __init__(self) -> None:
        super().__init__()
        self.clock.at = 1_000_000.0
        self.database.point = lambda: None
        with self.database.write() as session:
            for table in reversed(Base.metadata.sorted_tables):
                session.execute(table.delete())
        self.world = World(self.database, self.clock)

    # ---- what there is to pick from

    def a_job(self, n: int) -> str:
        return list(self.world.watch.jobs)[n % len(self.world.watch.jobs)]

    def a_process(self, n: int) -> Process:
        return self.world.processes[n % len(self.world.processes)]

    def working(self) -> list[Trainer]:
        return [p.at for p in self.world.processes if p.at is not None]

    def a_trainer(self, n: int) -> Trainer:
        return self.working()[n % len(self.working())]

    def has_jobs(self) -> bool:
        return bool(self.world.watch.jobs)

    def is_working(self) -> bool:
        return self.world.api_up and bool(self.working())

    def meanwhile(self, what: tuple[int, str, int] | None):
        """The block with something else in the middle of it."""
        after, name, n = what or (0, "", 0)
        return self.world.meanwhile(after, lambda: self.do(name, n)) if what else self.world.meanwhile(0, None)

    def do(self, name: str, n: int) -> None:
        """What may come in between."""
        world = self.world
        match name:
            case "kill":
                world.kill()
            case "time":
                world.advance([5, 61, 130][n % 3])
            case "reconcile" | "scale":
                world.tick(Wake(name, ""))
            case "submit" if world.api_up and len(world.watch.jobs) < MOST_JOBS:
                world.submit(None, n % 3, n % 2, POOLS[0])
            case "cancel" | "pause" | "resume" if world.api_up and self.has_jobs():
                world.order(self.a_job(n), name)
            case "finalize" if self.has_jobs():
                world.finalize(self.a_job(n))
            case "die" if world.processes:
                world.die(self.a_process(n), "FAILED")
            case "claim" if world.api_up and world.processes and self.a_process(n).at is None:
                world.claim(self.a_process(n))
            case "beat" if self.is_working():
                world.beat(self.a_trainer(n), self.a_trainer(n).acked + 1, 9)
            case "done" if self.is_working():
                world.done(self.a_trainer(n), *OUTCOMES[n % len(OUTCOMES)], "whole")
            case "late" if world.api_up and world.past:
                world.beat(world.past[n % len(world.past)], 1, 1)

    # ---- users

    @precondition(lambda self: self.world.api_up and len(self.world.watch.jobs) < MOST_JOBS)
    @rule(key=st.sampled_from([None, None, "a", "b"]), priority=st.integers(0, 2), retries=st.integers(0, 2),
          pool=st.sampled_from((*POOLS, POOLS[0])))  # fmt: skip
    def submit(self, key: str | None, priority: int, retries: int, pool: str) -> None:
        self.world.submit(key, priority, retries, pool)

    @precondition(lambda self: self.world.api_up and len(self.world.watch.jobs) + 2 <= MOST_JOBS)
    @rule(orders=st.booleans())
    def study(self, orders: bool) -> None:
        study = self.world.study(2)
        if orders:
            self.world.cancel_study(study)

    @precondition(lambda self: self.world.api_up and self.has_jobs())
    @rule(n=pick, asked=st.sampled_from(["cancel", "pause", "resume", "pause", "resume"]))
    def order(self, n: int, asked: str) -> None:
        self.world.order(self.a_job(n), asked)

    # ---- the worker

    @precondition(has_jobs)
    @rule(n=pick, verdict=st.sampled_from(["good", "good", "good", "bad", "trouble"]), also=between)
    def validate(self, n: int, verdict: str, also: Any) -> None:
        waiting = [j for j in self.world.watch.jobs.values() if j.status == "validating"]
        jobs = [k for k, j in self.world.watch.jobs.items() if j in waiting] or [self.a_job(n)]
        with self.meanwhile(also):
            self.world.validate(jobs[n % len(jobs)], VERDICTS[verdict])

    @rule(topic=st.sampled_from(["scale", "scale", "reconcile", "reconcile", "relay", "collect"]), also=between)
    def tick(self, topic: str, also: Any) -> None:
        with self.meanwhile(also):
            self.world.tick(Wake(topic, ""))

    @precondition(lambda self: any(j.status == "finalizing" for j in self.world.watch.jobs.values()))
    @rule(n=pick, trouble=st.sampled_from([None, None, OSError("the store is away")]), also=between)
    def finalize(self, n: int, trouble: Exception | None, also: Any) -> None:
        waiting = [k for k, j in self.world.watch.jobs.items() if j.status == "finalizing"]
        with self.meanwhile(also):
            self.world.finalize(waiting[n % len(waiting)], trouble)

    @precondition(lambda self: self.world.broker)
    @rule(n=pick, lost=st.booleans(), also=between)
    def deliver(self, n: int, lost: bool, also: Any) -> None:
        """A wake-up arrives, in any order; or the broker forgets them all."""
        if lost:
            self.world.broker.clear()
            return
        with self.meanwhile(also):
            self.world.tick(self.world.broker.pop(n % len(self.world.broker)))

    @rule(name=st.sampled_from(["reconcile", "scale", "relay", "collect"]))
    def a_worker_dies_in_its_turn(self, name: str) -> None:
        with self.database.write() as session:
            leases.take(session, name, "a dead worker", 60)

    # ---- Ray and runners

    @precondition(lambda self: any(j.status == "PENDING" for j in self.world.ray.jobs.values()))
    @rule(n=pick, answered=st.sampled_from([True, True, True, False]))
    def boot(self, n: int, answered: bool) -> None:
        pending = [k for k, j in self.world.ray.jobs.items() if j.status == "PENDING"]
        self.world.boot(pending[n % len(pending)], answered)

    @precondition(lambda self: self.world.api_up and any(p.at is None for p in self.world.processes))
    @rule(n=pick, answered=st.sampled_from([True, True, True, False]))
    def claim(self, n: int, answered: bool) -> None:
        idle = [p for p in self.world.processes if p.at is None]
        self.world.claim(idle[n % len(idle)], answered)

    @precondition(lambda self: self.working())
    @rule(n=pick, kinds=st.lists(st.sampled_from(SAYS), min_size=1, max_size=6), beat=st.booleans())
    def train(self, n: int, kinds: list[str], beat: bool) -> None:
        """The trainer gets on, heard or not."""
        trainer = self.a_trainer(n)
        for kind in kinds:
            trainer.progress(kind)
        if beat and self.world.api_up and trainer.over is None:
            self.world.beat(trainer, trainer.acked + 1, len(kinds))

    @precondition(is_working)
    @rule(n=pick, back=st.integers(-3, 6), count=st.integers(0, 8))
    def beat(self, n: int, back: int, count: int) -> None:
        """From before or behind what is acknowledged: repeated, overlapping, or with a gap."""
        trainer = self.a_trainer(n)
        self.world.beat(trainer, max(1, trainer.acked + 1 - back), count)

    @precondition(is_working)
    @rule(n=pick, how=st.sampled_from(OUTCOMES), result=st.sampled_from(["whole", "whole", "missing", "damaged"]),
          gap=st.sampled_from([0, 0, 0, 2]), stays=st.booleans())  # fmt: skip
    def done(self, n: int, how: tuple, result: str, gap: int, stays: bool) -> None:
        """`stays`: its answer is lost, so that it will be said again."""
        trainer = self.a_trainer(n)
        self.world.done(trainer, *how, result, trainer.acked + 1 + gap)
        if not stays and not gap:
            next(p for p in self.world.processes if p.at is trainer).at = None
            self.world.past.append(trainer)

    @precondition(lambda self: self.world.api_up and self.world.past)
    @rule(n=pick, ends=st.booleans())
    def late(self, n: int, ends: bool) -> None:
        """A process that was given up, or whose answer was lost, speaks up again."""
        trainer = self.world.past[n % len(self.world.past)]
        if ends:
            self.world.done(trainer, "succeeded", None, "whole", 1)
        else:
            self.world.beat(trainer, 1, 3)

    @precondition(lambda self: self.world.api_up and (self.working() or self.world.past))
    @rule(n=pick, kind=st.integers(0, 5), other=pick)
    def forge(self, n: int, kind: int, other: int) -> None:
        known = self.working() + self.world.past
        mine, its = known[n % len(known)], known[other % len(known)]
        tokens = ["forged", "", its.token, *(p.token for p in self.world.processes)]
        token, no = tokens[kind % len(tokens)], mine.no
        if token == mine.token:
            no += 1 + kind  # its own token for the next attempt
        if token != its.token or (mine.job, no) != its.key:
            self.world.forge(mine, token, no)

    @precondition(lambda self: self.world.processes)
    @rule(n=pick, how=st.sampled_from(["FAILED", "STOPPED", "SUCCEEDED", "vanished"]))
    def die(self, n: int, how: str) -> None:
        self.world.die(self.a_process(n), how)

    @precondition(lambda self: self.world.processes)
    @rule(n=pick, how=st.sampled_from(["FAILED", "STOPPED", "vanished"]))
    def ray_loses_sight(self, n: int, how: Any) -> None:
        """The process lives on and does not know."""
        process = self.a_process(n)
        if how == "vanished":
            self.world.ray.jobs.pop(process.id, None)
        elif process.id in self.world.ray.jobs:
            self.world.ray.end(process.id, how)

    @precondition(lambda self: self.world.processes)
    @rule(n=pick)
    def drain(self, n: int) -> None:
        """At once, or after its job."""
        with self.database.write() as session:
            (runners.drain, runners.retire)[n // 6](session, self.a_process(n).id)

    @rule(trouble=st.sampled_from(["away", "lost answers", "refuses", "back", "back", "back", "back"]))
    def ray(self, trouble: str) -> None:
        ray = self.world.ray
        ray.away, ray.lost_answers = trouble == "away", trouble == "lost answers"
        ray.refuses = "no such cluster" if trouble == "refuses" else ""

    # ---- time

    @rule(by=seconds)
    def time(self, by: float) -> None:
        self.world.advance(by)

    @rule(by=st.sampled_from([10, 40, 130]), rounds=st.booleans(), back=st.sampled_from([True, True, True, False]))
    def api(self, by: float, rounds: bool, back: bool) -> None:
        """It is away for a while, noticed or not."""
        self.world.api(False)
        self.world.advance(by)
        if rounds:
            self.world.tick(Wake("reconcile", ""))
        self.world.api(back)

    @precondition(lambda self: not self.world.api_up)
    @rule()
    def api_returns(self) -> None:
        self.world.api(True)

    @precondition(has_jobs)
    @rule(by=st.sampled_from([5, 40]))
    def all_is_well(self, by: float) -> None:
        """What has to be done is done, as far as nothing stands in its way."""
        self.world.round(by)

    @initialize(jobs=st.integers(0, 2), rounds=st.integers(0, 4))
    def begin(self, jobs: int, rounds: int) -> None:
        if jobs:
            self.world.study(jobs)
        for _ in range(rounds):
            self.world.round(5)

    @rule(count=st.integers(1, 3), by=st.sampled_from([5, 20, 40]), beating=st.integers(0, 3))
    def rounds(self, count: int, by: float, beating: int) -> None:
        """The reconciler does its rounds in time, while some runners beat."""
        for _ in range(count):
            self.world.advance(by)
            for n, trainer in enumerate(self.working()):
                if self.world.api_up and trainer.over is None and beating >> n & 1:
                    self.world.beat(trainer, trainer.acked + 1, 0)
            self.world.tick(Wake("reconcile", ""))
            self.world.watch.check()

    # ---- always, and in the end

    @invariant()
    def all_is_as_it_must_be(self) -> None:
        self.world.watch.check()
        type(self).executed += 1

    def teardown(self) -> None:
        self.world.heal()
        for _ in range(ROUNDS):
            if self.world.settled():
                self.reached.update(s for j in self.world.watch.jobs.values() for s in j.reached)
                self.reached.update(f"{a.status} {a.reason}" for a in self.world.watch.attempts.values())
                return
            self.world.round(ROUND_S, ends=True)
        left = {k: (j.status, j.wanted) for k, j in self.world.watch.jobs.items()}
        raise AssertionError(f"with everything healthy these came to no end: {left}")


def run(database: Stepped, clock: Clock, count: int, first_seed: int) -> Any:
    """So many rules on a database, some hundred examples at a time; the machine, with what it has counted."""
    given = {"database": database, "clock": clock, "executed": 0, "reached": Counter()}
    machine: Any = type("Machine", (Machine,), given)
    numbers = itertools.count(first_seed)
    while (left := count - machine.executed) > 0:
        run_state_machine_as_test(
            seed(next(numbers))(machine),
            settings=settings(
                max_examples=min(200, -(-left // RULES)), stateful_step_count=RULES, deadline=None, database=None,
                suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
                phases=[Phase.generate, Phase.shrink],
            ),
        )  # fmt: skip
    return machine


@pytest.mark.timeout(max(1800, int(ASKED or 0) // 10))
@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
def test_no_interleaving_breaks_an_invariant(request, engine, monkeypatch):
    clock, began, first_seed = Clock(), time.process_time(), int(time.time()) if ASKED else 4
    read_imagined(monkeypatch)
    monkeypatch.setattr(logging.getLogger("attune.worker"), "disabled", True)
    with contextlib.ExitStack() as stack:
        if engine == "sqlite":
            database = Stepped("sqlite://", clock=clock, poolclass=StaticPool)
            migrate(database)
        else:
            database = Stepped(stack.enter_context(fresh(request, engine)), clock=clock)
        stack.callback(database.close)
        made = run(database, clock, COUNTS[engine], first_seed)
    reached, cpu = made.reached, time.process_time() - began
    print(f"{engine}: {made.executed} interleavings in {cpu:.0f} s of CPU, seed {first_seed}; {dict(reached)}")
    if engine == "sqlite":  # else the walk has gone nowhere, and nothing is shown
        assert set(reached) >= {*JOB, "succeeded None", "lost lost_heartbeat", "lost infrastructure"} - {"validating"}
