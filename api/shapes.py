"""How rows look on the wire. Times become whole unix seconds here; the database keeps fractions."""

from collections.abc import Mapping, Sequence
from typing import Any

from db.models import Attempt, Checkpoint, Event, Job, Study


def seconds(at: float | None) -> int | None:
    """A time on the wire."""
    return None if at is None else int(at)


def page(data: Sequence[Mapping[str, Any]], has_more: bool) -> dict[str, Any]:
    """A list; the next page is asked for with `after=<last_id>`."""
    ids = [row["id"] for row in data]
    return {
        "object": "list", "data": list(data), "has_more": has_more,
        "first_id": ids[0] if ids else None, "last_id": ids[-1] if ids else None,
    }  # fmt: skip


def job(row: Job) -> dict[str, Any]:
    """A job as lists show it."""
    progress = {k: row.summary.get(k) for k in ("state", "stage", "step", "steps", "loss")}
    return {
        "object": "job", "id": row.id, "name": row.name, "study_id": row.study_id, "status": row.status,
        "wanted": row.wanted, "reason": row.reason, "message": row.message, "priority": row.priority,
        "spec_hash": row.spec_hash, "attempts": row.attempts, "progress": progress,
        "curve": row.summary.get("curve", []),
        "metric": row.summary.get("metric"), "scores": row.summary.get("scores", []),
        "tags": row.summary.get("tags", {}), "created_at": seconds(row.created_at),
        "queued_at": seconds(row.queued_at), "started_at": seconds(row.started_at),
        "finished_at": seconds(row.finished_at),
    }  # fmt: skip


def job_in_full(row: Job, attempts: Sequence[Attempt], checkpoints: Sequence[Checkpoint]) -> dict[str, Any]:
    """A job with what it was sent as, what runs, and how it went."""
    return {
        **job(row), "spec": row.spec, "resolved": row.resolved,
        "attempt_list": [attempt(a) for a in attempts], "checkpoints": [checkpoint(c) for c in checkpoints],
    }  # fmt: skip


def attempt(row: Attempt) -> dict[str, Any]:
    """One try of a job."""
    return {
        "id": f"{row.job_id}/{row.no}", "no": row.no, "status": row.status, "reason": row.reason,
        "message": row.message, "runner_id": row.runner_id, "start_step": row.start_step, "step": row.step,
        "claimed_at": seconds(row.claimed_at), "ended_at": seconds(row.ended_at),
    }  # fmt: skip


def checkpoint(row: Checkpoint) -> dict[str, Any]:
    """A checkpoint in the store."""
    job_ulid = row.job_id.partition("-")[2]
    return {
        "object": "checkpoint", "id": f"ftckpt_{job_ulid}_{row.attempt_no}_{row.step}", "step": row.step,
        "attempt": row.attempt_no, "prefix": row.prefix, "created_at": seconds(row.created_at),
    }  # fmt: skip


def event(row: Event) -> dict[str, Any]:
    """A line of a job's history."""
    return {
        "object": "event", "id": f"ftevent-{row.job_id.partition('-')[2]}-{row.seq}", "seq": row.seq,
        "attempt": row.attempt_no, "created_at": seconds(row.at), "actor": row.actor, "type": row.type,
        "data": row.data,
    }  # fmt: skip


def study(row: Study, jobs: Sequence[Job] = ()) -> dict[str, Any]:
    """A study and how far its jobs are."""
    counts: dict[str, int] = {}
    for member in jobs:
        counts[member.status] = counts.get(member.status, 0) + 1
    return {
        "object": "study", "id": row.id, "name": row.name, "cells": row.cells, "controls": row.controls,
        "notes": row.notes, "jobs": counts, "created_at": seconds(row.created_at),
    }  # fmt: skip
