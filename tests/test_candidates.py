"""Demonstrations: the nearest by a double loop, never the query's own sentence, none twice, any script."""

import math
from collections import Counter
from dataclasses import replace

import pytest

from trainer.demonstrations import Candidates, TfIdf, sample
from trainer.spec import Task
from trainer.tokens import asked, demonstration
from trainer.utterance import Utterance

SENTENCES = [
    "turn on the light in the kitchen", "switch the lights off", "play some jazz", "play the song again",
    "what is the weather in paris", "is it going to rain in paris tomorrow", "set an alarm for seven", "打开厨房的灯",
    "关掉客厅的灯", "شغل الموسيقى", "أوقف الموسيقى",
]  # fmt: skip


def row(n: int, text: str | None, task: str = "t", language: str = "en", label: str | None = "a") -> Utterance:
    return Utterance(f"u{n}", task, language, "train", text, label)


def slow(sentences, query, own, count):
    """Cosine of (1 + ln tf)(1 + ln((1 + n)/(1 + df))) over words and character trigrams, by the definition."""

    def terms(s):
        padded = f" {s} "
        return Counter([*s.split(), *("#" + padded[i : i + 3] for i in range(len(padded) - 2))])

    every = [terms(s) for s in sentences]

    def vector(found):
        weights = {}
        for term, tf in found.items():
            df = sum(term in other for other in every)
            if df:
                weights[term] = (1 + math.log(tf)) * (1 + math.log((1 + len(every)) / (1 + df)))
        norm = math.sqrt(sum(w * w for w in weights.values()))
        return {t: w / norm for t, w in weights.items()}

    q = vector(terms(query))
    scores = [sum(q.get(t, 0) * w for t, w in vector(e).items()) for e in every]
    order = sorted(range(len(every)), key=lambda i: (-round(scores[i], 6), i))
    return [i for i in order if i != own][:count]


@pytest.mark.parametrize("query", [*SENTENCES, "turn the kitchen light off", "打开灯", "xyz", "the"])
def test_tfidf_is_the_double_loop(query):
    own = SENTENCES.index(query) if query in SENTENCES else None
    for count in (1, 3, 20):
        assert TfIdf(SENTENCES).nearest([query], [own], count) == [slow(SENTENCES, query, own, count)]


def test_many_queries_in_blocks_are_each_alone():
    queries = [f"{SENTENCES[n % 11]} {n % 7}" for n in range(600)]
    alone = {q: TfIdf(SENTENCES).nearest([q], [None], 3)[0] for q in set(queries)}
    assert TfIdf(SENTENCES).nearest(queries, [None] * 600, 3) == [alone[q] for q in queries]


def test_the_queries_own_sentence_is_never_shown_nor_any_twice():
    rows = [row(0, "Play jazz!"), row(1, "play jazz"), row(2, "play  JAZZ."), row(3, "stop jazz"), row(4, "Stop, jazz")]
    found = Candidates(rows, 0)
    for n in range(5):
        assert found.nearest([rows[n]], 5) == [[3] if n < 3 else [0]]
        assert found.random(rows[n], [17, 4, 9], 3) == ([3] if n < 3 else [0])
    assert sorted(found.nearest([row(9, "play")], 5)[0]) == [0, 3]


def test_they_are_of_the_querys_task_and_language_and_have_text_and_label():
    rows = [
        row(0, "one", "a"), row(1, "one", "b"), row(2, "one", "a", "fr"), row(3, None, "a"),
        row(4, "two", "a", "en-GB"), row(5, "three", "a", label=None), row(6, "?!", "a"),
    ]  # fmt: skip
    found = Candidates(rows, 0)
    assert sorted(found.nearest([row(9, "four", "a", "en-US")], 9)[0]) == [0, 4]
    assert found.nearest([row(9, "four", "a", "fr-CA"), row(9, "four", "c")], 9) == [[2], []]
    assert found.random(row(9, "four", "c"), [1, 2], 2) == []


def test_a_query_without_a_transcript_cannot_be_looked_up_but_gets_random_ones():
    found = Candidates([row(0, "one"), row(1, "two")], 0)
    with pytest.raises(ValueError, match="utterance u9: no transcript to look demonstrations up by"):
        found.nearest([row(9, None)], 1)
    assert sorted(found.random(row(9, None), [5, 6], 2)) == [0, 1]


def test_a_sample_is_uniform_without_repetition():
    met = Counter(tuple(sample(4, (a, b), without=[1])) for a in range(3) for b in range(2))
    assert met == Counter({(a, b): 1 for a in (0, 2, 3) for b in (0, 2, 3) if a != b})
    assert sorted(sample(3, range(100, 110))) == [0, 1, 2]
    assert sample(0, [1]) == []


def test_ties_go_to_the_earlier_row():
    assert TfIdf(["b c", "a b", "a b", "zz"]).nearest(["a b"], [None], 4) == [[1, 2, 0, 3]]


def test_demonstrations_stand_between_menu_and_question():
    task = Task.model_validate({
        "name": "t", "instruction": {"en": "Which way?"}, "answer": "label", "labels": ["left", "right"], "menu": True,
    })  # fmt: skip
    shown = [demonstration(replace(row(0, "go\nwest", label="left"), question="Whither?"), task)]
    shown += [demonstration(row(1, "go east", label="right"), task)]
    told = asked(replace(row(2, "north"), question="And now?"), task, shown)
    assert told.splitlines() == [
        "Which way?", "Labels: left, right", "Input: go west", "Question: Whither?", "Answer: left",
        "Input: go east", "Answer: right", "And now?",
    ]  # fmt: skip
    assert asked(row(2, "north"), task) == "Which way?\nLabels: left, right"
