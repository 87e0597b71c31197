"""Scaling: which pools get runners, and which runners make room. Runners pick their jobs themselves."""

import logging
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from db import jobs, leases, runners
from db.events import New
from db.jobs import Waiting
from db.models import Runner
from db.session import Database, clock
from db.settings import Settings
from db.turn import turn
from worker.ray_jobs import TICK_S, RayError, RayJobs, RayRefusedError, RayUnavailableError

ENTRYPOINT = "exec python -m trainer.runner"
"""`exec`: Ray's SIGTERM is to reach the runner, not a shell."""
SCALE, TURN_S = "scale", 60.0
FAILURES = 3
"""Failed starts in a row that a pool has free; then it waits."""
FIRST_WAIT_S, LONGEST_WAIT_S = 30.0, 1800.0
"""That wait, doubled with every further failure up to the longest."""
REMIND_S = 3600.0
"""How often waiting jobs are told that Ray is away."""
AHEAD_S = 300.0
"""A warm runner goes on with jobs of its pool that came up to so long after another pool's: a switch costs a load."""

_log = logging.getLogger("attune.worker")


class Start(NamedTuple):
    """A new runner for the pool."""

    waiting: Waiting


class Drain(NamedTuple):
    """The runner is to leave, after a checkpoint."""

    runner_id: str


class Retire(NamedTuple):
    """The runner is to leave after the job that it has."""

    runner_id: str


def choose(
    queue: Sequence[Waiting], running: Sequence[Runner], loads: Mapping[str, int], held_back: Collection[str], most: int
) -> Start | Drain | Retire | None:
    """The next thing to do, or None. Pure; to be asked again after it has been done.

    A queued job for which its pool has no idle runner lacks one. Runners go to the most urgent lack first, of equals
    to the pool with the fewest runners, then to the longest wait. Where `most` runners are there, an idle one without
    jobs of its own makes room, and if there is none, a busy one whose job (`loads`: its priority) is less urgent. Of
    equally urgent ones none is interrupted, but for a pool without any runner one leaves after its job, if what it
    would take next is less urgent, or came more than `AHEAD_S` later.
    """
    idle = Counter(r.pool for r in running if r.status == "starting" or (r.status == "alive" and r.id not in loads))
    have = Counter(r.pool for r in running)
    lacks = [
        (w, n)
        for w in queue
        if w.pool not in held_back
        for n in range(have[w.pool], have[w.pool] + min(w.jobs - idle[w.pool], most))
    ]
    lacks.sort(key=lambda lack: (-lack[0].priority, lack[1], lack[0].queued_at, lack[0].pool))
    if lacks and len(running) < most:
        return Start(lacks[0][0])
    leaving = [r for r in running if r.status == "draining"]
    late = [r for r in leaving if r.id in loads and r.asked_at is None]  # they finish their job first
    room = max(0, most - len(running) + len(leaving) - len(late))
    if len(lacks) <= room:
        return None  # which is being made
    waiting = {w.pool: w for w in queue}
    alive = [r for r in running if r.status == "alive"]
    if useless := [r for r in alive if r.id not in loads and r.pool not in waiting]:
        return Drain(useless[0].id)
    busy = [r for r in alive if r.id in loads]
    if lesser := [r for r in (*late, *busy) if loads[r.id] < lacks[room][0].priority]:
        return Drain(min(lesser, key=lambda r: loads[r.id]).id)
    for lack, there in lacks[room + len(late) :]:
        after = [r for r in busy if r.pool in waiting and _after(lack, waiting[r.pool])]
        if there == 0 and after:
            return Retire(max(after, key=lambda r: have[r.pool]).id)
    return None


def _after(first: Waiting, then: Waiting) -> bool:
    """Whether it is the first's turn, though a runner is warm for the other."""
    if first.priority != then.priority:
        return first.priority > then.priority
    return first.queued_at + AHEAD_S < then.queued_at


