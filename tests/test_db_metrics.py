"""Curves: each step once, whatever was repeated, and the same before and after they are folded."""

import itertools

import numpy as np
import pytest
from db_rows import a_runner, held, reclaimed, state, step
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, select

from db import jobs, metrics
from db.models import Job, Metric, Series

pytest_plugins = ["databases"]


def curve(database, job: str, name: str = "loss", **limits) -> list[tuple[int, float]]:
    with database.read() as session:
        found = metrics.series(session, job, [name], **limits)
    steps, values = found.get(name, ((), ()))
    return [(int(s), float(v)) for s, v in zip(steps, values, strict=True)]


def interrupted(database) -> str:
    """A job of four attempts: 1 to 7, again from 4 to 6, one that never trained, again from 5 to the end."""
    runner = a_runner(database)
    mine = held(database, runner, retries=9)
    mine.beat(1, state("training", 0), *(step(n, loss=100 + n) for n in range(1, 8)))
    for start, last in ((4, 6), (None, 0), (5, 9)):
        mine.end("lost")
        mine = reclaimed(database, runner, mine.job)
        if start is not None:
            again = (step(n, loss=100 * mine.no + n) for n in range(start + 1, last + 1))
            mine.beat(1, state("loading"), state("training", start), *again)
    mine.done("succeeded")
    return mine.job


STEPS = [1, 2, 3, 4, 5, 6, 7, 8, 9]
LOSSES = [101, 102, 103, 104, 205, 406, 407, 408, 409]


def test_an_attempt_counts_up_to_where_the_next_began(database):
    """Steps done again stand once, with the values that the final weights come from."""
    assert curve(database, interrupted(database)) == list(zip(STEPS, LOSSES, strict=True))


def test_an_attempt_that_begins_anew_replaces_all(database):
    """No checkpoint survived: the curve begins again too."""
    runner = a_runner(database)
    mine = held(database, runner)
    mine.beat(1, state("training", 0), step(1), step(2))
    mine.end()
    mine = reclaimed(database, runner, mine.job)
    mine.beat(1, state("loading"))
    assert [s for s, _ in curve(database, mine.job)] == [1, 2]  # nothing better yet
    mine.beat(2, state("training", 0))
    assert curve(database, mine.job) == []
    mine.beat(3, step(1, loss=7.0))
    assert curve(database, mine.job) == [(1, 7.0)]


def retold(number: int, **values) -> dict:
    return {**step(number, **values), "kind": "retold"}


def test_what_the_dead_had_no_time_to_tell_is_told_by_the_next(database):
    """Attempts 1 and 2 died with steps in the log that the service never heard of."""
    runner = a_runner(database)
    mine = held(database, runner, retries=9)
    mine.beat(1, state("training", 0), *(step(n, loss=100 + n) for n in range(1, 4)))
    mine.end("lost")
    mine = reclaimed(database, runner, mine.job)
    known = [retold(n, loss=100 + n) for n in range(1, 6)]
    mine.beat(1, state("loading"), *known[:4])
    mine.beat(6, known[4], state("training", 5), step(6, loss=206), step(7, loss=207))
    assert [s for s, _ in curve(database, mine.job)] == [1, 2, 3, 4, 5, 6, 7]
    mine.end("lost")
    mine = reclaimed(database, runner, mine.job)
    mine.beat(1, state("loading"), *known, retold(6, loss=206), state("training", 6), step(7, loss=307))
    assert curve(database, mine.job) == [*((n, 100 + n) for n in range(1, 6)), (6, 206), (7, 307)]
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Metric)) == 8  # the seventh step was done twice
        shown = session.get_one(Job, mine.job).summary["curve"]
    assert shown == [[n, loss] for n, loss in curve(database, mine.job)]  # what lists show has no hole either


def test_folding_changes_no_curve(database):
    job = interrupted(database)
    with database.read() as session:
        before = metrics.series(session, job)
        later = metrics.series(session, job, after_step=6)
    with database.write() as session:
        assert jobs.finish(session, job, {"scores": [1]})
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Metric)) == 0
        folded, folded_later = metrics.series(session, job), metrics.series(session, job, after_step=6)
        previews = {s.name: s.preview for s in session.scalars(select(Series))}
    for one, other in ((before, folded), (later, folded_later)):
        assert set(one) == set(other) == {"loss", "seconds"}
        for name in one:
            np.testing.assert_array_equal(one[name][0], other[name][0])
            np.testing.assert_array_equal(one[name][1], other[name][1])
    assert previews["loss"] == [[s, v] for s, v in zip(STEPS, LOSSES, strict=True)]
    assert curve(database, job, after_step=8) == [(9, 409)]
    with database.write() as session:
        metrics.compact(session, job)
    assert curve(database, job) == list(zip(STEPS, LOSSES, strict=True))


