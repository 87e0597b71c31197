"""What one utterance contributes: invalid answers, ties, empty sides, normalisers, and sums."""

import itertools
import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.metrics import METRICS, NORMALISERS, count, default_metrics, named, normalise, score
from trainer.metrics.normalise import apart
from trainer.metrics.summaries import tokens
from trainer.metrics.words import edit_distance
from trainer.spec import Task


def task(answer, **fields):
    return Task(name="t", instruction={"en": "x"}, answer=answer, **fields)


def order(intent, *slots):
    return {"intent": intent, "slots": [{"type": kind, "value": value} for kind, value in slots]}


def value_of(name, pairs, made):
    """The corpus value of a metric."""
    return METRICS[name].value(np.sum([METRICS[name].counts(r, p, made) for r, p in pairs], axis=0))


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
            "entity_f1_answered": [0, 0, 0],
            "intent_accuracy": [0, 1],
            "intent_accuracy_answered": [0, 0],
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


class TestNamedEntities:
    TASK = task("json", slots={"GPE": None, "DATE": None, "FAC": None, "WHEN": None})

    def test_raw_and_combined_tags_are_one_set(self):
        reference, prediction = order(None, ("DATE", "today"), ("GPE", "eu")), order(None, ("WHEN", "today"))
        assert METRICS["slue_ner_f1"].counts(reference, prediction, self.TASK) == [1, 0, 1]

    def test_tags_that_are_not_scored_count_on_neither_side(self):
        reference, prediction = order(None, ("FAC", "the bridge")), order(None, ("FAC", "the dam"))
        assert METRICS["slue_ner_f1"].counts(reference, prediction, self.TASK) == [0, 0, 0]

    def test_label_f1_ignores_phrases_but_counts_them(self):
        reference, prediction = order(None, ("GPE", "eu"), ("GPE", "rome")), order(None, ("LOC", "paris"))
        assert METRICS["slue_ner_label_f1"].counts(reference, prediction, self.TASK) == [1, 0, 1]

    def test_other_tags_are_refused(self):
        with pytest.raises(ValueError, match="not 'time'; for other tags use entity_f1"):
            METRICS["slue_ner_f1"].counts(order(None, ("time", "x")), None, self.TASK)


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

    @settings(deadline=None, max_examples=50)
    @given(st.lists(st.tuples(st.sampled_from(["yes", "no"]), st.sampled_from(["yes", "no", None])), min_size=1))
    def test_single_labels_equal_scikit_learn(self, pairs):
        from sklearn.metrics import f1_score, recall_score

        truth, given = zip(*[(r, p or "invalid") for r, p in pairs], strict=True)
        occurring = sorted(({*truth} | {*given}) - {"invalid"})
        for name, average in (("macro_f1", "macro"), ("micro_f1", "micro"), ("weighted_f1", "weighted")):
            theirs = f1_score(truth, given, labels=occurring, average=average, zero_division=0)
            assert value_of(name, pairs, LABEL) == pytest.approx(theirs, rel=1e-12)
        recall = recall_score(truth, given, labels=sorted({*truth}), average="macro", zero_division=0)
        assert value_of("unweighted_accuracy", pairs, LABEL) == pytest.approx(recall, rel=1e-12)

    @settings(deadline=None, max_examples=50)
    @given(st.lists(st.tuples(*[st.sets(st.sampled_from(["yes", "no"]))] * 2), min_size=1))
    def test_label_sets_equal_scikit_learn(self, pairs):
        from sklearn.metrics import f1_score

        truth, given = (np.array([[n in pair[k] for n in SET.labels] for pair in pairs]) for k in (0, 1))
        averages = {"macro_f1_all_labels": "macro", "micro_f1": "micro", "weighted_f1": "weighted"}
        for name, average in averages.items():
            theirs = f1_score(truth, given, average=average, zero_division=0)
            assert value_of(name, pairs, SET) == pytest.approx(theirs, rel=1e-12)

    def test_macro_f1_of_all_labels_counts_one_that_never_occurs_as_0(self):
        pairs = [("yes", "yes"), ("no", "no")]
        assert value_of("macro_f1", pairs, LABEL) == 1
        assert value_of("macro_f1_all_labels", pairs, LABEL) == pytest.approx(2 / 3)

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

    @settings(deadline=None, max_examples=50)
    @given(st.lists(st.tuples(st.text("ab 今天ที่", max_size=8), st.text("ab 今天ที่", max_size=8)), min_size=1))
    def test_mixed_error_rate_is_jiwers_wer_of_separated_characters(self, pairs):
        import jiwer

        truth, given = ([apart(pair[k]) for pair in pairs] for k in (0, 1))
        if any(truth):
            raw = task("text", normaliser="raw")
            assert value_of("mer", pairs, raw) == pytest.approx(jiwer.wer(truth, given), rel=1e-12)

    def test_mixed_error_rate_counts_words_and_characters(self):
        assert METRICS["mer"].counts("今天 very 好", "今天 vary", TEXT) == [2, 4]

    def test_the_raw_rate_is_recorded_beside_the_named_normaliser(self):
        counts = count("Turn it on, please!", "turn it on please", TEXT)
        assert counts == {"wer": [0, 4], "wer_raw": [3, 4], "cer": [0, 17], "cer_raw": [3, 19]}