def scale(database: Database, settings: Settings, ray: RayJobs) -> int:
    """Bring the runners to what the queue asks for; how many were started. Takes `TICK_S` and one more start."""
    with database.read() as session:
        if not jobs.waiting(session):
            return 0
    end, started = time.monotonic() + TICK_S, 0
    with turn(database, SCALE, TURN_S) as mine:
        while mine and time.monotonic() < end:
            lack = _lack(database, settings, mine)
            if lack is None or not _answers(database, ray, lack) or not _start(database, settings, ray, mine, lack):
                break
            started += 1
    return started


def _lack(database: Database, settings: Settings, mine: str) -> Waiting | None:
    """For whom to start the next runner, after those that are to leave have been told."""
    with database.write() as session:
        if leases.take(session, SCALE, mine, TURN_S) is None:  # taken over: another knows better
            return None
        queue = jobs.queue(session)
        held_back = {w.pool for w in queue if _held_back(session, w.pool)}
        while True:
            running = runners.running(session)
            match choose(queue, running, runners.loads(session), held_back, settings.max_runners):
                case Drain(runner_id):
                    runners.drain(session, runner_id)
                case Retire(runner_id):
                    runners.retire(session, runner_id)
                case Start(waiting):
                    return waiting
                case None:
                    return None


def _held_back(session, pool: str) -> bool:
    """Whether the pool must wait after failed starts; its jobs are told why, once per failure."""
    failed = runners.failed_starts(session, pool)
    if failed is None or failed.count < FAILURES:
        return False
    wait = min(FIRST_WAIT_S * 2 ** (failed.count - FAILURES), LONGEST_WAIT_S)
    message = (
        f"{failed.count} runners in a row ended before they took a job; the next one starts {wait:.0f} s after the "
        f"last. How that ended: {failed.reason}"
    )
    again_at = failed.last_at + wait
    said = New("runner.failed", {"failures": failed.count, "retry_at": round(again_at), "message": message})
    jobs.tell_queued(session, pool, said, failed.last_at)
    return clock(session) < again_at


def _answers(database: Database, ray: RayJobs, waiting: Waiting) -> bool:
    """Whether Ray is there; where it is not, the jobs that wait for it are told."""
    try:
        ray.version()
    except RayError as error:
        _log.warning("%s", error)
        said = New("runner.delayed", {"message": f"no runner can be started: {error}"})
        with database.write() as session:
            jobs.tell_queued(session, waiting.pool, said, clock(session) - REMIND_S)
        return False
    return True


def _start(database: Database, settings: Settings, ray: RayJobs, mine: str, waiting: Waiting) -> bool:
    """Hand a new runner to Ray; whether Ray has it. Where nobody can tell, the runner stays `starting`, and the
    reconciler finds out."""
    ranks = max(1, waiting.gpus)
    with database.write() as session:
        if leases.take(session, SCALE, mine, TURN_S) is None:
            return False
        new = runners.start(session, waiting.pool, settings.code, ranks, waiting.gpus)
    env = {
        "ATTUNE_RUNNER_ID": new.id, "ATTUNE_BOOTSTRAP_CODE": new.bootstrap, "ATTUNE_API_URL": settings.api_url,
        "ATTUNE_STORE": settings.store, "ATTUNE_POOL": waiting.pool, "ATTUNE_CODE": settings.code,
        "ATTUNE_DATA": settings.data, "ATTUNE_WORLD_SIZE": str(ranks),
    }  # fmt: skip
    try:
        # The command itself needs nothing: its ranks ask Ray for their GPUs.
        ray.submit(new.id, ENTRYPOINT, env=env, metadata={"pool": waiting.pool})
    except RayUnavailableError as error:
        _log.warning("runner %s: %s", new.id, error)
        return False
    except RayRefusedError as error:
        _log.error("runner %s: %s", new.id, error)
        with database.write() as session:
            runners.ended(session, new.id, str(error))
        return False
    return True
