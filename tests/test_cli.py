"""The front door as a user meets it: real files, real exit codes, no torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from specs import corpus_folder, job

from attune.cli import main

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "suites" / "examples").glob("*.yaml"))


@pytest.fixture
def spec(tmp_path, monkeypatch):
    """A job file over a small corpus, run from the repository's root."""
    monkeypatch.chdir(ROOT)
    path = tmp_path / "job.yaml"
    recipe = {"name": "limited_speech", "scheme": "curriculum"}
    path.write_text(yaml.safe_dump(job(corpus_folder(tmp_path / "data"), recipe=recipe)))
    return path


def test_explain_shows_stages_and_every_field(spec, capsys):
    assert main(["explain", str(spec)]) == 0
    out = capsys.readouterr().out
    assert "text_first: 7 steps; text 100.0%" in out
    assert "mixed_last: 3 steps" in out
    assert "checkpoint_every: 200" in out
    assert "spec_hash" in out


def test_explain_as_json_is_the_resolved_job(spec, capsys):
    assert main(["explain", str(spec), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["spec_hash"]) == 64
    assert [s["steps"] for s in found["stages"]] == [7, 3]


def test_several_specs_are_explained_in_turn_and_a_study_with_what_its_cells_share(spec, tmp_path, capsys):
    fields = {key: value for key, value in yaml.safe_load(spec.read_text()).items() if key != "name"}
    grid = {"study": "two", "grid": {"scheme": ["text_only", "direct_mix"]}, "tuning": {"encoder": "frozen"}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**fields, **grid, "controls": []}))
    assert main(["explain", str(tmp_path / "study.yaml"), str(spec)]) == 0
    out = capsys.readouterr().out
    assert "text_only: 1 run(s); text_only 10 steps (text 100.0%) at 0.0001, trains lm;" in out
    shared = out.split("every field that all cells share")[1].split("spec_hash")[0]
    assert "global_batch: 8" in shared
    assert "scheme" not in shared
    assert out.index("study two") < out.index("t  spec_hash")


@pytest.mark.parametrize(("recipe", "says"), [
    ("majority", "needs no model"), ("untuned", "of answering the test, "), ("linear_probe", "of answering the test, "),
])  # fmt: skip
def test_plan_of_a_baseline_counts_what_it_answers(spec, capsys, recipe, says):
    fields = {key: value for key, value in yaml.safe_load(spec.read_text()).items() if key != "steps"}
    spec.write_text(yaml.safe_dump({**fields, "recipe": recipe}))
    assert main(["plan", str(spec)]) == 0
    out = capsys.readouterr().out
    assert says in out
    assert "of training" not in out


