"""What one utterance contributes: invalid answers, ties, empty sides, normalisers, and sums."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.metrics import METRICS, NORMALISERS, count, default_metrics, named, normalise, score
from trainer.metrics.words import edit_distance
from trainer.spec import Task


def task(answer, **fields):
    return Task(name="t", instruction={"en": "x"}, answer=answer, **fields)


def order(intent, *slots):
    return {"intent": intent, "slots": [{"type": kind, "value": value} for kind, value in slots]}


JSON = task("json", slots={"time": None, "room": None})
LABEL = task("label", labels=["yes", "no", "maybe"])
SET = task("label_set", labels=["yes", "no", "maybe"])
TEXT = task("text")


class TestSlots:
    def test_word_distance_is_not_clamped(self):
        reference, prediction = order("a", ("time", "seven")), order("a", ("time", "at seven pm on monday"))
        assert METRICS["slu_f1"].counts(reference, prediction, JSON)[:3] == [1, 4, 4]

    def test_prediction_takes_the_nearest_of_its_type_and_the_first_at_a_tie(self):
        reference = order("a", ("time", "nine"), ("time", "ten pm"), ("time", "ten am"))
        prediction = order("a", ("time", "ten"), ("time", "ten am"))
        # "ten" is at word distance 1/2 from both, takes "ten pm", and leaves "ten am" for the second.
        assert METRICS["slu_f1"].counts(reference, prediction, JSON)[:3] == [2, 0.5, 1.5]

    def test_case_is_ignored_by_slu_f1_only(self):
        reference, prediction = order("a", ("time", "Monday")), order("a", ("time", "monday"))
        assert METRICS["slu_f1"].counts(reference, prediction, JSON) == [1, 0, 0, 1, 0, 0]
        assert METRICS["entity_f1"].counts(reference, prediction, JSON) == [0, 1, 1]

    def test_invalid_answer(self):
        reference = order("a", ("time", "x"), ("room", "y"))
        assert count(reference, None, JSON) == {
            "slu_f1": [0] * 6,
            "slu_f1_strict": [0, 0, 2, 0, 0, 2],
            "entity_f1": [0, 0, 2],
            "intent_accuracy": [0, 1],
            "exact_match": [0, 1],
            "invalid_rate": [1, 1],
        }

    def test_repeated_pairs_match_one_to_one(self):
        reference = order("a", ("time", "x"), ("time", "x"))
        assert METRICS["entity_f1"].counts(reference, order("a", ("time", "x")), JSON) == [1, 0, 1]
        assert METRICS["exact_match"].counts(reference, order("a", ("time", "x")), JSON) == [0, 1]

    def test_exact_match_ignores_the_order_of_slots_but_not_the_intent(self):
        reference = order("a", ("time", "x"), ("room", "y"))
        match = METRICS["exact_match"].counts
        assert match(reference, order("a", ("room", "y"), ("time", "x")), JSON) == [1, 1]
        assert match(reference, order("b", ("time", "x"), ("room", "y")), JSON) == [0, 1]

    def test_slots_without_intents(self):
        rows = [{"counts": count(order(None, ("time", "x")), order(None, ("time", "x")), JSON)}]
        assert score(rows)["entity_f1"] == 1
        assert "intent_accuracy" not in score(rows)


class TestLabels:
    def test_counts_per_label(self):
        assert METRICS["macro_f1"].counts("yes", "no", LABEL) == [0, 0, 0, 0, 1, 0, 1, 0, 0]
        assert METRICS["macro_f1"].counts(["yes", "no"], ["no"], SET) == [0, 1, 0, 0, 0, 0, 1, 0, 0]

    def test_macro_f1_leaves_out_labels_that_do_not_occur(self):
        counts = np.sum([METRICS["macro_f1"].counts(r, r, LABEL) for r in ("yes", "no")], axis=0)
        assert METRICS["macro_f1"].value(counts) == 1

    def test_invalid_answer_is_a_miss_without_false_alarm(self):
        assert METRICS["micro_f1"].counts("yes", None, LABEL) == [0, 0, 0, 0, 0, 0, 1, 0, 0]
        assert METRICS["accuracy"].counts("yes", None, LABEL) == [0, 1]

    def test_reference_outside_the_labels_is_refused(self):
        with pytest.raises(ValueError, match="'perhaps'"):
            METRICS["macro_f1"].counts("perhaps", "yes", LABEL)

    def test_exact_match_of_sets_ignores_order(self):
        assert METRICS["exact_match"].counts(["yes", "no"], ["no", "yes"], SET) == [1, 1]
        assert METRICS["exact_match"].counts(["yes", "no"], ["no"], SET) == [0, 1]


class TestWords:
    @given(st.text("ab", max_size=6), st.text("ab", max_size=6))
    def test_edit_distance_is_a_metric_within_its_bounds(self, a, b):
        d = edit_distance(a, b)
        assert abs(len(a) - len(b)) <= d <= max(len(a), len(b))
        assert (d == 0) == (a == b)
        assert d == edit_distance(b, a) == edit_distance(a[::-1], b[::-1])

    @given(st.text("ab", max_size=5), st.text("ab", max_size=5))
    def test_edit_distance_equals_the_recursive_definition(self, a, b):
        def define(i, j):
            if i == 0 or j == 0:
                return i + j
            return min(define(i - 1, j) + 1, define(i, j - 1) + 1, define(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

        assert edit_distance(a, b) == define(len(a), len(b))

    def test_corpus_wer_is_not_the_mean_of_utterances(self):
        pairs = [("a", "b"), ("a b c d", "a b c d")]
        for name, expected in (("wer", 1 / 5), ("wer_utterance_mean", 1 / 2)):
            counts = np.sum([METRICS[name].counts(r, p, TEXT) for r, p in pairs], axis=0)
            assert METRICS[name].value(counts) == pytest.approx(expected)

    def test_empty_sides(self):
        assert METRICS["wer"].counts("a b", None, TEXT) == [2, 2]
        assert METRICS["wer"].counts("", "a b", TEXT) == [2, 0]
        assert METRICS["wer"].value([0, 0]) == 0

    def test_wer_depends_on_the_named_normaliser(self):
        reference, hypothesis = "Turn it on, please!", "turn it on please"
        assert METRICS["wer"].counts(reference, hypothesis, TEXT)[0] == 0
        assert METRICS["wer"].counts(reference, hypothesis, task("text", normaliser="raw"))[0] == 3


class TestNormalisers:
    @pytest.mark.parametrize(
        ("name", "text", "expected"),
        [
            ("raw", "  A\tb\n c ", "A b c"),
            ("basic", "Don’t STOP—ever, it's 7-up & 5 €!", "dont stop ever its 7 up 5"),
            ("basic", "ﬁne ＡＢＣ", "fine abc"),
            ("basic", "اليَوْمَ، كـــتاب؟", "اليَوْمَ كتاب"),
            ("basic", "na\u200bive", "naive"),
            ("basic", "İstanbul", "i\u0307stanbul"),
            ("arabic", "أَحْمَد إلى الآن", "احمد الي الان"),
            ("basic_characters", "今天天气 very 好。", "今 天 天 气 very 好"),
            ("basic_characters", "ที่นี่", "ที่ นี่"),
        ],
    )
    def test_examples(self, name, text, expected):
        assert normalise(text, name) == expected

    @pytest.mark.parametrize("name", NORMALISERS)
    @given(text=st.text(max_size=30))
    def test_twice_is_once(self, name, text):
        once = normalise(text, name)
        assert normalise(once, name) == once
        assert once == once.strip()
        assert "  " not in once

    def test_unknown_name_lists_the_known(self):
        with pytest.raises(ValueError, match="'whisper' is unknown; known: raw, basic"):
            normalise("x", "whisper")


class TestTable:
    def test_defaults_can_be_counted_and_summed(self):
        for made, reference in ((JSON, order("a", ("time", "x"))), (LABEL, "yes"), (SET, ["no"]), (TEXT, "a b")):
            names = default_metrics(made)
            rows = [{"counts": count(reference, prediction, made)} for prediction in (reference, None)]
            values = score(rows)
            assert list(values) == names
            for name in names:
                best = METRICS[name].value(METRICS[name].counts(reference, reference, made))
                assert best == (1 if METRICS[name].higher_is_better else 0)

    def test_values_of_stacked_counts_are_the_values_one_by_one(self):
        # compare.py evaluates thousands of resampled sums in one call
        rng = np.random.default_rng(0)
        widths = {"macro_f1": 9, "micro_f1": 9, "slu_f1": 6, "slu_f1_strict": 6, "entity_f1": 3}
        for name, metric in METRICS.items():
            stacked = rng.integers(0, 5, (20, widths.get(name, 2))).astype(float)
            np.testing.assert_array_equal(metric.values(stacked), [metric.value(row) for row in stacked])

    def test_metric_that_does_not_fit_the_answer_is_refused(self):
        with pytest.raises(ValueError, match="'wer' is not defined for answer 'label'"):
            count("yes", "yes", task("label", labels=["yes"], metrics=["wer"]))
        with pytest.raises(ValueError, match="'f1' is unknown"):
            named("f1")

    def test_pooling_equals_scoring_the_whole(self):
        references, predictions = ["yes", "no", "no", "maybe"], ["yes", "yes", "no", None]
        rows = [{"counts": count(r, p, LABEL)} for r, p in zip(references, predictions, strict=True)]
        assert all(score(list(shuffled)) == score(rows) for shuffled in itertools.permutations(rows))
        assert score(rows) == {
            "accuracy": 0.5,
            "macro_f1": pytest.approx((2 / 3 + 2 / 3 + 0) / 3),
            "invalid_rate": 0.25,
        }
