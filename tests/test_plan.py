"""The plan: pure, exact in its shares, the same whatever the world size or the number of attempts."""

import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from specs import corpus_folder, resolved

from trainer.plan import StagePlan, in_epochs, interleave, plan_stage, present
from trainer.stage import Curve, cumulative

RAMP = Curve(points=[(0, 1), (1, 0)]), Curve(points=[(0, 0), (1, 1)])
STEP = (
    Curve(points=[(0, 1), (0.5, 1), (0.5, 0.25), (1, 0.25)]),
    Curve(points=[(0, 0), (0.5, 0), (0.5, 0.75), (1, 0.75)]),
)


def deviation(mix, count):
    """Largest distance between realised and requested presentations of any source at any time."""
    chosen = interleave(mix, count)
    due = np.stack([cumulative(c, count) for c in mix])
    done = np.stack([np.cumsum(chosen == n) for n in range(len(mix))])
    return np.abs(due - done).max()


@pytest.mark.parametrize(
    "mix", [(0.7, 0.3), (0.98, 0.02), (0.0, 1.0), RAMP, STEP, (1 / 3,) * 3, (0.01, 0.09, 0.4, 0.5)]
)
def test_realised_shares_stay_within_one_example(mix):
    assert deviation(mix, 5000) < 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=2, max_size=6), st.integers(1, 600))
def test_any_constant_shares_stay_within_one_example(weights, count):
    shares = [w / sum(weights) for w in weights]
    assert deviation(shares, count) < 1


def test_a_curve_integrates_exactly():
    assert cumulative(RAMP[0], 100)[-1] == pytest.approx(50)
    assert cumulative(STEP[1], 100)[[49, 99]] == pytest.approx([0, 37.5])


def test_every_epoch_shows_every_row_once_in_a_fresh_order():
    order = in_epochs("text", 7, 0, 21, seed=0).reshape(3, 7)
    assert all(sorted(epoch) == list(range(7)) for epoch in order.tolist())
    assert len({tuple(epoch) for epoch in order.tolist()}) == 3


def test_epochs_run_on_where_the_stage_before_stopped():
    whole = in_epochs("text", 7, 0, 30, seed=4)
    assert np.array_equal(in_epochs("text", 7, 11, 19, seed=4), whole[11:])


def test_the_order_of_one_source_does_not_depend_on_the_mix():
    alone = present({"text": 1.0}, {"text": 50}, {"text": 0}, [0], 40, seed=9)
    rows = {"text": 50, "speech": 5}
    mixed = present({"text": 0.5, "speech": 0.5}, rows, {"text": 0, "speech": 0}, [0, 1], 80, seed=9)
    assert np.array_equal(mixed.row[mixed.source == 0], alone.row)


def test_a_curriculum_continues_its_sources_and_shows_what_it_promised(tmp_path):
    recipe = {"name": "limited_speech", "scheme": "curriculum", "speech_presentations": 2}
    job = resolved(corpus_folder(tmp_path), recipe=recipe, steps=12)
    first, last = plan_stage(job, 0), plan_stage(job, 1)
    assert [s.name for s in job.stages] == ["text_first", "mixed_last"]
    assert set(first.view) == {0}
    speech = last.row[last.view == 1]
    assert len(speech) == 24
    assert sorted(speech.tolist()) == sorted([*range(12)] * 2)
    text = np.concatenate([first.row, last.row[last.view == 0]])
    assert np.array_equal(text, in_epochs("text", 40, 0, len(text), job.spec.seed))


def test_a_saved_plan_is_the_same_plan(tmp_path):
    plan = plan_stage(resolved(corpus_folder(tmp_path)), 0)
    (tmp_path / "plan.npz").write_bytes(plan.save())
    again = StagePlan.load(tmp_path / "plan.npz")
    assert again.sha256 == plan.sha256
    assert len(again) == len(plan) == 80
    assert plan.step(3, 8) == slice(24, 32)
    assert plan.save() == plan.save()  # two runners that plan at once store the same bytes


def test_a_saved_plan_is_mapped_and_outlives_its_file(tmp_path):
    plan = present({"text": 0.5, "speech": 0.5}, {"text": 50, "speech": 5}, {"text": 0, "speech": 0}, [0, 1], 80, 9)
    (tmp_path / "plan.npz").write_bytes(plan.save())
    again = StagePlan.load(tmp_path / "plan.npz")
    (tmp_path / "plan.npz").unlink()
    for name in ("source", "row", "view"):
        array = getattr(again, name)
        assert isinstance(array, np.memmap)
        assert array.dtype == getattr(plan, name).dtype
        assert np.array_equal(array, getattr(plan, name))
    with pytest.raises(ValueError, match="read-only"):
        again.row[0] = 1


def test_a_damaged_plan_is_not_trained_on(tmp_path):
    data = plan_stage(resolved(corpus_folder(tmp_path)), 0).save()
    (tmp_path / "plan.npz").write_bytes(data[:600] + bytes([data[600] ^ 1]) + data[601:])
    with pytest.raises(zipfile.BadZipFile, match=r"row\.npy"):
        StagePlan.load(tmp_path / "plan.npz")


def test_a_compressed_plan_of_an_earlier_version_is_read(tmp_path):
    plan = plan_stage(resolved(corpus_folder(tmp_path)), 0)
    np.savez_compressed(tmp_path / "old.npz", source=plan.source, row=plan.row, view=plan.view)
    again = StagePlan.load(tmp_path / "old.npz")
    assert again.sha256 == plan.sha256
    assert np.array_equal(again.row, plan.row)


def test_an_empty_stage_has_an_empty_plan(tmp_path):
    (tmp_path / "plan.npz").write_bytes(present({"text": 1.0}, {"text": 3}, {"text": 0}, [0], 0, seed=0).save())
    assert len(StagePlan.load(tmp_path / "plan.npz")) == 0


def test_the_plan_is_the_one_written_down(tmp_path):
    """Golden: an unintended change of any plan is a change of every result."""
    recipe = {"name": "limited_speech", "scheme": "direct_mix", "speech_presentations": 3}
    plan = plan_stage(resolved(corpus_folder(tmp_path), recipe=recipe, seed=5), 0)
    assert plan.sha256 == "73b98029592cf186bbd0b982a3eef136cff7c40cac013b0aa9f9a1e4b861e884"
    assert plan.row[:8].tolist() == [3, 6, 14, 9, 37, 4, 16, 7]


@pytest.mark.parametrize("seed", [1, 2])
def test_another_seed_is_another_order(tmp_path, seed):
    folder = corpus_folder(tmp_path)
    assert plan_stage(resolved(folder, seed=seed), 0).sha256 != plan_stage(resolved(folder, seed=0), 0).sha256
