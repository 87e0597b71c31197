"""Shares that change over a stage: integrals by hand, learning rates along them, what is refused."""

import math

import numpy as np
import pytest
from specs import corpus_folder, job, resolved

from trainer.fields import SpecError
from trainer.plan import plan_stage
from trainer.schedule import lr_scale
from trainer.spec import parse_job
from trainer.stage import Curve, Optimizer, Ramp, Rest, Stage, Steps, area, cumulative, mean, shares

AT = np.array([0.25, 0.5, 1.0])


# Area under the curve up to .25, .5 and 1, worked out by hand.
@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        (Ramp(kind="linear", start=0.2, end=1), [0.075, 0.2, 0.6]),  # .2 x + .4 x²
        (Ramp(kind="linear", start=0, end=1, until=0.5), [0.0625, 0.25, 0.75]),  # x² up to .5, then x - .25
        (Ramp(kind="cosine", start=1, end=0), [1 / 8 + math.sqrt(2) / 4 / math.pi, 1 / 4 + 1 / 2 / math.pi, 1 / 2]),
        (Ramp(kind="cosine", start=0, end=0.8, until=0.5), [0.1 - 0.2 / math.pi, 0.2, 0.6]),
        (Ramp(kind="competence", start=0, end=1), [1 / 12, math.sqrt(2) / 6, 2 / 3]),  # 2/3 x^1.5
        (Steps(kind="step", points=[(0, 0.1), (0.25, 0.5), (0.5, 1)]), [0.025, 0.15, 0.65]),
        (Curve(points=[(0, 1), (0.5, 0), (1, 0)]), [0.1875, 0.25, 0.25]),
    ],
)  # fmt: skip
def test_a_curve_integrates_exactly(curve, expected):
    assert curve.area(AT) == pytest.approx(expected, abs=1e-12)
    assert mean(curve) == pytest.approx(expected[-1])


def test_competence_is_the_square_root_of_platanios_and_others():
    """c(t) = sqrt(t (1 - c0²) + c0²), at c0 = .1: c(.25) = sqrt(.25 · .99 + .01) = .50744..."""
    curve = Ramp(kind="competence", start=0.1, end=1)
    fine = shares(curve, 100_000)
    assert fine[25_000] == pytest.approx(math.sqrt(0.25 * 0.99 + 0.01), abs=1e-5)
    assert fine[0] == pytest.approx(0.1, abs=1e-3)
    t = (np.arange(100_000) + 0.5) / 100_000
    assert np.allclose(fine, np.sqrt(t * 0.99 + 0.01), atol=1e-4)
    assert mean(curve) == pytest.approx(2 / 3 * (1 - 0.001) / 0.99)  # 2/3 (1 - c0³) / (1 - c0²)
    assert mean(Ramp(kind="competence", start=0.3, end=0.3)) == pytest.approx(0.3)
    assert mean(Ramp(kind="competence", start=0, end=0)) == 0


def test_rest_is_what_the_others_leave():
    stage = Stage.model_validate(
        {"name": "a", "steps": 5, "mix": {"text": "rest", "speech": {"kind": "competence", "start": 0, "end": 1}}}
    )
    text, speech = stage.mix["text"], stage.mix["speech"]
    assert isinstance(text, Rest)
    assert cumulative(text, 50) + cumulative(speech, 50) == pytest.approx(np.arange(1, 51))
    assert Stage.model_validate_json(stage.model_dump_json()) == stage
    assert Stage.model_validate({"name": "a", "steps": 1, "mix": {"text": "rest"}}).mix == {"text": 1.0}


