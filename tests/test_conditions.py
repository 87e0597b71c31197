"""How a test is put: names of labels, demonstrations; counts by hand, and how a report says it."""

import pytest

from api.local_paths import confined
from attune.places import absolute
from db.datasets import references
from db.settings import Settings
from trainer.fields import SpecError
from trainer.labels import Names, names_at_test
from trainer.learning_curve import curves_over_shots, draw
from trainer.metrics import score
from trainer.predictions import FOLLOWING, in_words, prediction
from trainer.report import document, score_rows
from trainer.report_rows import Run, ScoredCell, report_rows
from trainer.report_text import whole
from trainer.spec import Evaluate, Task, parse_job
from trainer.utterance import Utterance

PITCH = {
    "name": "pitch", "instruction": {"en": "What is it like?"}, "answer": "label", "labels": ["dark", "light", "mild"],
    "definitions": {"dark": "deep", "light": "bright", "mild": "neither"}, "menu": True,
    "prompt_order": "instruction_first",
}  # fmt: skip


def test_a_reference_of_a_pool_is_a_reference(tmp_path):
    spec = {"name": "j", "base": "b", "language": "en", "data": {"text": "t"},
            "evaluate": {"on": "x", "demos": {"k": 1, "from": ["here", "../out"]}}}  # fmt: skip
    assert references(spec)["evaluate.demos.from[1]"] == "../out"
    with pytest.raises(SpecError, match=r"evaluate\.demos\.from\[1\]: names a place outside"):
        confined(parse_job(spec), Settings.model_construct(trusted=False))
    (tmp_path / "here").mkdir()
    made, changed = absolute(spec, [tmp_path])
    assert made["evaluate"]["demos"]["from"] == [str(tmp_path / "here"), "../out"]
    assert changed == {"evaluate.demos.from[0]": str(tmp_path / "here")}


@pytest.mark.parametrize("place", ["/srv/encoder", "s3://bucket/encoder", "../encoder"])
def test_a_sentence_encoder_lies_where_a_base_may(place):
    shown = {"demonstrations": {"most": 1, "retriever": place}}
    stage = {"name": "a", "steps": 1, "mix": {"text": 1}, "view": {"kind": "labels", **shown}}
    plain = {"name": "x", "base": "b", "language": "en", "data": {"text": "t"}, "evaluate": {"on": "x"}}
    for field, changes in (
        ("evaluate.demos.retriever", {"evaluate": {"on": "x", "demos": {"k": 1, "retriever": place}}}),
        ("recipe.demonstrations.retriever", {"recipe": {"name": "label_permutation", **shown}}),
        (r"recipe.stages\[0\].view.demonstrations.retriever", {"recipe": {"name": "custom", "stages": [stage]}}),
    ):
        with pytest.raises(SpecError, match=f"{field}: names a place outside"):
            confined(parse_job({**plain, **changes}), Settings.model_construct(trusted=False))


# ------------------------------------------------------------------------------------------------ counts by hand


def said(label, text: str, names: Names | None, task: Task) -> dict:
    asked = Utterance(id="u", task=task.name, language="en", split="test", text="hm", label=label)
    return prediction(asked, task, "speech", text, names=names)


ROUND = {"dark": "light", "light": "mild", "mild": "dark"}
"""A permutation that leaves no label its name."""


def permuted(task: Task, shown: dict[str, str]) -> Names:
    return Names(task.model_copy(update={"labels": [shown[name] for name in task.labels or []]}), shown)


@pytest.mark.parametrize(("label", "text", "parsed", "counts"), [
    ("dark", "light", "dark", [1, 1]),  # the name that the definition of dark stands under
    ("dark", "dark", "mild", [0, 1]),   # the label's own name
    ("dark", "mild", "light", [0, 0]),  # neither
    ("dark", "loud", None, [0, 0]),     # no answer
])  # fmt: skip
def test_a_label_follows_its_definition_or_its_name(label, text, parsed, counts):
    task = Task.model_validate(PITCH)
    row = said(label, text, permuted(task, ROUND), task)
    assert (row["parsed"], row["reference"]) == (parsed, label)
    assert row["counts"][FOLLOWING] == counts
    assert row["counts"]["accuracy"] == [float(parsed == label), 1]


