"""Our metrics against recorded numbers of the official scorers on generated cases; see tests/golden/README.md."""

import json
from pathlib import Path

import numpy as np
import pytest

from trainer import answers
from trainer.metrics import METRICS, count
from trainer.spec import Task

GOLDEN = Path(__file__).parent / "golden"
ROUNDING = {"rel": 1e-12, "abs": 1e-12}
"""What sums may differ by that are taken in another order."""


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


def summed(name, pairs, task):
    return np.sum([METRICS[name].counts(reference, prediction, task) for reference, prediction in pairs], axis=0)


def value(name, pairs, task):
    return METRICS[name].value(summed(name, pairs, task))


def labelled(pairs):
    return [{"type": kind, "value": said} for kind, said in pairs]


def of_range(corpus):
    return "-".join(map(str, corpus["cases"]))


SLURP, NER, LABELS, TEXTS = (golden(name) for name in ("slurp", "slue_ner", "slue_labels", "texts"))


class TestSlurp:
    """From what the model wrote to the number: the answers go through the strict reader."""

    references = [{"intent": intent, "slots": labelled(slots)} for intent, slots, _ in SLURP["cases"]]
    task = Task(
        name="slurp",
        instruction={"en": "x"},
        answer="json",
        intents=sorted({r["intent"] for r in references}),
        slots={slot["type"]: None for r in references for slot in r["slots"]},
    )
    predictions = [parsed for parsed, _ in map(answers.parse, [c[2] for c in SLURP["cases"]], [task] * len(references))]
    pairs = list(zip(references, predictions, strict=True))

    def test_what_cannot_be_parsed_is_what_the_script_was_not_given(self):
        assert [k for k, p in enumerate(self.predictions) if p is None] == SLURP["unparsable"]
        assert len(SLURP["unparsable"]) >= 40

    def test_every_utterance_to_the_bit(self):
        assert len(self.pairs) >= 200
        for name, column in (("slu_f1_word", 0), ("slu_f1_character", 1)):
            ours = [METRICS[name].counts(r, p, self.task) for r, p in self.pairs]
            assert ours == [tables[column] for tables in SLURP["per_case"]]

    @pytest.mark.parametrize("corpus", SLURP["corpora"], ids=of_range)
    def test_corpora(self, corpus):
        pairs = self.pairs[slice(*corpus["cases"])]
        measures = {
            "intent_accuracy_answered": "intent", "entity_f1_answered": "entities", "slu_f1": "slu",
            "slu_f1_word": "word", "slu_f1_character": "character",
        }  # fmt: skip
        for ours, theirs in measures.items():
            _, _, f1, *table = corpus[theirs]
            assert value(ours, pairs, self.task) == pytest.approx(f1, **ROUNDING), ours
            counts = summed(ours, pairs, self.task)
            if ours == "slu_f1":
                counts = counts[:3] + counts[3:]
            if ours != "intent_accuracy_answered":
                assert counts == pytest.approx(table, **ROUNDING), ours

    def test_strict_differs_by_the_slots_of_what_was_not_answered(self):
        missing = sum(len(r["slots"]) for r, p in self.pairs if p is None)
        assert missing > 0
        for name in ("slu_f1_word", "slu_f1_character"):
            difference = summed(f"{name}_strict", self.pairs, self.task) - summed(name, self.pairs, self.task)
            assert difference == pytest.approx([0, 0, missing], **ROUNDING)
        loose, strict = (summed(f"entity_f1{s}", self.pairs, self.task) for s in ("_answered", ""))
        assert (strict - loose).tolist() == [0, 0, missing]
        right, of = summed("intent_accuracy", self.pairs, self.task)
        assert [right, of - len(SLURP["unparsable"])] == summed(
            "intent_accuracy_answered", self.pairs, self.task
        ).tolist()

    def test_cases_hold_the_traps(self):
        per_case = [METRICS["slu_f1"].counts(r, p, self.task) for r, p in self.pairs]
        assert any(fp > tp + fp_char for tp, fp, _, _, fp_char, _ in per_case), "no word distance above 1"
        assert any(p and not p["slots"] and r["slots"] for r, p in self.pairs), "nothing predicted"
        kinds = [[slot["type"] for slot in p["slots"]] for p in self.predictions if p]
        assert any(len(set(k)) < len(k) for k in kinds), "no type twice"
        assert any(not slot["value"].isascii() for p in self.predictions if p for slot in p["slots"])


