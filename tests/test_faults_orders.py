"""Cancel, pause and resume at every point of a job's way through the whole service, also before Ray has started its
runner."""

import json
import signal

import pytest
from fault_stand import COMMANDS, DONE, MIDDLE, Running
from processes import until
from ray_start import started_node
from stand import QUICK, named

from db import runners
from worker.ray_jobs import RayJobs

pytest_plugins = ["fault_stand"]
pytestmark = [pytest.mark.process, pytest.mark.ray, pytest.mark.timeout(900)]

PAUSED, CANCELLED = ("yielded", "yielded"), ("failed", "user")


def test_orders_while_ray_has_the_runner_pending(stand_of_two, undisturbed):
    """Ray's agent, which prepares every job, stands still: what was submitted is PENDING until it goes on."""
    stand = stand_of_two
    (agent,) = named(stand.head, "ray::RuntimeEnvAgent")
    agent.send_signal(signal.SIGSTOP)
    try:
        resumed, cancelled, paused = (Running(stand) for _ in range(3))
        for job in (resumed, cancelled, paused):
            job.until("queued")
        with RayJobs(stand.head.address, stand.head.token, timeout_s=60) as ray:
            until(lambda: [j.status for j in ray.list() if not j.ended] == ["PENDING"], 300, stand.logs)
        stand.client.jobs.cancel(cancelled.id)
        for job in (resumed, paused):
            stand.client.jobs.pause(job.id)
        assert [job.row().status for job in (resumed, cancelled, paused)] == ["paused", "cancelled", "paused"]
        stand.client.jobs.resume(resumed.id)
    finally:
        agent.send_signal(signal.SIGCONT)
    with started_node(stand.head, env=QUICK):
        resumed.ends("succeeded", DONE)
        cancelled.ends("cancelled")
        assert (paused.row().status, paused.attempts()) == ("paused", [])
        with stand.database.read() as session:
            assert len(runners.running(session)) <= 1
        stand.client.jobs.resume(paused.id)
        paused.ends("succeeded", DONE)
    resumed.equals(undisturbed)
    paused.equals(undisturbed)


def test_orders_just_after_the_claim(stand, undisturbed):
    """The runner has the job and has yet to load it."""
    cancelled = Running(stand)
    cancelled.until("running")
    assert stand.client.jobs.cancel(cancelled.id)["status"] == "running"
    cancelled.ends("cancelled", CANCELLED)
    paused = Running(stand)
    paused.until("running")
    assert stand.client.jobs.pause(paused.id)["status"] == "pausing"
    paused.until("paused")
    stand.client.jobs.resume(paused.id)
    paused.ends("succeeded", PAUSED, DONE)
    paused.equals(undisturbed)


def test_orders_while_training(stand, undisturbed):
    cancelled = Running(stand)
    cancelled.until_step(MIDDLE)
    stand.client.jobs.cancel(cancelled.id)
    cancelled.ends("cancelled", CANCELLED)
    paused = Running(stand)
    paused.until_step(MIDDLE)
    stand.client.jobs.pause(paused.id)
    paused.until("paused")
    stand.client.jobs.resume(paused.id)
    paused.ends("succeeded", PAUSED, DONE)
    paused.equals(undisturbed)


def test_orders_while_evaluating(stand):
    long = {"on": f"{COMMANDS}:dev", "text_twin": False, "limit": 400, "decode": {"max_new_tokens": 6}}
    cancelled = Running(stand, steps=20, evaluate=long)
    cancelled.until_attempt("evaluating")
    stand.client.jobs.cancel(cancelled.id)
    cancelled.ends("cancelled", CANCELLED)
    paused = Running(stand, steps=20, evaluate=long)
    paused.until_attempt("evaluating")
    stand.client.jobs.pause(paused.id)
    paused.until("paused")
    stand.client.jobs.resume(paused.id)
    paused.ends("succeeded", PAUSED, DONE)
    answers = stand.store(paused.id).get("attempts/2/predictions/speech.jsonl").decode()
    assert len({json.loads(line)["utterance"] for line in answers.splitlines()}) == 400
