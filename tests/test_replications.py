"""Replications: verdicts follow from rows and curves, the page from what is stored, and every study runs."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from benchmarks.replications import page
from benchmarks.replications.__main__ import DATA, PAPERS, ROOT, SUITES
from benchmarks.replications.collect import collect, store
from benchmarks.replications.findings import Evidence, Verdict, judge
from benchmarks.replications.speech import SETS, UNSEEN, build
from trainer.report import ReportRow
from trainer.run_study import run_study
from trainer.spec import read_yaml
from trainer.study import StudySpec

SMALL = {
    "limited_speech": {"steps": 2, "grid": {"scheme": ["curriculum"], "speech_fraction": ["10%"], "seed": [1, 2]}},
    "data_scheduling": {"steps": 4},
    "salad": {"steps": 2, "recipe": {"name": "salad", "text_share": 0.3333, "measure_every": 1}},
    "label_permutation": {"steps": 2},
    "contrastive": {"steps": 3, "recipe": {"name": "contrastive", "pretrain_epochs": 0.02}},
}
"""What makes one cell of each study short."""


def row(name: str, accuracy: float, seeds: int = 3) -> ReportRow:
    """40 speakers of 5 utterances, of which this share is right, the same in every seed but for one utterance."""
    right = np.arange(200) % 10 < round(10 * accuracy)
    runs = {}
    for seed in range(seeds):
        answers = right.copy()
        answers[seed] ^= True
        runs[seed] = [
            {"utterance": f"u{n}", "speaker": f"s{n % 40}", "task": "t", "counts": {"accuracy": [int(ok), 1]}}
            for n, ok in enumerate(answers)
        ]
    return ReportRow(name, name, 0, None, 0.0, runs)


def verdict(*checks: dict, **curves) -> str:
    rows = {r.name: r for r in (row("worse", 0.3), row("same", 0.3), row("better", 0.7), row("single", 0.7, 1))}
    by_row = {name: {k: {"m": list(enumerate(run))} for k, run in enumerate(runs)} for name, runs in curves.items()}
    return judge({"says": "", "checks": list(checks)}, Evidence("accuracy", rows, by_row))[0]


@pytest.mark.parametrize(("check", "says"), [
    ({"better": ["worse", "better"]}, "reproduced"),
    ({"better": ["better", "worse"]}, "not reproduced"),
    ({"better": ["worse", "same"]}, "not reproduced"),
    ({"close": ["worse", "same"], "margin": 0.05}, "reproduced"),
    ({"close": ["worse", "better"], "margin": 0.05}, "not reproduced"),
    ({"no_better": ["worse", "same"], "margin": 0.05}, "reproduced"),
    ({"no_better": ["worse", "better"], "margin": 0.05}, "not reproduced"),
    ({"better": ["worse", "never trained"]}, "not run yet"),
    ({"better": ["worse", "single"]}, "not run yet"),
])  # fmt: skip
def test_verdicts_on_rows(check, says):
    assert verdict(check) == says


def test_verdicts_on_curves():
    high, low = [[1.0, 0.9], [1.0, 0.91], [1.0, 0.92]], [[1.0, 0.2], [1.0, 0.21], [1.0, 0.22]]
    curves = {"worse": high, "better": low}
    assert verdict({"lower": ["worse", "better"], "of": "m"}, **curves) == "reproduced"
    assert verdict({"lower": ["better", "worse"], "of": "m"}, **curves) == "not reproduced"
    assert verdict({"lower": ["better", "worse"], "of": "m", "take": "spread"}, **curves) == "reproduced"
    assert verdict({"falls": "better", "of": "m"}, **curves) == "reproduced"
    assert verdict({"rises": "better", "of": "m"}, **curves) == "not reproduced"
    assert verdict({"small": "better", "of": "m", "margin": 0.3}, **curves) == "reproduced"
    assert verdict({"small": "worse", "of": "m", "margin": 0.3}, **curves) == "not reproduced"
    assert verdict({"opposed": ["worse", "better"], "of": "m"}, **curves) == "reproduced"
    assert verdict({"falls": "same", "of": "m"}, **curves) == "not run yet"


def test_all_checks_have_to_hold_and_the_untestable_is_not_judged():
    assert verdict({"better": ["worse", "better"]}, {"better": ["worse", "same"]}) == "not reproduced"
    assert judge({"says": "", "untestable": "deaf"}, Evidence("accuracy", {}))[0] == "not testable here"


def test_the_page_is_what_the_stored_results_say():
    assert page.PAGE.read_text(encoding="utf-8") == page.text(), "run make replication-docs"


@pytest.mark.parametrize("name", SETS)
def test_test_voices_and_sentences_are_those_of_no_training_split(name):
    splits = SETS[name]()
    texts = {key: {sentence.text for sentence, *_ in split.rows} for key, split in splits.items()}
    held = splits.keys() & {"test", "heard"}
    for key in splits.keys() - held:
        assert not texts[key] & set().union(*(texts[other] for other in held))
        assert not set(splits[key].voices) & set(UNSEEN)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name in sorted({n for names in DATA.values() for n in names}):
        build(name, folder / "build" / "replications", most=24)
    return folder


@pytest.mark.parametrize("paper", PAPERS)
def test_one_cell_of_every_study_runs_and_is_judged(paper, data, tmp_path):
    said = read_yaml(SUITES / f"{paper}.yaml")
    grid = {key: values[:2] if key == "seed" else values[:1] for key, values in said["grid"].items() if key != "steps"}
    evaluate = {**said["evaluate"], "limit": 8}
    study = StudySpec.model_validate(
        {**said, "grid": grid, "also": [], "controls": [], "evaluate": evaluate, **SMALL[paper]}
    )
    roots = [data, ROOT]
    run_study(study, tmp_path, roots)
    found = collect(study, tmp_path, SUITES / f"{paper}.findings.yaml", roots)
    assert found["jobs"] == {"done": 2, "of": 2}
    assert {f["verdict"] for f in found["findings"]} <= {*get_args(Verdict)}
    assert all(0 <= row["value"] <= 1 for row in found["rows"])
    store(paper, found, tmp_path)
    page.draw(found, tmp_path / "figure.svg")
    assert "all 2 jobs run" in page.text(tmp_path)