def test_values_survive_exactly(database):
    """Doubles go through JSON on both engines, digit by digit."""
    values = [0.1 + 0.2, 1e-300, 1.7976931348623157e308, -5e-324, 3.0, 12345678901234567.0]
    mine = held(database)
    mine.beat(1, state("training", 0), *(step(n, loss=v) for n, v in enumerate(values, 1)))
    assert [v for _, v in curve(database, mine.job)] == values
    mine.done("succeeded")
    with database.write() as session:
        jobs.finish(session, mine.job)
    assert [v for _, v in curve(database, mine.job)] == values


def test_a_value_that_is_no_number_does_not_stop_the_beat(database):
    """JSON has no nan: Postgres would refuse the batch, and with it every later one."""
    mine = held(database)
    mine.beat(1, state("training", 0), step(1), step(2, loss=float("nan"), grad_norm=float("inf")), step(3))
    assert [s for s, _ in curve(database, mine.job, "seconds")] == [1, 2, 3]
    assert [s for s, _ in curve(database, mine.job)] == [1, 3]
    mine.done("failed", "diverged")
    with database.write() as session:
        assert jobs.finish(session, mine.job)
    assert [s for s, _ in curve(database, mine.job)] == [1, 3]


def test_numbers_inside_a_step_are_curves_too(database):
    mine = held(database)
    mine.beat(1, state("training", 0), step(1, realised_mix={"speech": 0.25, "text": 0.75}, stage="a", at=1e9, ok=True))
    with database.read() as session:
        assert set(metrics.series(session, mine.job)) == {
            "loss", "seconds", "realised_mix.speech", "realised_mix.text"
        }  # fmt: skip


def test_a_job_without_steps_has_no_curve(database):
    mine = held(database)
    mine.done("failed", "invalid_data")
    with database.write() as session:
        assert jobs.finish(session, mine.job)
        assert metrics.series(session, mine.job) == {}


@given(
    values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300),
    points=st.integers(2, 60),
)
def test_a_thinned_curve_keeps_extremes_and_order(values, points):
    """A spike of one step must be seen at any zoom."""
    steps, column = np.arange(1, len(values) + 1), np.asarray(values)
    kept = metrics.thinned(steps, column, points)
    assert len(kept) <= points or len(kept) == len(values) <= points
    assert [s for s, _ in kept] == sorted({s for s, _ in kept})
    assert all(values[s - 1] == v for s, v in kept)
    assert min(v for _, v in kept) == min(values)
    assert max(v for _, v in kept) == max(values)
    if len(values) <= points:
        assert len(kept) == len(values)


@pytest.mark.parametrize("points", [2, 3, 10])
def test_nothing_to_thin(points):
    assert metrics.thinned(np.asarray([]), np.asarray([]), points) == []


@pytest.mark.parametrize("last", [1, 2, 99, 100, 101, 6400, 50_000])
@pytest.mark.parametrize("beat", [1, 7, 1000])
def test_a_preview_stays_small_even_and_up_to_date(last, beat):
    shown: list[list[float]] = []
    for first in range(1, last + 1, beat):
        shown = metrics.preview(shown, [{"step": n, "loss": 1 / n} for n in range(first, min(first + beat, last + 1))])
    steps = [step for step, _ in shown]
    assert len(shown) <= metrics.PREVIEW
    assert len(shown) >= min(last, metrics.PREVIEW // 2)
    assert steps[-1] == last
    assert len({b - a for a, b in itertools.pairwise(steps[:-1])}) <= 1  # the last stretch is not full
    assert all(value == float(f"{1 / step:.4g}") for step, value in shown)


def test_a_preview_forgets_what_a_later_attempt_does_again():
    before = metrics.preview([], [{"step": n, "loss": 1.0} for n in range(1, 31)])
    after = metrics.preview(before, [{"step": 21, "loss": 2.0}, {"step": 22, "loss": None}])
    assert [step for step, _ in after] == list(range(1, 22))
    assert after[-1] == [21, 2.0]
