"""Other names for labels: pools, scopes, what is refused, and that every name leads back."""

import itertools
import math
from collections import Counter

import pytest

from trainer import answers
from trainer.labels import classes, drawn, moved, names, names_at_test, pool, problems, symbols
from trainer.spec import Task, builtin_tasks
from trainer.stage import Labels
from trainer.utterance import Utterance

MOODS = {"positive": "any approval", "negative": "any criticism", "neutral": "facts alone"}


def mood(**changes) -> Task:
    plain = {"name": "mood", "instruction": {"en": "Which feeling?"}, "answer": "label", "labels": [*MOODS]}
    return Task.model_validate({**plain, "definitions": MOODS, "menu": True, **changes})


ACTS = builtin_tasks()["slue_dialog_acts"]
ORDER = Task.model_validate({
    "name": "order", "instruction": {"en": "What is wanted?"}, "answer": "json", "intents": ["buy", "sell"],
    "menu": True, "slots": {"size": ["small", "large"]},
    "definitions": {"buy": "to get", "sell": "to give", "size": "how much"},
})  # fmt: skip


def test_random_names_keep_each_definition_with_its_meaning():
    for draw in range(12):
        found = names(mood(), Labels(labels="random"), 0, draw)
        menu = answers.instruction(found.task, "en").splitlines()[2:]
        assert menu == [f"- {found.shown[real]}: {text}" for real, text in MOODS.items()]
        assert sorted(found.shown.values()) == sorted(MOODS)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_pool_of_few_labels_is_all_permutations_and_draws_cover_it(count):
    naming = Labels(labels="random")
    met = Counter(drawn(naming, count, 7, "t", draw) for draw in range(60 * math.factorial(count)))
    assert len(met) == math.factorial(count)
    assert min(met.values()) > 25  # of 60 expected each


@pytest.mark.parametrize(("count", "size", "expected"), [
    (18, "auto", 10), (18, 200, 200), (5, "auto", 10), (6, 1000, 720), (3, 2, 2), (3, 4, 4), (7, 1000, 1000),
])  # fmt: skip
def test_a_pool_has_its_size_in_different_permutations(count, size, expected):
    found = pool(count, size, True, 0)
    assert len(found) == len(set(found)) == expected
    assert all(sorted(p) == list(range(count)) for p in found)


def test_a_small_pool_leaves_no_label_its_name():
    for count, size in ((18, 10), (5, 10), (3, 2)):
        assert not any(a == b for p in pool(count, size, True, 3) for a, b in enumerate(p))


def test_the_identity_can_be_left_out():
    assert (0, 1, 2) in pool(3, "auto", True, 0)
    assert len(pool(3, "auto", False, 0)) == 5
    assert (0, 1, 2) not in pool(3, "auto", False, 0)
    naming = Labels(labels="random", pool_size="fresh", identity=False)
    assert {drawn(naming, 2, 0, "t", draw) for draw in range(20)} == {(1, 0)}


def test_fresh_draws_are_any_permutation():
    naming = Labels(labels="random", pool_size="fresh")
    assert len({drawn(naming, 18, 0, "t", draw) for draw in range(50)}) == 50
    assert len({drawn(naming, 3, 0, "t", draw) for draw in range(200)}) == 6


def test_draws_are_those_written_down():
    """Golden: another draw is another training."""
    naming = Labels(labels="random")
    assert [drawn(naming, 3, 5, "mood", k) for k in range(4)] == [(2, 1, 0), (0, 2, 1), (0, 1, 2), (0, 1, 2)]
    eighteen = (7, 15, 5, 8, 9, 0, 17, 10, 11, 12, 3, 14, 16, 1, 13, 4, 2, 6)
    assert drawn(naming, 18, 5, "slue_hvb", 0) == eighteen
    assert drawn(Labels(labels="random", pool_size="fresh"), 5, 5, "mood", 1) == (1, 4, 0, 2, 3)


def test_seed_task_and_pool_seed_each_make_other_draws():
    def draws(seed=0, task="t", pool_seed=0):
        naming = Labels(labels="random", pool_seed=pool_seed)
        return [drawn(naming, 18, seed, task, k) for k in range(200)]

    assert draws() == draws()
    assert set(draws()) == set(draws(seed=1)) == set(draws(task="u"))  # one pool
    assert len({tuple(d) for d in (draws(), draws(seed=1), draws(task="u"), draws(pool_seed=1))}) == 4
    assert not set(draws()) & set(draws(pool_seed=1))


@pytest.mark.parametrize("labels", ["regular", "symbol", "random"])
@pytest.mark.parametrize(("task", "label"), [
    (mood(), "negative"), (ACTS, ["answer_agree", "self", "thanks"]),
    (ORDER, {"intent": "sell", "slots": [{"type": "size", "value": "small"}]}),
])  # fmt: skip
def test_an_answer_under_other_names_leads_back_to_the_label(labels, task, label):
    for draw in range(8):
        found = names(task, Labels(labels=labels), 1, draw)
        written = answers.render(found.label(label), found.task)
        read, valid = answers.parse(written, found.task)
        assert valid
        back = found.back(read)
        assert (sorted(back) == sorted(label)) if isinstance(label, list) else (back == label)


def test_a_set_of_labels_follows_the_menu_that_is_shown():
    found = names(ACTS, Labels(labels="random"), 0, 3)
    written = answers.render(found.label(["thanks", "acknowledge", "other"]), found.task)
    assert written == ", ".join(found.shown[real] for real in ("acknowledge", "other", "thanks"))