class TestTranslationsAndSummaries:
    def test_statistics_add_up_to_the_corpus_score(self):
        from sacrebleu.metrics import BLEU, CHRF

        refs = ["the cat sat on the mat .", "hello there , world of cats", "a b"]
        hyps = ["the cat sat on a mat .", "hello world of the cats", "completely different"]
        pairs = list(zip(refs, hyps, strict=True))
        assert 100 * value_of("bleu", pairs, TEXT) == pytest.approx(BLEU().corpus_score(hyps, [refs]).score)
        assert 100 * value_of("chrf", pairs, TEXT) == pytest.approx(CHRF().corpus_score(hyps, [refs]).score)

    @pytest.mark.parametrize("name", ["bleu", "bleu_zh", "bleu_character", "chrf", "rouge1", "rouge2", "rouge_l"])
    def test_empty_sides(self, name):
        for sides in (("", ""), ("", "a b c d"), ("a b c d", "")):
            assert METRICS[name].value(METRICS[name].counts(*sides, TEXT)) == 0
        assert METRICS[name].counts("a b c d", None, TEXT) == METRICS[name].counts("a b c d", "", TEXT)

    @pytest.mark.parametrize("text", ["القهوة من فضلك", "今天天气很好", "साढ़े सात बजे", "ขอกาแฟหน่อย"])
    def test_rouge_sees_every_script(self, text):
        assert METRICS["rouge1"].counts(text, text, TEXT) == METRICS["rouge_l"].counts(text, text, TEXT) == [1, 1]
        assert METRICS["rouge2"].counts(text, text[: len(text) // 2], TEXT)[0] < 1

    def test_marks_do_not_cut_words(self):
        assert tokens("साढ़े يَوْم ที่นี่ 今天 don't_stop") == ["साढ़े", "يَوْم", "ที่", "นี่", "今", "天", "don", "t", "stop"]

    @pytest.mark.parametrize(
        ("sides", "exact", "f1"),
        [
            (("The Cat!", "a cat"), 1, 1),
            (("the", ""), 1, 1),
            (("cat", None), 0, 0),
            (("", "cat"), 0, 0),
            (("big cat", "cat"), 0, 2 / 3),
        ],
    )
    def test_question_answering(self, sides, exact, f1):
        asked = task("text", metrics=["qa_f1"])
        assert count(*sides, asked) == {"qa_f1": [pytest.approx(f1), 1], "qa_exact_match": [exact, 1]}

    def test_several_right_answers(self):
        asked = task("text", metrics=["qa_f1", "exact_match"])
        counts = count(["in Rome", "Rome, Italy"], "rome italy", asked)
        assert counts == {"qa_f1": [1, 1], "exact_match": [1, 1], "qa_exact_match": [1, 1]}
        for name in ("wer", "mer", "bleu", "chrf", "rouge1", "rouge_l"):
            with pytest.raises(ValueError, match="needs one text as reference"):
                count(["in Rome", "Rome"], "rome", task("text", metrics=[name]))


class TestCalibration:
    TASK = task("label", labels=["yes", "no"], metrics=["ece"])

    def test_is_the_weighted_gap_between_confidence_and_accuracy(self):
        answers = [(0.95, "yes"), (0.95, "no"), (0.95, "yes"), (0.55, "no")]
        rows = [{"counts": count("yes", given, self.TASK, confidence=p)} for p, given in answers]
        assert score(rows) == {"ece": pytest.approx((3 * abs(0.95 - 2 / 3) + 0.55) / 4)}

    def test_right_as_often_as_it_says_is_0(self):
        rows = [{"counts": count("yes", "yes" if k < 4 else "no", self.TASK, confidence=0.8)} for k in range(5)]
        assert score(rows)["ece"] == pytest.approx(0)

    @pytest.mark.parametrize(("confidence", "at"), [(0, 0), (1 / 15, 0), (0.07, 1), (1, 14)])
    def test_bins_are_closed_above(self, confidence, at):
        assert count("yes", "yes", self.TASK, confidence=confidence)["ece"].index(1) == at

    def test_generated_answers_have_no_confidence(self):
        with pytest.raises(ValueError, match="ece needs the probability of each answer"):
            count("yes", "yes", self.TASK)
        with pytest.raises(ValueError, match="between 0 and 1, got 2"):
            count("yes", "yes", self.TASK, confidence=2)


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
            ("whisper_english", "Um, Mr. Grey didn't pay twenty-one dollars!", "mister gray did not pay $21"),
            ("whisper_basic", "Café [noise] (laughs) isn't it?", "café isn t it"),
        ],
    )
    def test_examples(self, name, text, expected):
        assert normalise(text, name) == expected

    def test_whispers_are_those_of_transformers(self):
        import whisper_normalizer
        from transformers.models.whisper import english_normalizer as theirs

        spelling = Path(whisper_normalizer.__file__).parent / "normalizers" / "english.json"
        english = theirs.EnglishTextNormalizer(json.loads(spelling.read_text()))
        basic = theirs.BasicTextNormalizer()
        said = [
            "It's 7:30, Dr. Müller's colour (red) costs £5 million and 20 pence.",
            "He'd been there two double oh seven",
            "uh, I'm gonna see the 2nd of one hundred and five [music] theatres",
            "साढ़े सात बजे!",
            "السَّاعَة",
            "",
        ]
        for text in said:
            assert normalise(text, "whisper_english") == english(text)
            assert normalise(text, "whisper_basic") == " ".join(basic(text).split())

    @pytest.mark.parametrize("name", ["raw", "basic", "arabic", "basic_characters"])
    @given(text=st.text(max_size=30))
    def test_twice_is_once(self, name, text):
        once = normalise(text, name)
        assert normalise(once, name) == once
        assert once == once.strip()
        assert "  " not in once

    def test_a_task_may_name_each(self):
        assert set(get_args(Task.model_fields["normaliser"].annotation)) == set(NORMALISERS)

    def test_unknown_name_lists_the_known(self):
        with pytest.raises(ValueError, match="'whisper' is unknown; known: raw, basic"):
            normalise("x", "whisper")


