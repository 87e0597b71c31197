"""What a job and an attempt may become, and what the end of an attempt makes of its job. Pure.

A status says where a job is, `wanted` what its user wants of it, and a reason why it got there; only the reason decides
whether an attempt is repeated.
"""

from typing import Literal

JobStatus = Literal[
    "validating", "queued", "running", "pausing", "paused", "finalizing", "succeeded", "failed", "cancelled"
]
AttemptStatus = Literal[
    "claimed", "loading", "training", "evaluating", "succeeded", "failed", "yielded", "fenced", "lost"
]
Wanted = Literal["run", "pause", "cancel"]
Action = Literal["continue", "checkpoint_and_exit", "abort"]
Command = Literal["cancel", "pause", "resume"]

JOB: dict[JobStatus, frozenset[JobStatus]] = {
    "validating": frozenset({"queued", "failed", "cancelled"}),
    "queued": frozenset({"running", "paused", "failed", "cancelled"}),
    "running": frozenset({"pausing", "queued", "finalizing", "cancelled"}),
    "pausing": frozenset({"running", "paused", "queued", "finalizing", "cancelled"}),
    "paused": frozenset({"queued", "cancelled"}),
    "finalizing": frozenset({"succeeded", "failed", "cancelled"}),
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
"""Every legal change of a job's status."""

LIVE: tuple[AttemptStatus, ...] = ("claimed", "loading", "training", "evaluating")
"""Attempts that hold a lease, in the order in which they go through them."""
ENDED: tuple[AttemptStatus, ...] = ("succeeded", "failed", "yielded", "fenced", "lost")
ATTEMPT: dict[AttemptStatus, frozenset[AttemptStatus]] = {
    **{status: frozenset((*LIVE[n + 1 :], *ENDED)) for n, status in enumerate(LIVE)},
    **{status: frozenset[AttemptStatus]() for status in ENDED},
}
"""Every legal change of an attempt's status: forward only."""

TERMINAL: tuple[JobStatus, ...] = ("succeeded", "failed", "cancelled")
HELD: tuple[JobStatus, ...] = ("running", "pausing")
"""A job is in one of these exactly while one of its attempts is live."""
FAULTS = ("infrastructure", "lost_heartbeat", "stalled")
"""Reasons that are nobody's fault: the attempt is repeated from the last checkpoint."""


class IllegalCommand(Exception):  # noqa: N818
    """The user's command makes no sense in the job's status."""


def action(wanted: Wanted, yielding: bool = False) -> Action:
    """What a runner is told with every heartbeat. `yielding`: it is to make room (drain, pre-emption)."""
    if wanted == "cancel":
        return "abort"
    return "checkpoint_and_exit" if wanted == "pause" or yielding else "continue"


def command(asked: Command, status: JobStatus) -> tuple[Wanted, JobStatus]:
    """What a user's command makes of a job: the new `wanted` and status. The same command twice is harmless."""
    if asked == "cancel":
        if status in ("succeeded", "failed"):
            raise IllegalCommand(f"the job has {status}; there is nothing to cancel")
        return "cancel", status if status in HELD else "cancelled"
    if status in TERMINAL or status == "finalizing":
        raise IllegalCommand(f"the job is {status}; it cannot be {asked}d any more; submit it again")
    if asked == "pause":
        return "pause", {"queued": "paused", "running": "pausing"}.get(status, status)  # type: ignore[return-value]
    return "run", {"paused": "queued", "pausing": "running"}.get(status, status)  # type: ignore[return-value]


def after_attempt(
    ended: AttemptStatus, reason: str | None, wanted: Wanted, faults: int, retries: int, used_runner: bool = False
) -> JobStatus:
    """Where the end of its attempt takes a job. `faults`: how many of its attempts ended by faults, this one counted;
    `used_runner`: the runner had worked on another job before, and nobody has tried this one on a fresh runner yet."""
    if ended == "succeeded" or wanted == "cancel" or reason == "timeout":
        return "finalizing"
    again: JobStatus = "paused" if wanted == "pause" else "queued"
    if ended == "yielded" or reason in ("user", "yielded"):  # its user asked (for no cancel), or it was to make room
        return again
    if reason in FAULTS:
        return again if faults <= retries else "finalizing"
    # memory left over from an earlier job is not this job's fault
    return again if reason == "out_of_memory" and used_runner else "finalizing"


def ending(ended: AttemptStatus, wanted: Wanted) -> JobStatus:
    """What a finalizing job becomes. A job that came to its end has succeeded, also where a cancel came too late."""
    if ended == "succeeded":
        return "succeeded"
    return "cancelled" if wanted == "cancel" else "failed"
