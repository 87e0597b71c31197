"""Seeded faults of the service's own parts in the middle of a job: API, worker, beat, broker, database.

What died is started again, as a supervisor would; nothing else is done. One attempt, equal to the undisturbed run.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fault_stand import DONE, MIDDLE, Running, Undisturbed
from processes import until
from stand import Stand

from db.models import Attempt
from db.session import clock

pytest_plugins = ["fault_stand"]
pytestmark = [pytest.mark.process, pytest.mark.ray, pytest.mark.timeout(900)]


@contextmanager
def in_the_middle(stand: Stand, undisturbed: Undisturbed) -> Iterator[Running]:
    """A job to which something happens, and which ends as if nothing had."""
    job = Running(stand)
    job.until_step(MIDDLE)
    yield job
    job.ends("succeeded", DONE)
    job.equals(undisturbed)


def test_nothing_goes_wrong(stand, undisturbed):
    job = Running(stand)
    job.ends("succeeded", DONE)
    job.equals(undisturbed)


def test_the_api_is_killed_and_comes_back(stand, undisturbed):
    with in_the_middle(stand, undisturbed):
        stand.kill("api")
        stand.start("api")


def test_the_api_is_away_for_longer_than_a_lease(stand, undisturbed):
    """The runner trains on, spools, and says what it has done when somebody listens again."""
    with in_the_middle(stand, undisturbed) as job:
        stand.kill("api")

        def run_out() -> bool:
            with stand.database.read() as session:
                return session.get_one(Attempt, (job.id, 1)).lease_expires_at < clock(session) - 10

        until(run_out, 120)
        assert (job.row().status, len(job.attempts())) == ("running", 1)
        stand.start("api")


@pytest.mark.parametrize("part", ["worker", "beat"])
def test_worker_or_beat_is_killed_and_away_until_a_result_waits_for_it(stand, undisturbed, part):
    with in_the_middle(stand, undisturbed) as job:
        stand.kill(part)
        if part == "worker":
            job.until("finalizing")
        stand.start(part)


@pytest.mark.parametrize("kept", [True, False], ids=["with its data", "without"])
def test_the_broker_is_killed_and_comes_back(stand, undisturbed, kept):
    with in_the_middle(stand, undisturbed) as job:
        stand.kill("broker")
        if not kept:
            job.until("finalizing")
        stand.broker.start(empty=not kept)


def test_the_database_is_killed_and_comes_back(stand, undisturbed, postgres_of_stand):
    with in_the_middle(stand, undisturbed):
        postgres_of_stand.kill()
        until(lambda: "could not renew" in stand.processes.logs(), said=stand.logs)  # long enough for all to meet it
        postgres_of_stand.start()


def test_all_of_it_at_once(stand, undisturbed, postgres_of_stand):
    with in_the_middle(stand, undisturbed):
        for part in ("api", "worker", "beat", "broker"):
            stand.kill(part)
        postgres_of_stand.kill()
        postgres_of_stand.start()
        stand.broker.start(empty=True)
        for part in ("beat", "worker", "api"):
            stand.start(part)