class TestSlue:
    @pytest.mark.parametrize("corpus", NER["corpora"], ids=of_range)
    def test_named_entities(self, corpus):
        assert len(NER["cases"]) >= 200
        task = Task(name="ner", instruction={"en": "x"}, answer="json", slots={"ORG": None})
        pairs = [
            ({"slots": labelled(reference)}, None if given is None else {"slots": labelled(given)})
            for reference, given in NER["cases"][slice(*corpus["cases"])]
        ]
        assert value("slue_ner_f1", pairs, task) == pytest.approx(corpus["f1"], **ROUNDING)
        assert value("slue_ner_label_f1", pairs, task) == pytest.approx(corpus["label_f1"], **ROUNDING)

    @pytest.mark.parametrize(
        ("kind", "answer", "macro"), [("sentiment", "label", "macro_f1"), ("acts", "label_set", "macro_f1_all_labels")]
    )
    def test_labels(self, kind, answer, macro):
        task = Task(name=kind, instruction={"en": "x"}, answer=answer, labels=LABELS[f"{kind}_labels"])
        cases = [(r, p or None) for r, p in LABELS[f"{kind}_cases"]]
        assert len(cases) >= 200
        for corpus in LABELS[kind]:
            pairs = cases[slice(*corpus["cases"])]
            assert 100 * value(macro, pairs, task) == pytest.approx(corpus["macro_f1"], **ROUNDING)
            assert 100 * value("weighted_f1", pairs, task) == pytest.approx(corpus["weighted_f1"], **ROUNDING)

    def test_macro_recall_is_unweighted_accuracy_where_every_label_occurs(self):
        task = Task(name="s", instruction={"en": "x"}, answer="label", labels=LABELS["sentiment_labels"])
        ours = value("unweighted_accuracy", LABELS["sentiment_cases"], task)
        assert 100 * ours == pytest.approx(LABELS["sentiment"][0]["recall"], **ROUNDING)


class TestTexts:
    task = Task(name="t", instruction={"en": "x"}, answer="text", normaliser="raw")
    cases = TEXTS["cases"]

    def test_cases_hold_the_traps(self):
        assert len(self.cases) >= 200
        assert any(not r and not h for r, h in self.cases)
        assert any(r and not h for r, h in self.cases)
        assert any(h == f"{r} {r}" for r, h in self.cases)
        assert sum(not r.isascii() for r, _ in self.cases) > 100

    @pytest.mark.parametrize(
        ("name", "times"),
        [("wer", 1), ("cer", 1), ("bleu", 100), ("bleu_zh", 100), ("bleu_character", 100), ("chrf", 100)],
    )
    def test_jiwer_and_sacrebleu(self, name, times):
        counts = np.array([METRICS[name].counts(r, h, self.task) for r, h in self.cases])
        for corpus in TEXTS["corpora"]:
            ours = METRICS[name].value(counts[slice(*corpus["cases"])].sum(0))
            assert times * ours == pytest.approx(corpus[name], rel=1e-12, abs=1e-9), corpus["cases"]

    @pytest.mark.parametrize("recorded", ["rouge", "rouge_ascii"])
    def test_rouge_score(self, recorded):
        asked = [(case, scores) for case, scores in zip(self.cases, TEXTS[recorded], strict=True) if scores]
        assert len(asked) >= 200
        ours = [
            [METRICS[name].counts(*case, self.task)[0] for name in ("rouge1", "rouge2", "rouge_l")] for case, _ in asked
        ]
        assert ours == [scores for _, scores in asked]

    @pytest.mark.parametrize(("recorded", "several"), [("squad", 1), ("squad_several", 3)])
    def test_squad(self, recorded, several):
        assert len(TEXTS[recorded]) == len(self.cases)
        for k, (_, given) in enumerate(self.cases):
            right = [reference for reference, _ in self.cases[k : k + several]]
            reference = right if several > 1 else right[0]
            ours = [METRICS[name].counts(reference, given, self.task)[0] for name in ("qa_exact_match", "qa_f1")]
            assert ours == TEXTS[recorded][k]


def test_both_ways_of_counting_are_recorded_together():
    task = Task(name="s", instruction={"en": "x"}, answer="json", slots={"date": None}, metrics=["slu_f1"])
    assert list(count({"intent": "a", "slots": []}, None, task)) == ["slu_f1", "slu_f1_strict"]