@pytest.mark.parametrize(
    ("mix", "words"),
    [
        ({"text": "rest", "speech": "rest"}, "rest can stand once"),
        ({"text": "rest", "speech": 0.7, "synthetic": {"kind": "linear", "start": 0, "end": 0.6}}, "up to 1.3 at some"),
        ({"text": 0.5, "speech": {"kind": "linear", "start": 0.5, "end": 0.6}}, "the shares of mix add up to 1.1"),
        ({"text": {"kind": "zigzag"}}, "recipe.stages[0].mix.text: Input tag 'zigzag' found"),
        ({"text": {"kind": "linear", "start": 1}}, "recipe.stages[0].mix.text.end: Field required"),
        ({"text": {"kind": "step", "points": [[0.5, 1]]}}, "recipe.stages[0].mix.text.points: the first point holds"),
        ({"text": "half"}, "write a share as '5%' or 0.05 (given: 'half')"),
    ],
)  # fmt: skip
def test_a_bad_mix_is_refused(mix, words):
    recipe = {"name": "custom", "stages": [{"name": "a", "steps": 5, "mix": mix}]}
    with pytest.raises(SpecError) as caught:
        parse_job(job("x", recipe=recipe))
    assert words in str(caught.value)
    assert len(caught.value.problems) == 1


def test_a_learning_rate_follows_its_curve_after_the_warm_up():
    o = Optimizer(schedule={"kind": "linear", "start": 1, "end": 0}, warmup_ratio=0.2)  # type: ignore[arg-type]
    assert [lr_scale(t, 10, o) for t in range(10)] == pytest.approx([0.5, 1, *(1 - (k + 0.5) / 8 for k in range(8))])
    held = Optimizer(schedule=Steps(kind="step", points=[(0, 1), (0.5, 0.1)]), warmup_ratio=0)
    assert [lr_scale(t, 4, held) for t in range(4)] == pytest.approx([1, 1, 0.1, 0.1])


def test_a_part_of_a_schedule_goes_on_with_it():
    whole = Optimizer(schedule="cosine", warmup_ratio=0.3)
    parts = [whole.model_copy(update={"schedule_part": (first, 10)}) for first in (0, 6)]
    rates = [lr_scale(t, 6, parts[0]) for t in range(6)] + [lr_scale(t, 4, parts[1]) for t in range(4)]
    assert rates == [lr_scale(t, 10, whole) for t in range(10)]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"schedule": {"kind": "linear", "start": 1, "end": 0}, "final_lr_ratio": 0.1}, "leave final_lr_ratio out"),
        ({"schedule": {"kind": "linear", "start": 0, "end": 0}}, "is 0 everywhere"),
        ({"schedule": "cosin"}, "optimizer.schedule: Input should be 'cosine', 'linear', 'wsd' or 'constant'"),
        ({"schedule_part": [4, 4]}, "first from 0 to steps - 1"),
    ],
)  # fmt: skip
def test_a_bad_schedule_is_refused(fields, words):
    with pytest.raises(SpecError) as caught:
        parse_job(job("x", optimizer=fields))
    assert words in str(caught.value)


def test_a_plan_follows_its_curve_to_within_one_example(tmp_path):
    mix = {"text": "rest", "speech": {"kind": "competence", "start": 0.05, "end": 0.9, "until": 0.8}}
    recipe = {"name": "custom", "stages": [{"name": "a", "steps": 30, "mix": mix}]}
    found = resolved(corpus_folder(tmp_path), recipe=recipe, steps=None)
    plan = plan_stage(found, 0)
    due = cumulative(found.stages[0].mix["speech"], len(plan))
    assert np.abs(np.cumsum(plan.source == 1) - due).max() <= 0.5 + 1e-6


def test_a_curve_by_points_hashes_as_before_it_had_a_kind(tmp_path):
    points = [[0, 0.9], [1, 0.5]], [[0, 0.1], [1, 0.5]]
    hashes = set()
    for kind in ({}, {"kind": "piecewise"}):
        mix = {name: {**kind, "points": p} for name, p in zip(("text", "speech"), points, strict=True)}
        recipe = {"name": "custom", "stages": [{"name": "a", "steps": 5, "mix": mix}]}
        hashes.add(resolved(corpus_folder(tmp_path), recipe=recipe, steps=None).hash)
    assert hashes == {GOLDEN}


def test_area_of_a_constant():
    assert area(0.25, AT) == pytest.approx([0.0625, 0.125, 0.25])


GOLDEN = "a09fde8cafe00789d6555744b5ad90cbe2ffa31bbe4deb91075f5eb262364704"
"""Of this job before there were kinds of curves."""
