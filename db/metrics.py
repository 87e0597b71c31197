"""Metrics: a row per attempt and step while a job runs, one series per metric once it has ended."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from db.models import Attempt, Checkpoint, Metric, Series
from db.session import now

PREVIEW = 100
"""Points of a series that lists show, about."""


def insert_new(session: Session, model: Any):
    """An INSERT that leaves a row that is there as it is."""
    dialect = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
    return dialect.insert(model).on_conflict_do_nothing()


def record(session: Session, attempt: Attempt, steps: Sequence[dict[str, Any]]) -> None:
    """Step events as rows."""
    rows = [
        {"job_id": attempt.job_id, "attempt_no": attempt.no, "step": e["step"], "kind": "step",
         "values": {k: v for k, v in e.items() if k not in ("kind", "step")}}
        for e in steps
    ]  # fmt: skip
    session.execute(insert_new(session, Metric), rows)


def complete(session: Session, attempt: Attempt, retold: Sequence[dict[str, Any]]) -> None:
    """Steps of earlier attempts, which a later one has found in their logs: rows where they are missing, for who died
    may have had no time to tell them."""
    ends = _ends(session, attempt.job_id)
    steps = [e["step"] for e in retold]
    there = select(Metric.attempt_no, Metric.step).where(
        Metric.job_id == attempt.job_id, Metric.kind == "step", Metric.step.between(min(steps), max(steps))
    )
    known = {step for no, step in session.execute(there) if _counts(ends, no, step)}
    if missing := [e for e in retold if e["step"] not in known]:
        record(session, attempt, missing)


def checkpoint(session: Session, attempt: Attempt, step: int, prefix: str) -> None:
    """A checkpoint that the trainer has committed."""
    session.execute(
        insert_new(session, Checkpoint).values(
            job_id=attempt.job_id, attempt_no=attempt.no, step=step, prefix=prefix, created_at=now(session)
        )
    )


def checkpoints(session: Session, job_id: str) -> list[Checkpoint]:
    """Of all attempts, furthest first."""
    chosen = select(Checkpoint).where(Checkpoint.job_id == job_id)
    return list(session.scalars(chosen.order_by(Checkpoint.step.desc(), Checkpoint.attempt_no.desc())))


def flat(values: dict[str, Any]) -> dict[str, float]:
    """The numbers of a step event: `loss`, `realised_mix.speech`, …; times of arrival are no metric."""
    found: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= {f"{key}.{k}": float(v) for k, v in value.items() if isinstance(v, (int, float))}
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and key != "at":
            found[key] = float(value)
    return found


def _ends(session: Session, job_id: str) -> dict[int, int | None]:
    """How far each attempt's rows count: up to where the next began."""
    starts = session.execute(
        select(Attempt.no, Attempt.start_step).where(Attempt.job_id == job_id).order_by(Attempt.no)
    ).all()
    ends, upto = {}, None
    for no, start in reversed(starts):
        ends[no] = upto
        if start is not None:
            upto = start if upto is None else min(upto, start)
    return ends


def _counts(ends: dict[int, int | None], attempt_no: int, step: int) -> bool:
    end = ends[attempt_no]
    return end is None or step <= end


def _rows(session: Session, job_id: str, after_step: int) -> list[tuple[int, dict[str, float]]]:
    """(step, values) of the attempts that count."""
    ends = _ends(session, job_id)
    # columns, for rows as objects take twice the time
    chosen = select(Metric.step, Metric.attempt_no, Metric.values)
    chosen = chosen.where(Metric.job_id == job_id, Metric.kind == "step", Metric.step > after_step)
    rows = session.execute(chosen.order_by(Metric.step, Metric.attempt_no))
    return [(step, flat(values)) for step, no, values in rows if _counts(ends, no, step)]


def series(session: Session, job_id: str, names: Sequence[str] = (), after_step: int = 0) -> dict[str, Any]:
    """{name: (steps, values)}, each step once; of finished jobs from what `compact` left."""
    wanted = set(names)
    folded = select(Series).where(Series.job_id == job_id)
    if wanted:
        folded = folded.where(Series.name.in_(wanted))
    done = {}
    for s in session.scalars(folded):
        steps, values = np.asarray(s.steps), np.asarray(s.values, float)
        done[s.name] = (steps[steps > after_step], values[steps > after_step])
    if done:
        return done
    found: dict[str, tuple[list[int], list[float]]] = {}
    for step, values in _rows(session, job_id, after_step):
        for name, value in values.items():
            if not wanted or name in wanted:
                steps, column = found.setdefault(name, ([], []))
                steps.append(step)
                column.append(value)
    return {name: (np.asarray(s), np.asarray(v)) for name, (s, v) in found.items()}


def thinned(steps: np.ndarray, values: np.ndarray, points: int) -> list[list[float]]:
    """At most `points` [step, value], the lowest and highest value of every bucket among them, in order."""
    if len(steps) > points:
        buckets = np.array_split(np.arange(len(steps)), max(1, points // 2))
        kept = sorted({int(b[pick(values[b])]) for b in buckets for pick in (np.argmin, np.argmax)})
        steps, values = steps[kept], values[kept]
    return [[int(s), float(v)] for s, v in zip(steps, values, strict=True)]


def preview(known: Sequence[Sequence[float]], steps: Sequence[dict[str, Any]]) -> list[list[float]]:
    """The loss as lists show it while a job runs, with these further steps: one point for each stretch of as many
    steps. What an earlier attempt did beyond the first of them is forgotten."""
    first, last = steps[0]["step"], steps[-1]["step"]
    stretch = 1 << ((last - 1) // PREVIEW).bit_length()
    new = ((e["step"], _rounded(e["loss"])) for e in steps if e.get("loss") is not None)
    points = [*((step, value) for step, value in known if step < first), *new]
    return [list(point) for point in {(step - 1) // stretch: (step, value) for step, value in points}.values()]


def _rounded(value: float) -> float:
    """Four digits; the largest doubles as they are, for rounded up they would be infinite, which JSON has not."""
    short = float(f"{value:.4g}")
    return short if math.isfinite(short) else value


def compact(session: Session, job_id: str) -> None:
    """Fold the rows of an ended job into series; a second call finds nothing to do."""
    found = series(session, job_id)
    if session.scalar(select(Series.name).where(Series.job_id == job_id).limit(1)) is None:
        session.add_all(
            Series(job_id=job_id, name=name, steps=steps.tolist(), values=values.tolist(),
                   preview=thinned(steps, values, PREVIEW))
            for name, (steps, values) in found.items()
        )  # fmt: skip
    session.execute(delete(Metric).where(Metric.job_id == job_id))
