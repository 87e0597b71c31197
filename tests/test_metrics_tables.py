"""Prediction rows by group: groups add up to the whole, and say nothing where there is but one."""

import numpy as np
import pytest

from trainer.metrics import METRICS, score
from trainer.metrics.tables import OF_SLOTS, duration_group, tables
from trainer.predictions import prediction
from trainer.spec import Task
from trainer.utterance import Utterance

ORDER = Task(name="order", instruction={"en": "x"}, answer="json", slots={"drink": None, "size": None})
ASR = Task(name="asr", instruction={"en": "x"}, answer="text")


def said(task, answers, **fields):
    """A prediction row each of (label, answer)."""
    rows = []
    for n, (label, text) in enumerate(answers):
        own = {key: values[n] for key, values in fields.items()}
        plain = {"id": f"u{n}", "task": task.name, "language": "en", "split": "test", "label": label, "audio": "a.wav"}
        rows.append(prediction(Utterance(**{**plain, **own}), task, "speech", text))
    return rows


def slots(*pairs):
    return {"intent": None, "slots": [{"type": kind, "value": value} for kind, value in pairs]}


@pytest.fixture(scope="module")
def orders():
    return said(
        ORDER,
        [
            (slots(("drink", "tea"), ("size", "big")), '{"slots": {"drink": "tea", "size": "small"}}'),
            (slots(("drink", "black tea"), ("drink", "water")), '{"slots": {"drink": ["tea", "water"]}}'),
            (slots(("size", "big")), "tea, please"),
            (slots(), '{"slots": {"drink": "tea"}}'),
        ],
        duration_s=[0.5, 2.0, 2.5, None],
        language=["it", "fr", "it", "it"],
    )


def test_rows_of_a_group_are_scored_alone(orders):
    found = tables(orders)
    assert [(g["group"], g["n"]) for g in found["language"]] == [("fr", 1), ("it", 3)]
    assert found["language"][1]["metrics"] == score([orders[0], orders[2], orders[3]])


def test_durations_stand_in_their_order(orders):
    assert [(g["group"], g["n"]) for g in tables(orders)["duration"]] == [
        ("under 1 s", 1),
        ("2–4 s", 2),
        ("unknown", 1),
    ]


@pytest.mark.parametrize(
    ("seconds", "group"),
    [(0.99, "under 1 s"), (1, "1–2 s"), (15.9, "8–16 s"), (30, "30 s and more"), (None, "unknown")],
)
def test_a_duration_belongs_to_what_begins_with_it(seconds, group):
    assert duration_group(seconds) == group


def test_slot_types_add_up_to_the_whole(orders):
    by_slot = tables(orders)["slot"]
    assert [(g["group"], g["n"]) for g in by_slot] == [("drink", 3), ("size", 2)]
    drink, size = (g["metrics"] for g in by_slot)
    # drinks: tea and water right, black tea missed by "tea", one too many; sizes: one wrong, one not answered
    assert drink["entity_f1"] == pytest.approx(2 * 2 / (2 * 2 + 2 + 1))
    assert size["entity_f1"] == 0
    for name in OF_SLOTS:
        whole = np.sum([row["counts"][name] for row in orders], axis=0)
        parts = np.zeros_like(whole)
        for row in orders:
            for kind in ("drink", "size"):
                sides = [
                    side and {"slots": [s for s in side["slots"] if s["type"] == kind]}
                    for side in (row["reference"], row["parsed"])
                ]
                parts = parts + METRICS[name].counts(*sides, ORDER)
        assert parts == pytest.approx(whole)


def test_seeds_are_pooled_and_utterances_counted_once(orders):
    twice = tables([*orders, *orders])
    assert twice["language"][1]["n"] == 3
    assert [g["n"] for g in twice["slot"]] == [3, 2]
    assert twice["slot"][0]["metrics"] == tables(orders)["slot"][0]["metrics"]


def test_one_group_is_no_table(orders):
    assert tables(said(ASR, [("a", "a"), ("b", "c")], duration_s=[1.0, 1.5])) == {}
    assert tables([]) == {}


def test_a_row_says_its_duration_normaliser_and_confidence():
    (row,) = said(ASR, [("a", "a")], duration_s=[1.5])
    assert (row["duration_s"], row["normaliser"]) == (1.5, "basic")
    assert "confidence" not in row
    task = Task(name="yes", instruction={"en": "x"}, answer="label", labels=["yes", "no"], metrics=["accuracy", "ece"])
    utterance = Utterance(id="u", task="yes", language="en", split="test", text="x", label="yes")
    row = prediction(utterance, task, "text", "yes", confidence=0.9)
    assert row["confidence"] == 0.9
    assert score([row]) == {"accuracy": 1, "accuracy_answered": 1, "ece": pytest.approx(0.1)}
