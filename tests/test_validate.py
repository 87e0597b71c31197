"""The validation pass: every documented problem is found, on its line, with a remedy."""

import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from trainer.manifest import Utterance
from trainer.spec import Task
from trainer.validate import validate, validate_dataset

LABELS = Task(name="t", instruction={"en": "Which?"}, answer="label", labels=["yes", "no"])
SLOTS = Task(
    name="t",
    instruction={"en": "Slots?"},
    answer="json",
    intents=["order"],
    slots={"size": ["small", "large"], "drink": None},
)
ASR = Task(name="t", instruction={"en": "Transcribe."}, answer="text")


def text_row(n, **change):
    return Utterance(**{"id": f"u{n}", "task": "t", "language": "en", "split": "train", "text": f"row {n}", **change})


def noise(seconds, seed=0, level=0.1):
    return np.random.default_rng(seed).normal(0, level, round(seconds * 16_000)).clip(-0.9, 0.9).astype(np.float32)


@pytest.fixture
def clip(tmp_path):
    def write(name, wave):
        soundfile.write(tmp_path / name, wave, 16_000, subtype="FLOAT")
        return str(tmp_path / name)

    return write


def spoken(n, path, **change):
    return text_row(n, audio=path, speaker=f"s{n}", **change)


def found(report):
    return [(issue.line, issue.code) for issue in report.issues]


class TestText:
    def test_a_sound_data_set_has_no_issues(self):
        report = validate([text_row(n, label="yes") for n in range(3)], LABELS)
        assert report.ok
        assert (report.rows, report.issues, report.by_split) == (3, [], {"train": 3})

    def test_empty_text_and_duplicate_id(self):
        report = validate([text_row(1), text_row(1, text=" \t"), text_row(2)], lines=[4, 7, 9])
        assert found(report) == [(7, "empty_text"), (7, "duplicate_id")]
        assert "line 4" in report.issues[1].remedy
        assert not report.ok

    @pytest.mark.parametrize(
        ("task", "label", "codes"),
        [
            (LABELS, "yes", []),
            (LABELS, "yess", ["label_outside"]),
            (LABELS, None, ["no_label"]),
            (LABELS, ["yes"], ["label_form"]),
            (LABELS.model_copy(update={"answer": "label_set"}), ["yes", "no"], []),
            (LABELS.model_copy(update={"answer": "label_set"}), ["yes", "maybe"], ["label_outside"]),
            (LABELS.model_copy(update={"answer": "label_set"}), "yes", ["label_form"]),
            (SLOTS, {"intent": "order", "slots": [{"type": "size", "value": "small"}]}, []),
            (SLOTS, {"intent": "order", "slots": [{"type": "drink", "value": "anything"}]}, []),
            (SLOTS, {"intent": "order"}, []),
            (SLOTS, {"intent": "cancel", "slots": []}, ["label_outside"]),
            (SLOTS, {"intent": None, "slots": []}, ["label_form"]),
            (SLOTS, {"intent": "order", "slots": [{"type": "sise", "value": "small"}]}, ["label_outside"]),
            (SLOTS, {"intent": "order", "slots": [{"type": "size", "value": "huge"}]}, ["label_outside"]),
            (SLOTS, "order", ["label_form"]),
            (ASR, None, []),
            ({"other": ASR}, "x", ["unknown_task"]),
            ({"t": LABELS}, "x", ["label_outside"]),
        ],
    )
    def test_labels(self, task, label, codes):
        report = validate([text_row(1, label=label)], task)
        assert [code for _, code in found(report)] == codes
        assert report.errors == len(codes)

    def test_the_near_name_is_offered(self):
        (issue,) = validate([text_row(1, label="yess")], LABELS).issues
        assert str(issue) == "line 1 (u1): error: label_outside: label 'yess'; did you mean 'yes'?"

    def test_no_transcript_where_it_is_the_answer(self, clip):
        rows = [spoken(1, clip("a.wav", noise(1)), text=None)]
        assert found(validate(rows, ASR)) == [(1, "no_label")]


