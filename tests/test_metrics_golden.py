"""Our metrics against recorded numbers of the official scorers, on generated cases (tests/golden/*.json)."""

import json
from pathlib import Path

import numpy as np
import pytest

from trainer.metrics import METRICS
from trainer.spec import Task

GOLDEN = Path(__file__).parent / "golden"
EQUAL = {"rel": 0, "abs": 1e-9}


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


def summed(name, pairs, task):
    return np.sum([METRICS[name].counts(reference, prediction, task) for reference, prediction in pairs], axis=0)


def value(name, pairs, task):
    return METRICS[name].value(summed(name, pairs, task))


def json_task():
    return Task(name="slurp", instruction={"en": "x"}, answer="json", slots={"date": None})


def text_task():
    return Task(name="asr", instruction={"en": "x"}, answer="text", normaliser="raw")


class TestSlurp:
    data = golden("slurp")

    @pytest.mark.parametrize("corpus", data["corpora"], ids=lambda c: "-".join(map(str, c["cases"])))
    def test_equals_the_official_scorer(self, corpus):
        first, last = corpus["cases"]
        pairs = [(case["reference"], case["prediction"]) for case in self.data["cases"][first:last]]
        task = json_task()
        assert value("slu_f1", pairs, task) == pytest.approx(corpus["slu_f1"], **EQUAL)
        counts = summed("slu_f1", pairs, task)
        assert counts[:3] == pytest.approx(corpus["word_table"], **EQUAL)
        assert counts[3:] == pytest.approx(corpus["char_table"], **EQUAL)
        # The script leaves out what was not predicted; our entity F1 and intent accuracy do not.
        answered = [pair for pair in pairs if pair[1] is not None]
        assert summed("entity_f1", answered, task) == pytest.approx(corpus["span_table"], **EQUAL)
        assert value("entity_f1", answered, task) == pytest.approx(corpus["span_f1"], **EQUAL)
        assert value("intent_accuracy", answered, task) == pytest.approx(corpus["intent_f1"], **EQUAL)

    def test_cases_contain_the_traps(self):
        cases = self.data["cases"]
        assert len(cases) >= 200
        assert any(case["prediction"] is None for case in cases)
        per_case = [METRICS["slu_f1"].counts(c["reference"], c["prediction"], json_task()) for c in cases]
        assert any(fp > tp + fp_char for tp, fp, _, _, fp_char, _ in per_case), "no word distance above 1"

    def test_strict_is_lower_where_answers_are_missing(self):
        pairs = [(case["reference"], case["prediction"]) for case in self.data["cases"]]
        missing = sum(len(r["slots"]) for r, p in pairs if p is None)
        difference = summed("slu_f1_strict", pairs, json_task()) - summed("slu_f1", pairs, json_task())
        assert missing > 0
        assert difference == pytest.approx([0, 0, missing, 0, 0, missing], **EQUAL)


class TestJiwer:
    data = golden("jiwer")

    @pytest.mark.parametrize("corpus", data["corpora"], ids=lambda c: "-".join(map(str, c["cases"])))
    def test_corpus_rates(self, corpus):
        pairs = self.data["cases"][slice(*corpus["cases"])]
        for name in ("wer", "cer", "wer_utterance_mean"):
            assert value(name, pairs, text_task()) == pytest.approx(corpus[name], **EQUAL)

    def test_every_case(self):
        ours = [[value(m, [pair], text_task()) for m in ("wer", "cer")] for pair in self.data["cases"]]
        assert len(ours) >= 200
        np.testing.assert_allclose(ours, self.data["per_case"], rtol=0, atol=1e-9)


class TestScikitLearn:
    data = golden("sklearn_f1")

    @pytest.mark.parametrize(("kind", "answer"), [("single", "label"), ("sets", "label_set")])
    def test_f1(self, kind, answer):
        data = self.data[kind]
        task = Task(name="c", instruction={"en": "x"}, answer=answer, labels=data["labels"])
        assert len(data["cases"]) >= 200
        for corpus in data["corpora"]:
            pairs = data["cases"][slice(*corpus["cases"])]
            for name in ("macro_f1", "micro_f1"):
                assert value(name, pairs, task) == pytest.approx(corpus[name], **EQUAL)


def test_slue_named_entities():
    data = golden("slue_ner")
    assert len(data["cases"]) >= 200
    pairs = [
        [{"slots": [{"type": t, "value": v} for t, v in side]} for side in case] for case in data["cases"]
    ]
    for corpus in data["corpora"]:
        ours = value("entity_f1", pairs[slice(*corpus["cases"])], json_task())
        assert ours == pytest.approx(corpus["f1"], **EQUAL)
