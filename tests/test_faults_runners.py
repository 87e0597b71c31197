"""Seeded faults of what trains: a runner's entry point, its rank, a node of Ray, Ray itself, a runner left alone.

Nothing is started again but nodes of Ray: the reconciler alone makes the next attempt, which goes on from the last
checkpoint and ends as if nothing had been.
"""

import pytest
from fault_stand import DONE, EVERY, LOST, MIDDLE, STEPS, Running
from processes import until
from ray_start import started_node
from stand import QUICK, RANK, kill_all, named

from db import jobs
from db.status import TERMINAL

pytest_plugins = ["fault_stand"]
pytestmark = [pytest.mark.process, pytest.mark.ray, pytest.mark.timeout(900)]


def resumed(job: Running) -> None:
    """Its last attempt went on from a checkpoint of an earlier one; one that was lost before training has no start."""
    with job.stand.database.read() as session:
        first, *_, last = (a.start_step for a in jobs.attempts(session, job.id) if a.start_step is not None)
    assert first == 0
    assert last in range(2 * EVERY, STEPS + 1)


@pytest.fixture(scope="module")
def spare(stand_of_two):
    """A node that stays up: what its runner has loaded serves the next test too."""
    with started_node(stand_of_two.head, env=QUICK) as node:
        yield node


@pytest.mark.parametrize("what", ["drivers", "ranks"])
def test_a_runner_is_killed(stand, undisturbed, what):
    job = Running(stand)
    job.until_step(MIDDLE)
    kill_all(getattr(stand, what)())
    job.ends("succeeded", LOST, DONE, faults=1)
    job.equals(undisturbed)
    resumed(job)


def test_ray_is_killed_and_comes_back_with_nothing(stand, undisturbed):
    job = Running(stand)
    job.until_step(MIDDLE)
    stand.kill("ray")
    stand.start("ray")
    job.ends("succeeded", ("lost", "lost_heartbeat"), DONE, faults=1)
    job.equals(undisturbed)
    resumed(job)


def test_the_raylet_of_another_node_is_killed(stand_of_two, undisturbed, request):
    stand = stand_of_two
    job = Running(stand)
    with started_node(stand.head, env=QUICK) as node:
        job.until_step(MIDDLE)
        kill_all([p for p in node.processes() if "raylet/raylet" in " ".join(p.cmdline())])
        until(lambda: len(job.attempts()) == 2 or job.row().status == "queued", 300, stand.logs)
    request.getfixturevalue("spare")  # not before: the job would go there
    job.ends("succeeded", LOST, DONE, faults=1)
    job.equals(undisturbed)
    resumed(job)


def test_the_api_is_away_for_longer_than_the_runner_goes_on_alone(stand_of_two, undisturbed, spare):
    """It writes a checkpoint and leaves; what it could not tell anybody stands in its log."""
    stand = stand_of_two
    job = Running(stand)
    job.until_step(MIDDLE)
    stand.kill("api")
    until(lambda: not named(spare, RANK), 300, stand.logs)
    stand.start("api")
    job.until(*TERMINAL)
    lost = job.attempts()[:-1]  # on a busy machine a later one may find 2 s without an answer, too
    assert len(lost) in (1, 2)
    # Ray's word or the lease, whichever comes first
    assert set(lost) <= {("lost", "infrastructure"), ("lost", "lost_heartbeat")}
    job.ends("succeeded", *lost, DONE, faults=len(lost))
    job.equals(undisturbed)
    resumed(job)