class TestRecordings:
    def test_facts_are_summed(self, clip):
        quiet = np.zeros(16_000, np.float32)
        rows = [
            spoken(1, clip("a.wav", noise(1))),
            spoken(2, clip("b.wav", np.concatenate([noise(1, 1), quiet, quiet]))),
        ]
        report = validate(rows, workers=2)
        assert found(report) == []
        assert (report.recordings, report.speakers) == (2, 2)
        assert report.seconds == pytest.approx(4.0)
        assert report.silence_share == pytest.approx(0.5, abs=0.01)
        json.dumps(report.to_json())

    def test_each_fault_on_its_line(self, clip, tmp_path):
        (tmp_path / "text.wav").write_text("no sound")
        rows = [
            spoken(1, str(tmp_path / "absent.wav")),
            spoken(2, str(tmp_path / "text.wav")),
            spoken(3, clip("empty.wav", noise(0))),
            spoken(4, clip("short.wav", noise(2, 4)), offset_s=2.5),
            spoken(5, clip("long.wav", noise(2, 5)), duration_s=2.3),
            spoken(6, clip("cut.wav", noise(2, 6)), duration_s=1.5),
            spoken(7, clip("silent.wav", np.zeros(16_000, np.float32))),
            spoken(8, clip("mostly.wav", np.concatenate([noise(0.5), np.zeros(16_000 * 9, np.float32)]))),
            spoken(9, clip("clipped.wav", noise(1, 9, level=5).round() * 2)),
            spoken(10, clip("tick.wav", noise(0.05))),
            spoken(11, clip("fine.wav", noise(2, 11)), duration_s=1.95),
        ]
        report = validate(rows)
        assert found(report) == [
            (1, "audio_missing"),
            (2, "audio_unreadable"),
            (3, "audio_empty"),
            (4, "audio_offset"),
            (5, "wrong_duration"),
            (6, "part_of_recording"),
            (7, "silent"),
            (8, "mostly_silent"),
            (9, "clipping"),
            (10, "too_short"),
        ]
        assert (report.errors, report.warnings) == (6, 4)
        assert all(issue.remedy for issue in report.issues)

    def test_pieces_of_one_recording_may_be_shorter_than_it(self, clip):
        path = clip("long.wav", noise(3))
        rows = [spoken(1, path, duration_s=1.0), spoken(2, path, offset_s=1.0, duration_s=1.0)]
        assert found(validate(rows)) == []
        assert validate(rows).seconds == pytest.approx(2.0)

    def test_not_listening_still_checks_the_texts(self, tmp_path):
        report = validate([spoken(1, str(tmp_path / "absent.wav"), text="")], listen=False)
        assert found(report) == [(1, "empty_text")]

    def test_progress_is_told_after_each_row(self):
        calls = []
        validate([text_row(n) for n in range(3)], progress=lambda done, total: calls.append((done, total)))
        assert calls == [(1, 3), (2, 3), (3, 3)]


class TestLeaks:
    def test_the_same_samples_in_two_splits_though_renamed(self, clip):
        train, test = spoken(1, clip("a.wav", noise(1))), spoken(2, clip("b.wav", noise(1)), split="test")
        inside = validate([train, test])
        assert [(i.line, i.code, i.severity) for i in inside.issues] == [(2, "same_audio_in_splits", "error")]
        beside = validate([train], other_splits={"test": [test]})
        assert found(beside) == [(1, "same_audio_in_splits")]

    def test_the_same_samples_twice_in_one_split(self, clip):
        rows = [spoken(1, clip("a.wav", noise(1))), spoken(2, clip("b.wav", noise(1)))]
        assert [(i.code, i.severity) for i in validate(rows).issues] == [("same_audio_twice", "warning")]

    def test_the_same_sentence_in_train_and_test(self):
        test = [text_row(n, split="test") for n in range(10, 13)]
        leak = text_row(20, split="test", text="ROW  1")
        report = validate([text_row(1), *test, leak])
        assert found(report) == [(5, "same_text_in_splits")]
        beside = validate([text_row(1), text_row(2), text_row(3)], other_splits={"test": [*test, leak]})
        assert found(beside) == [(1, "same_text_in_splits")]

    def test_another_language_is_another_text(self):
        test = [text_row(2, split="test", text="row 1", language="de")]
        assert found(validate([text_row(1), *test])) == []

    def test_a_closed_set_of_commands_gets_one_note(self):
        rows = [text_row(n, text="stop", split="train" if n < 5 else "test") for n in range(10)]
        issues = validate(rows).issues
        assert [(i.code, i.severity, i.line, i.value) for i in issues] == [
            ("closed_texts", "note", None, 5),
            ("repeated_texts", "note", None, 8),
        ]

    @pytest.mark.parametrize("near", ["Row 1!", "row-1", "«ROW» 1 …", "row １"])
    def test_a_text_source_that_nearly_says_a_test_sentence(self, near):
        test = [text_row(n, split="test") for n in range(1, 4)]
        source = [text_row(9, text=near), text_row(10), text_row(11)]
        report = validate(source, other_splits={"test": test})
        (issue,) = report.issues
        assert (issue.line, issue.code, issue.severity, issue.value) == (1, "near_text_in_splits", "warning", near)
        assert "'row 1' (u1 in test)" in issue.remedy

    def test_a_source_is_checked_whatever_its_rows_call_their_split(self):
        rows = [text_row(n, split="dev") for n in range(1, 5)]
        test = [text_row(n, split="train") for n in range(4, 9)]
        assert found(validate(rows, other_splits={"test": test})) == [(4, "same_text_in_splits")]

    def test_punctuation_alone_is_not_the_same_as_nothing(self):
        rows = [text_row(1, text="…"), text_row(2, text="?!", split="test"), text_row(3, split="test")]
        assert found(validate(rows)) == []

    def test_sentences_that_stand_twice(self):
        rows = [text_row(n) for n in range(6)] + [text_row(9, text="Row 1"), text_row(10, text="row 2", label="b")]
        issues = validate(rows).issues
        assert [(i.line, i.code, i.severity) for i in issues] == [
            (7, "same_text_twice", "warning"),
            (8, "labels_disagree", "warning"),
        ]
        assert "on line 2" in issues[0].remedy
        assert "None on line 3" in issues[1].remedy

    def test_labels_that_are_tested_and_never_trained_on(self):
        rows = [text_row(n, label="yes") for n in range(4)]
        rows += [text_row(n, label=label, split="test") for n, label in enumerate(["yes", "no"], 5)]
        report = validate(rows, LABELS)
        assert [(i.code, i.value) for i in report.issues] == [("label_untrained", "no")]
        assert report.labels == {"yes": 5, "no": 1}

    def test_speakers(self, clip):
        rows = [
            spoken(1, clip("a.wav", noise(1, 1))),
            Utterance("u2", "t", "en", "test", "x", audio=clip("b.wav", noise(1, 2)), speaker="s1"),
            Utterance("u3", "t", "en", "test", "y", audio=clip("c.wav", noise(1, 3))),
        ]
        issues = validate(rows).issues
        assert {(i.code, i.severity, i.value) for i in issues} == {
            ("speaker_in_splits", "warning", "s1"),
            ("no_speaker", "note", 1),
        }

    def test_a_speaker_of_dev_and_test(self, clip):
        rows = [spoken(n, clip(f"{n}.wav", noise(1, n)), split=s) for n, s in ((1, "dev"), (2, "test"), (3, "train"))]
        rows = [replace(rows[0], speaker="x"), replace(rows[1], speaker="x"), rows[2]]
        (issue,) = validate(rows).issues
        assert (issue.code, issue.severity, issue.value) == ("speaker_in_dev_and_test", "note", 1)


