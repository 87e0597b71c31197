"""Several tasks in one report: ranks by hand; how soon a cell comes near the best on the dev set."""

import json

import pytest

from trainer.dev_curves import dev_report, near_the_best, sentences, steps_to
from trainer.report_rows import Run, ScoredCell
from trainer.result import DevScore
from trainer.spec import Task
from trainer.task_reports import asked, of_task, ranks
from trainer.write_report import Report, write_tasks


def test_ranks_by_hand():
    values = {"a": 0.5, "b": 0.7, "c": 0.5, "d": 0.1}
    assert ranks(values, higher_is_better=True) == {"a": 2.5, "b": 1, "c": 2.5, "d": 4}
    assert ranks({"a": 0.5, "b": 0.7}, higher_is_better=False) == {"a": 1, "b": 2}


def cell(name, *runs):
    """Of predictions {modality: tasks of its rows}; utterances are numbered."""
    found = [
        {name: [{"task": t, "utterance": f"{t}{n}"} for n, t in enumerate(tasks)] for name, tasks in run.items()}
        for run in runs
    ]
    made = [Run(seed, 0, rows) for seed, rows in enumerate(found)]
    return ScoredCell(name, name, {}, 0, 0.0, 0.0, "cell", made)


def test_what_answered_a_task_is_what_has_rows_of_it():
    both = cell("both", {"speech": ["asr", "tone", "asr"], "text": ["tone"]})
    half = cell("half", {"speech": ["tone"]}, {"speech": ["asr"]})
    cells = [both, cell("majority", {"speech": ["tone", "tone"]}), half]
    heard = of_task(cells, "asr")
    assert [(c.name, [run.seed for run in c.runs]) for c in heard] == [("both", [0]), ("half", [1])]
    assert heard[0].runs[0].predictions == {"speech": [both.runs[0].predictions["speech"][n] for n in (0, 2)]}
    assert [list(c.runs[0].predictions) for c in of_task(cells, "tone")] == [["speech", "text"], ["speech"], ["speech"]]


def test_tasks_are_reported_by_their_own_metric_and_from_two_utterances_on():
    asr, tone = (
        Task.model_validate({"name": name, "instruction": {"en": "?"}, "metrics": metrics, **form})
        for name, metrics, form in (
            ("asr", ["wer", "cer"], {"answer": "text"}),
            ("tone", ["macro_f1", "accuracy", "invalid_rate"], {"answer": "label", "labels": ["a"]}),
        )
    )
    several = [cell("a", {"speech": ["asr", "asr", "tone", "tone"]})]
    assert asked(several, [tone, asr], "accuracy") == (
        {"tone": ("macro_f1", ["accuracy"]), "asr": ("wer", ["cer"])}, []
    )  # fmt: skip
    alone = [cell("a", {"speech": ["tone"] * 3})]
    assert asked(alone, [tone, asr], "accuracy") == ({"tone": ("accuracy", ["macro_f1"])}, [])
    made, notes = asked([cell("a", {"speech": ["asr", "tone", "tone"]})], [tone, asr], "accuracy")
    assert list(made) == ["tone"]
    assert notes == ["asr: 1 utterance was tested, and a report takes two"]


def report(metric, **values):
    pooled = [{"row": name, "kind": "cell", "value": value} for name, value in values.items()]
    return Report("", {"metric": metric, "pooled": [*pooled, {"row": "majority", "kind": "control", "value": 9}]}, ())


def test_the_mean_rank_takes_errors_and_scores_each_its_way(tmp_path):
    reports = {"asr": report("wer", uniform=0.3, ads=0.4), "emotion": report("macro_f1", uniform=0.5, ads=0.6),
               "dialect": report("macro_f1", uniform=0.5, ads=0.7)}  # fmt: skip
    made = write_tasks(tmp_path, reports, "study", "base", ["a note"])
    said = json.loads((tmp_path / "report.json").read_text())
    assert [(row["row"], row["mean_rank"]) for row in said["rows"]] == [
        ("ads", pytest.approx(4 / 3)),
        ("uniform", pytest.approx(5 / 3)),
    ]
    assert said["rows"][0]["tasks"]["asr"] == {"metric": "wer", "value": 0.4, "rank": 2}
    assert "ads      1.33       .40 [2]  .60 [1]  .70 [1]" in made.text
    assert "majority" not in made.text


def curve(*values, tasks=()):
    return [DevScore(step=10 * (n + 1), value=v, tasks=dict(tasks)) for n, v in enumerate(values)]


def test_steps_are_counted_to_nine_tenths_of_the_way_to_the_best():
    found = {"uniform": {1: curve(0.1, 0.3, 0.6, 1.0), 2: curve(0.1, 0.95)}, "ads": {1: curve(0.2, 0.2)}}
    said = dev_report(found, None, higher_is_better=True)
    assert said["target"] == pytest.approx(0.91)
    assert [(run["row"], run["seed"], run["steps_to_target"]) for run in said["rows"]] == [
        ("uniform", 1, 40), ("uniform", 2, 20), ("ads", 1, None),
    ]  # fmt: skip
    assert sentences(said) == [
        "uniform: the dev set's .91 is reached after 30 steps.", "ads: the dev set's .91 is reached in no run.",
    ]  # fmt: skip


def test_errors_fall_to_their_target():
    assert near_the_best([{10: 1.0, 20: 0.2}, {10: 0.5}], higher_is_better=False) == pytest.approx(0.28)
    assert steps_to({10: 1.0, 20: 0.3, 30: 0.2}, 0.28, higher_is_better=False) == 30


def test_a_task_has_a_curve_of_its_own_metric():
    found = {"ads": {1: curve(0.5, 0.5, tasks={"asr": 0.25}.items())}}
    assert dev_report(found, "asr", higher_is_better=False)["rows"][0]["curve"] == [(10, 0.25), (20, 0.25)]
    assert dev_report(found, "emotion", higher_is_better=False) == {}
    assert sentences({}) == []