def test_a_set_counts_what_tells_the_two_apart():
    """Of {dark, light} the definitions stand under {light, mild}: `light` is right either way and tells nothing."""
    task = Task.model_validate({**PITCH, "answer": "label_set"})
    counts = {text: said(["dark", "light"], text, permuted(task, ROUND), task)["counts"][FOLLOWING]
              for text in ("light, mild", "dark, light", "light", "mild, dark")}  # fmt: skip
    assert counts == {"light, mild": [1, 1], "dark, light": [0, 1], "light": [0, 0], "mild, dark": [1, 2]}


def test_an_intent_follows_too_and_symbols_tell_nothing():
    task = Task.model_validate({"name": "o", "instruction": {"en": "?"}, "answer": "json", "intents": ["buy", "sell"]})
    swapped = {"buy": "sell", "sell": "buy"}
    names = Names(task.model_copy(update={"intents": ["sell", "buy"]}), swapped)
    row = said({"intent": "buy", "slots": []}, '{"intent": "sell"}', names, task)
    assert row["counts"][FOLLOWING] == [1, 1]
    assert row["parsed"]["intent"] == "buy"
    task = Task.model_validate(PITCH)
    assert FOLLOWING not in said("dark", "alpha", names_at_test(task, "symbol", None, "u"), task)["counts"]


def test_invalid_is_wrong_and_beside_it_the_valid_answers_alone():
    """Three rows of dark, one answered dark, one light, one not at all. Strict: accuracy 1/3; dark has TP 1 and FN 2,
    F1 1/2, light one FP, F1 0: macro 1/4, micro 2/(2+1+2) = .4. Of valid answers: 1/2; F1 2/3 and 0: 1/3; micro
    1/2."""
    task = Task.model_validate({**PITCH, "metrics": ["accuracy", "macro_f1", "micro_f1"]})
    found = score(said("dark", text, None, task) for text in ("dark", "light", "noise"))
    assert found == pytest.approx({
        "accuracy": 1 / 3, "accuracy_answered": 1 / 2, "macro_f1": 1 / 4, "macro_f1_answered": 1 / 3,
        "micro_f1": 0.4, "micro_f1_answered": 1 / 2,
    })  # fmt: skip
    several = Task.model_validate({**PITCH, "answer": "label_set", "metrics": ["macro_f1_all_labels"]})
    found = score(said(["dark", "mild"], text, None, several) for text in ("dark, mild", "dark", "?"))
    assert found == pytest.approx({
        "macro_f1_all_labels": (2 * 2 / 5 + 2 * 1 / 4) / 3 + 0,  # dark TP 2 FN 1; mild TP 1 FN 2
        "macro_f1_all_labels_answered": (1 + 2 / 3) / 3,
    })  # fmt: skip


# ------------------------------------------------------------------------------------------------------- report


def rows_of(right: int, shots: int, labels: str | None = None) -> list[dict]:
    """Twelve answers by four speakers, the first `right` of them right."""
    task, found = Task.model_validate({**PITCH, "metrics": ["accuracy"]}), []
    names = permuted(task, ROUND) if labels else None
    for n in range(12):
        u = Utterance(
            id=f"u{n}", task="pitch", language="en", split="test", text="x", label="dark", speaker=f"s{n % 4}"
        )
        text = ("light" if labels else "dark") if n < right else ("dark" if labels else "light")
        row = prediction(u, task, "speech", text, names=names) | {"shots": shots}
        found.append(row | ({"labels": labels} if labels else {}))
    return found