class TestFacts:
    def test_durations_clipping_and_rates(self, clip, tmp_path):
        telephone = np.random.default_rng(7).normal(0, 0.1, 8000).astype(np.float32)
        soundfile.write(tmp_path / "telephone.wav", telephone, 8000, subtype="FLOAT")
        clipped = np.concatenate([noise(1), np.ones(160, np.float32)])
        rows = [
            spoken(1, clip("a.wav", noise(2, 1))),
            spoken(2, clip("b.wav", clipped)),
            spoken(3, str(tmp_path / "telephone.wav"), split="test"),
        ]
        report = validate(rows)
        assert report.durations == {"min": 1.0, "median": 1.01, "p95": 1.901, "max": 2.0}
        assert report.rates == {8000: 1, 16000: 2}
        assert report.clipping_share == pytest.approx(160 / (4.01 * 16000))
        assert [(i.code, i.severity, i.value) for i in report.issues if i.line is None] == [
            ("low_rate", "note", 1),
            ("rates_differ", "warning", "test 8000 Hz, train 16000 Hz"),
        ]
        json.dumps(report.to_json())

    def test_letters_and_labels_those_without_rows_too(self):
        rows = [text_row(1, label="yes"), text_row(2, label="yes", text="да", language="ru")]
        report = validate(rows, LABELS)
        assert report.scripts == {"LATIN": 3, "CYRILLIC": 2}
        assert report.labels == {"yes": 2, "no": 0}

    def test_intents_and_sets_of_labels_are_counted(self):
        slots = validate([text_row(1, label={"intent": "order", "slots": []})], SLOTS)
        assert slots.labels == {"order": 1}
        both = LABELS.model_copy(update={"answer": "label_set"})
        assert validate([text_row(1, label=["yes", "no"])], {"t": both}).labels == {"yes": 1, "no": 1}
        assert validate([text_row(1, label="free words")], ASR).labels == {}

    def test_odd_characters_are_said_on_their_line(self):
        rows = [text_row(1), text_row(2, text="tab\there"), text_row(3, text="включи свет")]
        assert found(validate(rows)) == [(2, "control_character"), (3, "other_script")]


def test_counts_are_whole_where_the_list_is_cut():
    report = validate([text_row(n, text="") for n in range(50)], limit=10)
    assert (report.errors, report.counts, len(report.issues)) == (50, {"empty_text": 50}, 10)


def test_a_data_set_on_disk_with_broken_lines(tmp_path, clip):
    clip("a.wav", noise(1))
    good = {"id": "a", "task": "t", "language": "en", "split": "train", "text": "a", "audio": "a.wav", "speaker": "x"}
    (tmp_path / "train.jsonl").write_text(json.dumps(good) + "\n{broken\n")
    (tmp_path / "test.jsonl").write_text(json.dumps({**good, "id": "b", "text": "b", "split": "test"}) + "\n")
    report = validate_dataset(str(tmp_path))
    assert [(i.line, i.code) for i in report.issues if i.line] == [(2, "bad_row"), (3, "same_audio_in_splits")]
    assert "train.jsonl:2" in report.issues[1].remedy
    assert (report.rows, report.errors) == (3, 2)
