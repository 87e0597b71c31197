"""Strategies as lists of stages: equal steps, equal presentations, and refusals that name the way out."""

import re

import pytest

from trainer.fields import SpecError
from trainer.stage import Optimizer, cumulative
from trainer.strategies import PAPERS, STRATEGIES, Auto, Budget, LimitedSpeech, Sft

ROWS = {"text": 1000, "speech": 50}


def budget(**changes) -> Budget:
    plain = Budget(32, None, 3.0, Optimizer(peak_lr=5e-6), projector=True, encoder=False)
    return plain._replace(**changes)


def shown(stages, source, batch=32):
    return sum(float(cumulative(s.mix[source], s.steps * batch)[-1]) for s in stages if source in s.mix)


def test_every_strategy_says_its_paper_or_that_it_has_none():
    assert len(PAPERS) == len(STRATEGIES)  # no name stands twice
    assert [paper for paper in PAPERS.values() if not re.fullmatch(r"none: .+|.+ \(arXiv \d{4}\.\d{5}\)", paper)] == []


def test_text_only_freezes_the_audio_side():
    (stage,) = LimitedSpeech(scheme="text_only").stages(ROWS, budget())
    assert stage.mix == {"text": 1.0}
    assert not stage.trainable.projector
    assert stage.steps == 94  # 3 epochs of 1,000 sentences in steps of 32


@pytest.mark.parametrize("times", ["once", "per_epoch", 7.5])
def test_curriculum_and_direct_mixing_show_recordings_equally_often_in_equal_steps(times):
    direct = LimitedSpeech(scheme="direct_mix", speech_presentations=times).stages(ROWS, budget(steps=100))
    late = LimitedSpeech(scheme="curriculum", speech_presentations=times).stages(ROWS, budget(steps=100))
    assert sum(s.steps for s in direct) == sum(s.steps for s in late) == 100
    assert shown(direct, "speech") == pytest.approx(shown(late, "speech"))
    expected = {"once": 50, "per_epoch": 3200 / 21, 7.5: 375}[times]
    assert shown(direct, "speech") == pytest.approx(expected)


def test_the_curriculum_restarts_lower_as_in_the_paper():
    first, last = LimitedSpeech(scheme="curriculum").stages(ROWS, budget(steps=90))
    assert (first.steps, last.steps) == (60, 30)
    assert last.optimizer.peak_lr == pytest.approx(3e-6)
    assert last.optimizer.warmup_ratio == pytest.approx(0.02)
    assert first.mix == {"text": 1.0}
    assert last.trainable.projector


def test_synthetic_speech_can_be_the_abundant_side():
    rows = {"synthetic": 800, "speech": 50}
    (stage,) = LimitedSpeech(scheme="direct_mix").stages(rows, budget(steps=10))
    assert set(stage.mix) == {"synthetic", "speech"}
    (alone,) = LimitedSpeech(scheme="synthetic_only").stages(rows, budget(steps=10))
    assert alone.trainable.projector  # synthetic speech is heard


def test_a_share_of_speech_instead_of_presentations():
    (stage,) = LimitedSpeech(speech_share=0.25).stages(ROWS, budget(steps=10))
    assert stage.mix["speech"] == 0.25


def test_too_many_presentations_name_how_many_fit():
    with pytest.raises(SpecError, match=r"show them at most 21\.1 times, or raise recipe\.late_share"):
        LimitedSpeech(scheme="curriculum", speech_presentations=30).stages(ROWS, budget(steps=100))


def test_speech_only_refuses_two_lengths():
    with pytest.raises(SpecError, match="but steps is 100; keep one of the two"):
        LimitedSpeech(scheme="speech_only", speech_presentations=2).stages(ROWS, budget(steps=100))


def test_auto_uses_all_that_there_is():
    assert Auto().chosen(ROWS) == LimitedSpeech(scheme="direct_mix", speech_presentations="per_epoch")
    assert Auto().chosen({"text": 10}) == Sft()
    with pytest.raises(SpecError, match="no rows to train on"):
        Auto().chosen({})


def test_sft_mixes_in_proportion_to_rows():
    (stage,) = Sft().stages(ROWS, budget())
    assert stage.mix["text"] == pytest.approx(1000 / 1050)


def test_a_neutral_limited_speech_is_sft():
    """Direct mixing that shows recordings as often as sentences is plain fine-tuning, stage for stage."""
    (plain,) = Sft().stages(ROWS, budget())
    (mixed,) = LimitedSpeech(scheme="direct_mix", speech_presentations="per_epoch").stages(ROWS, budget())
    assert mixed.mix == plain.mix
    assert mixed.model_copy(update={"name": "sft", "mix": plain.mix}) == plain
