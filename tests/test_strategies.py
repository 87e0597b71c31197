"""Strategies as lists of stages: equal steps, equal presentations, and refusals that name the way out."""

import re

import pytest

from trainer.fields import SpecError
from trainer.schedule import lr_scale
from trainer.stage import Optimizer, Ramp, Trainable, cumulative
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


def rates(stages):
    return [s.optimizer.peak_lr * lr_scale(t, s.steps, s.optimizer) for s in stages for t in range(s.steps)]


@pytest.mark.parametrize("scheme", ["text_only", "direct_mix", "curriculum"])
def test_order_and_restart_are_changed_one_at_a_time(scheme):
    """Under `on` every scheme has the curriculum's rates, under `off` those of direct mixing; nothing else changes."""
    given = {} if scheme == "text_only" else {"speech_presentations": 4}
    on, off = (LimitedSpeech(scheme=scheme, restart=r, **given).stages(ROWS, budget(steps=90)) for r in ("on", "off"))
    assert [s.steps for s in on] == [60, 30]
    assert (on[0].optimizer.peak_lr, on[1].optimizer.peak_lr) == pytest.approx((5e-6, 3e-6))
    assert rates(on) == pytest.approx(rates(LimitedSpeech(scheme="curriculum").stages(ROWS, budget(steps=90))))
    assert rates(off) == pytest.approx(rates(LimitedSpeech(scheme="direct_mix").stages(ROWS, budget(steps=90))))
    assert shown(on, "speech") == pytest.approx(shown(off, "speech")) == (0 if scheme == "text_only" else 200)
    plain = {"text_only": ["text", "text"], "direct_mix": ["mixed", "mixed"], "curriculum": ["text", "mixed"]}[scheme]
    assert [s.name for s in on] == [f"{plain[0]}_first", f"{plain[1]}_last"]
    assert set(on[0].mix) == {"text", *(["speech"] if scheme == "direct_mix" else [])}
    default = LimitedSpeech(scheme=scheme, **given).stages(ROWS, budget(steps=90))
    assert default == (on if scheme == "curriculum" else off)


def test_a_stored_recipe_is_read_back():
    """What is stored says every field, also those that nobody has said."""
    recipe = LimitedSpeech(scheme="curriculum", restart="off")
    assert LimitedSpeech.model_validate(recipe.model_dump(mode="json")) == recipe


def test_one_schedule_knows_no_other_ratios():
    with pytest.raises(ValueError, match="leave late_lr_ratio and late_warmup_ratio out"):
        LimitedSpeech(scheme="curriculum", restart="off", late_lr_ratio=0.5, late_warmup_ratio=0.4)
    with pytest.raises(SpecError, match="a restart of the learning rate needs at least 2 steps"):
        LimitedSpeech(scheme="text_only", restart="on").stages(ROWS, budget(steps=1))


def test_what_learns_in_the_mixed_steps_is_a_knob():
    everything = budget(steps=9, encoder=True)
    first, last = LimitedSpeech(scheme="curriculum").stages(ROWS, everything)
    assert first.trainable == Trainable(lm=True)
    assert last.trainable == Trainable(lm=True, projector=True, encoder=True)
    for parts in (["lm"], ["projector", "encoder"]):
        first, last = LimitedSpeech(scheme="curriculum", trains=parts).stages(ROWS, everything)
        assert first.trainable == Trainable(lm=True)
        assert {part for part, on in last.trainable if on} == set(parts)
    (stage,) = LimitedSpeech(trains=["lm", "encoder"]).stages(ROWS, budget(steps=9))
    assert stage.trainable == Trainable(lm=True)  # tuning keeps the encoder frozen


def test_recordings_of_which_none_may_be_used_leave_the_text():
    none = {"text": 1000, "speech": 0}
    (alone,) = LimitedSpeech(scheme="text_only").stages(ROWS, budget())
    assert LimitedSpeech(scheme="direct_mix").stages(none, budget()) == [alone]
    late = LimitedSpeech(scheme="curriculum").stages(none, budget())
    assert late == LimitedSpeech(scheme="text_only", restart="on").stages(ROWS, budget())
    with pytest.raises(SpecError, match=r"needs the source 'speech'; give data\.speech or data\.corpus"):
        LimitedSpeech(scheme="direct_mix").stages({"text": 1000}, budget())
    with pytest.raises(SpecError, match="needs the source 'speech'"):
        LimitedSpeech(scheme="speech_only").stages(none, budget())


ACROSS = {"text": 115, "speech": 115, "extra_text": 885, "source_text": 1000, "source_speech": 100}


def test_across_languages_all_rows_of_a_side_are_shown_equally_often():
    (alone,) = LimitedSpeech(scheme="text_only").stages(ACROSS, budget())
    assert alone.mix == pytest.approx({"text": 0.0575, "extra_text": 0.4425, "source_text": 0.5})
    assert alone.trainable == Trainable(lm=True)
    for scheme in ("direct_mix", "curriculum"):
        stages = LimitedSpeech(scheme=scheme, speech_presentations=2).stages(ACROSS, budget(steps=200))
        assert {s: shown(stages, s) for s in ("speech", "source_speech")} == pytest.approx(
            {"speech": 230, "source_speech": 200}
        )
        read = {s: shown(stages, s) / ACROSS[s] for s in ("text", "extra_text", "source_text")}
        assert len({round(times, 9) for times in read.values()}) == 1
    (spoken,) = LimitedSpeech(scheme="speech_only").stages({**ACROSS, "speech": 0}, budget())
    assert spoken.mix == {"source_speech": 1.0}
    (plain,) = Sft().stages(ACROSS, budget())
    (mixed,) = LimitedSpeech(speech_presentations="per_epoch").stages(ACROSS, budget())
    assert {s: plain.mix[s] for s in ACROSS} == pytest.approx(mixed.mix)
    assert Auto().chosen({"source_text": 10, "source_speech": 2}).name == "limited_speech"


def test_a_share_of_speech_may_be_a_curve():
    ramp = Ramp(kind="linear", start=0, end=0.5)
    (stage,) = LimitedSpeech(speech_share=ramp).stages(ROWS, budget())
    assert stage.steps == 125  # 3 passes over 1,000 sentences, which are three quarters
    assert stage.mix["speech"] == ramp
    assert shown([stage], "text") == pytest.approx(3000)
    _, last = LimitedSpeech(scheme="curriculum", speech_share=ramp).stages(ROWS, budget(steps=90))
    assert shown([last], "speech") == pytest.approx(0.25 * 30 * 32)
    with pytest.raises(SpecError, match="for one source of recordings beside one other"):
        LimitedSpeech(speech_share=ramp).stages(ACROSS, budget())