class TestTable:
    def test_defaults_can_be_counted_and_summed(self):
        for made, reference in ((JSON, order("a", ("time", "x"))), (LABEL, "yes"), (SET, ["no"]), (TEXT, "a b")):
            names = default_metrics(made)
            rows = [{"counts": count(reference, prediction, made)} for prediction in (reference, None)]
            values = score(rows)
            assert list(values)[: len(names)] == names
            assert set(values) == set(names) | {METRICS[n].beside for n in names if METRICS[n].beside}
            for name in values:
                best = METRICS[name].value(METRICS[name].counts(reference, reference, made))
                assert best == (1 if METRICS[name].higher_is_better else 0)

    def test_values_of_stacked_counts_are_the_values_one_by_one(self):
        # compare.py evaluates thousands of resampled sums in one call
        rng = np.random.default_rng(0)
        for metric in METRICS.values():
            answer = next(a for a in ("json", "label", "text") if a in metric.answers)
            reference, made = {
                "json": (order("a", ("WHEN", "x")), JSON), "label": ("yes", LABEL), "text": ("a b", TEXT),
            }[answer]  # fmt: skip
            more = [0.5] if metric.of_confidence else [{"a": "b", "yes": "no"}] if metric.of_names else []
            width = len(metric.counts(reference, reference, made, *more))
            stacked = rng.integers(0, 5, (20, width)).astype(float)
            np.testing.assert_array_equal(metric.values(stacked), [metric.value(row) for row in stacked])

    def test_every_metric_says_its_unit_and_what_it_stands_beside(self):
        for metric in METRICS.values():
            assert metric.unit
            assert metric.beside is None or METRICS[metric.beside].answers == metric.answers
        assert METRICS["wer"].unit == "errors per reference word"

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
            "accuracy_answered": pytest.approx(2 / 3),
            "macro_f1": pytest.approx((2 / 3 + 2 / 3 + 0) / 3),
            "macro_f1_answered": pytest.approx((2 / 3 + 2 / 3) / 2),
            "invalid_rate": 0.25,
        }


class TestFailures:
    @pytest.mark.parametrize(("answer", "empty", "loop", "long"), [
        ("a short summary", 0, 0, 0), ("", 1, 0, 0), (" ... ", 1, 0, 0), (None, 1, 0, 0),
        ("so so so so", 0, 1, 0), ("so so so and so", 0, 0, 0), (4 * "it is said ", 0, 1, 1),
        ("ملخص ملخص ملخص ملخص", 0, 1, 0), ("one two three four five six seven eight nine", 0, 0, 0),
        ("one two three four five six seven eight nine ten", 0, 0, 1),
    ])  # fmt: skip
    def test_each_way_by_hand(self, answer, empty, loop, long):
        names = ["empty_rate", "repetition_rate", "overlong_rate", "decode_failure_rate"]
        found = count("about three words", answer, task("text", metrics=names))
        want = [empty, loop, long, max(empty, loop, long)]
        assert [found[name] for name in names] == [[n, 1.0] for n in want]

    def test_a_reference_that_repeats_may_be_repeated(self):
        made = task("text", metrics=["repetition_rate"])
        assert count("no no no no", "no no no no", made)["repetition_rate"] == [0, 1]
        assert count("no no no no", "no no no no no", made)["repetition_rate"] == [1, 1]