def test_plan_counts_exactly(spec, capsys):
    assert main(["plan", str(spec), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["examples"] == 80
    speech, text = found["sources"]["speech"], found["sources"]["text"]
    assert (speech["rows"], speech["presentations"], speech["times_shown"]) == (12, 12, 1.0)
    assert text["presentations"] == 68
    assert speech["audio_s"] == pytest.approx(12 * (1.0 + 5.5 / 10), abs=0.1)
    assert text["tokens"] > 68 * 10
    assert 0 < found["smallest_difference"] <= 1


def test_plan_draws_the_mix(spec, capsys):
    assert main(["plan", str(spec)]) == 0
    out = capsys.readouterr().out
    assert "text_first: 7 steps | mixed_last: 3 steps" in out
    assert "█" in out


def test_a_bad_spec_exits_2_and_says_where(spec, capsys):
    fields = yaml.safe_load(spec.read_text())
    spec.write_text(yaml.safe_dump({**fields, "langauge": "en"}))
    assert main(["explain", str(spec)]) == 2
    assert "langauge: unknown key; did you mean 'language'?" in capsys.readouterr().err


def test_a_run_that_cannot_begin_leaves_a_result(spec, tmp_path, capsys):
    fields = yaml.safe_load(spec.read_text())
    spec.write_text(yaml.safe_dump({**fields, "langauge": "en"}))
    assert main(["run", str(spec), "--out", str(tmp_path / "out")]) == 2
    result = json.loads((tmp_path / "out" / "attempts" / "1" / "result.json").read_text())
    assert (result["name"], result["outcome"], result["reason"]) == ("job", "failed", "invalid_spec")
    assert result["message"] in capsys.readouterr().err


def test_validate_lists_bad_rows_and_exits_2(spec, capsys):
    """The corpus names recordings that do not exist: every row of them is listed."""
    assert main(["validate", str(spec)]) == 2
    out = capsys.readouterr().out
    assert "no such file; correct the path" in out
    assert "train-0" in out


def test_validate_takes_a_data_set(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(["validate", "data/librispeech_mini:test"]) == 0
    out = capsys.readouterr().out
    assert "43 recordings" in out
    assert "  durations: 1.63 to 12.845 s, median 3.76, 95 % up to 10.794\n  rates: 16000 Hz 43\n" in out


def test_validate_takes_a_study_with_its_controls(spec, capsys):
    fields = yaml.safe_load(spec.read_text())
    del fields["name"]
    study = {"study": "s", **fields, "grid": {"seed": [1, 2]}, "controls": ["majority"]}
    study["recipe"] = {"name": "limited_speech", "scheme": "direct_mix"}
    spec.write_text(yaml.safe_dump(study))
    assert main(["validate", str(spec)]) == 2
    out = capsys.readouterr().out
    assert "no such file; correct the path" in out
    assert "labels (4): " in out


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_the_three_shapes_of_the_design_are_understood(path, capsys, monkeypatch):
    """Each is read as written; what stops it is its absent data or what is not built yet, by name."""
    monkeypatch.chdir(ROOT)
    code = main(["explain", str(path)])
    captured = capsys.readouterr()
    expected = {
        "coffee-it": (2, "evaluate.folds: cross-validation is not built yet"),
        "limited-speech-fr": (2, "data.corpus: "),
        "nightly-slu": (0, "running suites needs the service"),
    }[path.stem]
    assert code == expected[0]
    assert expected[1] in captured.out + captured.err


def test_schema_and_reference_are_the_committed_ones(capsys):
    assert main(["schema"]) == 0
    assert capsys.readouterr().out == (ROOT / "docs" / "spec.schema.json").read_text()
    assert main(["schema", "--markdown"]) == 0
    assert capsys.readouterr().out == (ROOT / "docs" / "spec.md").read_text()


def test_import_makes_a_data_set_that_validates(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    table = tmp_path / "calls.csv"
    clips = [f"data/librispeech_mini/audio/test/237-134500-{n:04d}.ogg" for n in range(4)]
    lines = [f"{ROOT / clip},hello number {n},greet,speaker{n}" for n, clip in enumerate(clips)]
    table.write_text("audio,text,label,speaker\n" + "\n".join(lines) + "\n")
    out = tmp_path / "calls"
    assert main(["import", str(table), "--out", str(out), "--language", "en"]) == 0
    capsys.readouterr()
    assert main(["validate", str(out)]) == 0
    assert "4 recordings" in capsys.readouterr().out


def test_the_front_door_never_loads_torch():
    code = "import sys, attune.cli; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'peft', 'ray')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(("command", "extras"), [
    ("up", "service,embedded,ray,trainer"), ("down", "service"), ("reingest", "service"),
])  # fmt: skip
def test_a_package_that_is_missing_is_named_with_the_command_that_brings_it(
    monkeypatch, capsys, tmp_path, command, extras
):
    monkeypatch.setitem(sys.modules, "attune.local", None)
    assert main([command, "--data", str(tmp_path)]) == 1
    assert f"attune.local is not installed: pip install 'attune[{extras}]'" in capsys.readouterr().err
