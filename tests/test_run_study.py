"""A study from its file to its report, in one warm process, on a random toy base and real waveforms."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import toy
import yaml
from specs import corpus_folder

from trainer.__main__ import main, newest_result
from trainer.corpus import Reader
from trainer.report_rows import report_rows, scored_cell
from trainer.result import Result
from trainer.run import run
from trainer.run_study import _left_out
from trainer.store import FolderStore
from trainer.study import StudySpec, expand, load, presentations


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return toy.base(folder / "base"), toy.data(folder / "data")


def study(world, **changes) -> dict:
    base, _ = world
    return {
        "study": "tones",
        "base": str(base),
        "language": "en",
        "data": {"text": "text", "speech": "speech"},
        "recipe": {"name": "limited_speech", "speech_presentations": 1, "late_share": 0.5},
        "grid": {"scheme": ["text_only", "direct_mix", "curriculum"], "speech_fraction": ["50%"], "seed": [1, 2]},
        "also": [{"scheme": "speech_only", "seed": [1, 2]}],
        "controls": ["majority", "untuned", "linear_probe", "cascade", "exposure_matched"],
        "tuning": {"rank": 2, "encoder": "frozen"},
        "steps": 4,
        "global_batch": 8,
        "evaluate": {"decode": {"max_new_tokens": 3}},
        **changes,
    }


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    """The finished study: (folder, its file)."""
    out = tmp_path_factory.mktemp("out")
    path = out / "study.yaml"
    path.write_text(yaml.safe_dump(study(world)))
    assert main([str(path), "--out", str(out / "made"), "--data-root", str(world[1])]) == 0
    return out / "made", path


def test_the_report_has_every_cell_seed_and_control(done):
    rows = json.loads((done[0] / "report.json").read_text())["rows"]
    runs = {(r["row"], r["seed"]) for r in rows if r["seed"] is not None}
    assert {("text_only", 1), ("text_only", 2)} <= runs
    for scheme in ("direct_mix", "curriculum"):
        assert {(f"{scheme} speech_fraction=50%", 1), (f"{scheme} speech_fraction=50%", 2)} <= runs
    names = {r["row"] for r in rows}
    controls = {"majority", "untuned", "linear probe, 9 recordings", "linear probe, 18 recordings"}
    assert controls | {"speech_only", "text_only, cascade"} <= names
    for row in rows:
        assert {"scheme", "speech_fraction", "speech_presentations", "seed", "metric", "value"} <= set(row)
        assert row["ci_low"] <= row["value"] <= row["ci_high"]
        assert row["n"] == 9


def test_text_only_is_trained_once_per_seed_and_jobs_are_whole(done):
    jobs = sorted((done[0] / "jobs").iterdir())
    assert len(jobs) == 8 + 4  # and the baselines: majority, untuned, a probe on 9 and one on 18 recordings
    assert all((job / "final.json").is_file() for job in jobs)


def test_picture_and_table_are_there(done):
    assert (done[0] / "learning_curve.png").read_bytes()[:4] == b"\x89PNG"
    table = (done[0] / "report.txt").read_text()
    assert "direct_mix speech_fraction=50% is the exposure-matched control" in " ".join(table.split())


def test_a_second_call_trains_nothing_and_says_the_same(done, world, capsys):
    before = (done[0] / "report.json").read_bytes()
    attempts = sorted(str(p) for p in (done[0] / "jobs").glob("*/attempts/*"))
    assert main([str(done[1]), "--out", str(done[0]), "--data-root", str(world[1])]) == 0
    assert (done[0] / "report.json").read_bytes() == before
    assert sorted(str(p) for p in (done[0] / "jobs").glob("*/attempts/*")) == attempts


def test_a_neutral_strategy_is_plain_fine_tuning_bit_for_bit(world, tmp_path):
    """limited_speech that shows recordings as often as sentences = sft: same adapter bytes (equality B)."""
    adapters = []
    recipes = ({"name": "sft"}, {"name": "limited_speech", "speech_presentations": "per_epoch"})
    for n, recipe in enumerate(recipes):
        resolved, corpus = toy.resolved(*world, recipe=recipe, steps=4)
        store = FolderStore(tmp_path / str(n))
        result = run(resolved, store, corpus=corpus, threads=1)
        assert result.outcome == "succeeded"
        adapters.append(store.get(f"{result.checkpoint}/adapter/adapter_model.safetensors"))
    assert adapters[0] == adapters[1]


def test_studies_refuse_ranks(world, tmp_path, capsys):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study(world)))
    assert main([str(path), "--out", str(tmp_path / "o"), "--ranks", "2", "--data-root", str(world[1])]) == 2
    assert "a study runs in one process" in capsys.readouterr().err


def test_an_interrupted_study_goes_on_and_says_the_same(done, world, tmp_path):
    """Ctrl-C in the third job (a child process, as a user would press it): a checkpoint, then the same report."""
    path = tmp_path / "study.yaml"
    path.write_text(done[1].read_text())
    command = [sys.executable, "-m", "attune.cli", "run", str(path), "--out", str(tmp_path / "out")]
    command += ["--data-root", str(world[1])]
    root = Path(__file__).parent.parent
    child = subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert child.stderr is not None
    said = b""
    while b"[3/12]" not in said:  # the bar says which job it is at
        part = os.read(child.stderr.fileno(), 4096)
        assert part, said.decode()
        said += part
    child.send_signal(signal.SIGINT)
    rest = child.stderr.read()
    assert child.wait(timeout=120) == 1, (said + rest).decode()
    assert b"stopping after this step, with a checkpoint" in rest
    assert b"the same command goes on from there" in rest
    assert main([str(path), "--out", str(tmp_path / "out"), "--data-root", str(world[1])]) == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == json.loads(
        (done[0] / "report.json").read_text()
    )


def test_a_job_of_a_study_that_cannot_begin_leaves_a_result_under_its_name(world, tmp_path, capsys):
    path, out = tmp_path / "study.yaml", tmp_path / "out"
    grid = {"scheme": ["direct_mix"], "speech_per_label": [2, 99], "seed": [1]}
    path.write_text(yaml.safe_dump(study(world, grid=grid, also=[])))
    command = [str(path), "--out", str(out), "--data-root", str(world[1])]
    assert main(command) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("tones/99 per label: data.speech_per_label: label ")
    result = newest_result(str(out))
    assert (result.name, result.reason) == ("tones/99 per label", "invalid_spec")
    assert (result.outcome, result.message) == ("failed", said)
    (out / "report.json").write_text("{}")  # a finished study
    assert main(command) == 2
    assert newest_result(str(out)).attempt == 1
    path.write_text(yaml.safe_dump(study(world, data={"text": "text", "speech": "nowhere"}, also=[])))
    assert main([*command[:2], str(tmp_path / "other"), *command[3:]]) == 2
    assert newest_result(str(tmp_path / "other")).reason == "invalid_data"


def test_runs_know_their_subset_and_those_without_result_are_listed(tmp_path):
    data = {"corpus": str(corpus_folder(tmp_path)), "speech_fraction": "50%"}
    grid = {"scheme": ["text_only", "direct_mix"], "seed": [1, 2], "subset_seed": [3, 4]}
    plain = study((Path("models/tiny"), tmp_path), data=data, grid=grid, also=[], controls=[])
    found = expand(StudySpec.model_validate(plain), Reader())
    rows = {key: {"speech": [], "text": []} for key in found.jobs()}
    text, mixed, *twins = report_rows([scored_cell(cell, rows) for cell in found.cells])
    assert mixed.subsets == {"3/1": 3, "4/1": 4, "3/2": 3, "4/2": 4}
    assert [row.subsets for row in twins] == [text.subsets, mixed.subsets]
    assert set(text.subsets) == {1, 2}
    assert len(set(text.subsets.values())) == 1
    last = found.cells[1].runs[-1]
    ended = {"outcome": "failed", "reason": "diverged", "message": "loss nan"}
    why = Result(name="x", attempt=1, attempts=[1], steps=3, planned_steps=4, **ended)
    listed = {"row": "direct_mix", "seed": "4/2", "job": f"jobs/{last.hash[:16]}", **ended}
    assert _left_out(found, {last.hash: why}) == [listed]
    assert found.notes[-1].startswith("tones/direct_mix seed 2 is left out: diverged: loss nan (jobs/")


def test_one_base_and_no_s3_for_a_study(world, tmp_path, capsys):
    path = tmp_path / "study.yaml"
    grid = {"scheme": ["text_only"], "base": [str(world[0]), "models/tiny"]}
    path.write_text(yaml.safe_dump(study(world, grid=grid)))
    assert main([str(path), "--out", str(tmp_path / "o"), "--data-root", str(world[1])]) == 2
    assert "base: the cells of a study share one" in capsys.readouterr().err
    grid = {"scheme": ["text_only"], "evaluate.metric": ["accuracy", "macro_f1"]}
    path.write_text(yaml.safe_dump(study(world, grid=grid)))
    assert main([str(path), "--out", str(tmp_path / "o"), "--data-root", str(world[1])]) == 2
    assert "evaluate.metric: the cells of a study share one" in capsys.readouterr().err
    path.write_text(yaml.safe_dump(study(world)))
    assert main([str(path), "--out", "s3://bucket/x", "--data-root", str(world[1])]) == 2
    assert "a study writes to a folder" in capsys.readouterr().err


@pytest.mark.parametrize("suite", ["arabic-commands", "coffee-orders"])
def test_the_demos_plan_what_they_say(suite, monkeypatch):
    root = Path(__file__).parent.parent
    monkeypatch.chdir(root)
    demo = load(root / "suites" / f"{suite}.yaml")
    assert isinstance(demo, StudySpec)
    found = expand(demo, Reader())
    assert {"majority", "untuned", "linear_probe", "exposure_matched"} <= set(found.controls)
    mixing = [c for c in found.cells if c.settings.get("scheme") in ("direct_mix", "curriculum")]
    assert len({round(presentations(c.runs[0]), 6) for c in mixing}) == 1
    assert len({run.steps for c in found.cells for run in c.runs}) == 1
    assert all(len(c.runs) >= 2 for c in found.cells)


def test_the_text_speech_gap_is_said(done):
    words = " ".join((done[0] / "report.txt").read_text().split())
    assert "text_only on transcripts instead of speech:" in words