def test_symbols_are_fixed_and_no_real_name_is_left():
    task = names(ACTS, Labels(labels="symbol"), 0, 0).task
    assert task == names(ACTS, Labels(labels="symbol"), 9, 77).task
    assert task.labels == symbols(Labels(), 18)
    assert task.labels[0] == "alpha"
    assert task.labels[-1] == "sigma"
    told = answers.instruction(task, "en")
    words = set(told.replace(":", " ").replace(",", " ").split())
    assert not words & set(ACTS.labels)
    assert symbols(Labels(), 50)[23:26] == ["omega", "alpha1", "beta1"]
    assert len(set(symbols(Labels(), 200))) == 200


def test_random_symbols_are_permuted_symbols():
    found = [names(mood(), Labels(labels="random", names="symbols"), 0, k) for k in range(40)]
    assert {tuple(f.shown.values()) for f in found} == set(itertools.permutations(["alpha", "beta", "gamma"]))


def test_an_utterance_goes_by_the_shown_name_and_keeps_the_rest():
    row = Utterance("a", "mood", "en", "train", "fine", " negative ")
    found = names(mood(), Labels(labels="symbol"), 0, 0)
    assert found.utterance(row) == Utterance("a", "mood", "en", "train", "fine", "beta")
    assert found.utterance(Utterance("a", "mood", "en", "train", "fine")).label is None


def test_intents_are_replaced_and_slots_are_not():
    found = names(ORDER, Labels(labels="symbol"), 0, 0)
    assert classes(ORDER) == ["buy", "sell"]
    assert found.task.intents == ["alpha", "beta"]
    assert found.task.definitions == {"alpha": "to get", "beta": "to give", "size": "how much"}
    assert found.task.slots == ORDER.slots


REFUSED = [
    (builtin_tasks()["asr"], {}, "tasks.asr.answer: labels: random replaces the names of labels or of a closed set"),
    (ORDER.model_copy(update={"intents": None}), {}, "json without a closed set of intents has none"),
    (mood(labels=["positive"]), {}, "tasks.mood: labels: random needs two labels at least"),
    (mood(menu=False), {}, "tasks.mood.menu: labels: random says the names in the instruction; say menu: true"),
    (mood(definitions={"positive": "x"}), {}, "tasks.mood.definitions: 'negative' has none"),
    (mood(instruction={"en": "Positive or not?"}), {}, "tasks.mood.instruction.en: says the label 'positive'"),
    (mood(definitions={**MOODS, "neutral": "not negative"}), {"labels": "symbol"},
     "tasks.mood.definitions.neutral: says the label 'negative'"),
    (mood(), {"labels": "symbol", "symbols": ["a", "b"]}, "recipe.symbols: 2 for the 3 labels of task mood"),
    (mood(), {"labels": "symbol", "symbols": ["a", "b", "a"]}, "recipe.symbols: symbols repeat"),
    (mood(), {"labels": "symbol", "symbols": ["a", "Neutral", "c"]}, "recipe.symbols: is a name of task mood too"),
    (ACTS, {"names": "symbols", "symbols": [f"s,{n}" for n in range(18)]}, "recipe.symbols: is no answer"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "knobs", "words"), REFUSED, ids=[str(n) for n in range(len(REFUSED))])
def test_labels_that_cannot_go_by_other_names_are_refused(task, knobs, words):
    found = "\n".join(map(str, problems(task, Labels(**{"labels": "random", **knobs}))))
    assert words in found
    assert problems(task, Labels(**{**knobs, "labels": "regular"})) == []


def test_pool_size_is_a_number_or_a_word():
    for wrong in (0, 1001, "all"):
        with pytest.raises(ValueError, match="pool_size"):
            Labels(pool_size=wrong)


@pytest.mark.parametrize(("count", "expected"), [(2, 1), (3, 2), (4, 9), (5, 10), (18, 10)])
def test_tested_permutations_leave_no_label_its_name(count, expected):
    assert len(set(moved(count))) == expected
    assert not any(a == b for p in moved(count) for a, b in enumerate(p))


def test_an_utterance_is_tested_under_the_same_permutation_by_everybody():
    drawn = [names_at_test(ACTS, "permuted", None, f"u{n}") for n in range(200)]
    assert [d.shown for d in drawn] == [names_at_test(ACTS, "permuted", ["unused"], f"u{n}").shown for n in range(200)]
    assert len({tuple(d.shown.items()) for d in drawn}) == 10
    for found in drawn[:20]:
        menu = answers.instruction(found.task, "en").splitlines()[2:]
        assert menu == [f"- {found.shown[real]}: {ACTS.definitions[real]}" for real in ACTS.labels]
        assert found.permuted
        # Targets follow the order of the menu shown, and lead back to the real names in theirs.
        said = answers.render(found.label(["thanks", "self"]), found.task)
        assert said == f"{found.shown['self']}, {found.shown['thanks']}"
        assert found.back(answers.parse(said, found.task)[0]) == ["self", "thanks"]
    symbols = names_at_test(ACTS, "symbol", None, "u1")
    assert (symbols.shown["acknowledge"], symbols.permuted) == ("alpha", False)
    assert names_at_test(ACTS, "regular", None, "u1").task == ACTS


@pytest.mark.parametrize("name", ["slue_sentiment", "slue_dialog_acts", "slue_entities"])
def test_slue_tasks_can_go_by_other_names(name):
    task = builtin_tasks()[name]
    for mode in ("symbol", "random"):
        assert problems(task, Labels(labels=mode)) == []
    assert len(task.labels) == {"slue_sentiment": 3, "slue_dialog_acts": 18, "slue_entities": 8}[name]