def a_cell(name: str, kind, values: dict[str, tuple], **settings) -> ScoredCell:
    predictions = {f"speech.{apart}" if apart else "speech": rows_of(*given) for apart, given in values.items()}
    scheme = "untuned" if kind == "control" else "label_permutation"
    return ScoredCell(name, scheme, settings, 0, 0.0, 0.0, kind, [Run(1, 0, predictions), Run(2, 0, predictions)])


@pytest.fixture(scope="module")
def scored():
    random = {"": (9, 5), "1-shot": (6, 1), "0-shot": (3, 0), "permuted": (9, 5, "permuted")}
    regular = {"": (5, 5), "1-shot": (5, 1), "0-shot": (4, 0), "permuted": (0, 5, "permuted")}
    cells = [
        a_cell("labels=random", "cell", random, labels="random"),
        a_cell("labels=regular", "cell", regular, labels="regular"),
        a_cell("untuned", "control", {"": (2, 5), "1-shot": (3, 1), "0-shot": (4, 0)}),
    ]
    return score_rows(report_rows(cells), "accuracy")


def test_every_k_is_a_row_and_schemes_are_compared_at_equal_k(scored):
    assert [row.name for row in scored.rows] == [
        "labels=random", "labels=regular", "labels=random, 0-shot", "labels=random, 1-shot", "labels=random, permuted",
        "labels=regular, 0-shot", "labels=regular, 1-shot", "labels=regular, permuted",
        "untuned", "untuned, 0-shot", "untuned, 1-shot",
    ]  # fmt: skip
    assert scored.reference.name == "labels=random"
    asked = {frozenset((q.a.name, q.b.name)) for q in scored.questions if q.asked}
    for apart in ("", ", 0-shot", ", 1-shot", ", permuted"):
        assert frozenset((f"labels=random{apart}", f"labels=regular{apart}")) in asked
    assert frozenset(("labels=random, 0-shot", "labels=random")) in asked  # the ends of the curve
    assert frozenset(("labels=random, 0-shot", "labels=random, 1-shot")) not in asked
    assert frozenset(("labels=random, 0-shot", "labels=regular, 1-shot")) not in asked


def test_the_report_says_how_the_test_was_put(scored, tmp_path):
    said = document(scored, "s", "b", [])
    text = whole(scored, said)
    assert "Rows that do not say how they were tested are the main ones: 5 demonstrations" in " ".join(text.split())
    follows = [line for line in said["findings"] if "follows the definition" in line]
    assert [line.split(" follows")[0] for line in follows] == ["labels=random, permuted", "labels=regular, permuted"]
    assert ".75 (" in follows[0]
    assert ".00 (" in follows[1]
    curves = curves_over_shots(said["pooled"])
    values = {name: [(row["shots"], round(row["value"], 2)) for row in own] for name, own in curves.items()}
    assert values == {
        "labels=random": [(0, 0.25), (1, 0.5), (5, 0.75)], "labels=regular": [(0, 0.33), (1, 0.42), (5, 0.42)],
        "untuned": [(0, 0.33), (1, 0.25), (5, 0.17)],
    }  # fmt: skip
    draw(said, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 10_000
    assert not any(", 1-shot" in line for line in said["findings"] if "is better than every tuned row" in line)


def test_a_score_says_its_condition_in_words():
    assert in_words({"modality": "speech"}) == "speech"
    assert in_words({"modality": "speech", "shots": 0}) == "speech, 0-shot"
    full = {"modality": "text", "shots": 3, "labels": "permuted", "query_text": "asr"}
    assert in_words(full) == "text, 3-shot by asr, labels permuted"


def test_the_first_of_each_list_is_the_main_condition():
    evaluate = Evaluate.model_validate(
        {"demos": {"k": [5, 0], "retriever": "tfidf", "query_text": ["gold", "asr"]}, "labels": ["regular", "permuted"]}
    )
    assert list(evaluate.conditions()) == [
        "", "query-asr", "permuted", "permuted.query-asr", "0-shot", "0-shot.permuted",
    ]  # fmt: skip
    assert list(Evaluate().conditions()) == [""]
