"""`--tiny`: every preset and demo in small, planned here; tests/test_presets_service.py trains the presets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from attune.cli import main
from attune.places import SHORT
from attune.tiny import FORMS, OWN_STEPS, STEPS, differences, tiny
from trainer.balance import needs_vectors
from trainer.context import context, has_context
from trainer.corpus import Reader, tasks_of
from trainer.estimate import estimate
from trainer.fields import SpecError
from trainer.manifest import load as rows_of
from trainer.plan import plan_stage
from trainer.resolve import read_and_resolve
from trainer.spec import read_yaml
from trainer.study import StudySpec, expand, parse
from trainer.validate import validate_dataset

ROOT = Path(__file__).parent.parent
SPECS = sorted([*(ROOT / "suites" / "presets").glob("*.yaml"), *(ROOT / "suites").glob("*.yaml")])
JOB = {"name": "t", "base": "owner/name", "language": "it", "data": {"speech": "calls"}, "evaluate": {"on": "calls:x"}}

OTHERS = {"seed", "subset_seed", "speech_per_label", "speech_rows", "text_rows", "base", *SHORT}
"""Keys of a grid whose values are replaced."""


def words(values) -> set[str]:
    return {str(value) for value in values}


@pytest.mark.parametrize("path", SPECS, ids=[p.stem for p in SPECS])
def test_it_is_planned_offline_from_a_clone(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    given = read_yaml(path)
    made = tiny(given)
    meant, read = parse(made), Reader()
    if isinstance(meant, StudySpec):
        found = expand(meant, read)
        runs = [run for cell in (*found.cells, *found.baselines) for run in cell.runs]
        assert len({run.spec.seed for cell in found.cells for run in cell.runs}) == 1
        cells = [{key: value[0] for key, value in meant.grid.items()}, *meant.also]
        for key in meant.grid.keys() - OTHERS:  # every value, in as few cells as there are values
            assert words(given["grid"][key]) <= words(cell[key] for cell in cells if key in cell), key
        assert len(found.cells) <= max(len(v) for v in given["grid"].values()) + 2 * len(given.get("also", [])) + 1
    else:
        runs = [read_and_resolve(meant)[0]]
    for run in runs:
        corpus = read(run.spec)
        assert run.spec.base == "models/tiny"
        pins = [*run.sources.values(), run.test, *([run.dev] if run.dev else []), *(g.pin for g in run.guards)]
        assert all("data/tiny/" in str(pin.ref) for pin in pins)
        assert run.steps <= max(STEPS)
        assert type(run).model_validate_json(run.model_dump_json(by_alias=True)) == run  # as it is stored
        for n, stage in enumerate(run.stages):
            if needs_vectors(stage, [*corpus.tasks.values()]):
                continue  # the plan waits for what the model makes of the rows
            plan = plan_stage(run, n, corpus)
            assert len(plan) == stage.steps * run.spec.global_batch
            if has_context(stage):
                assert len(context(run, n, plan, corpus).row) == len(plan)
        assert run.test is not None
        assert estimate(run, corpus).test_utterances == (16 if "/mixed:" in run.test.ref else 8)


def test_all_that_is_replaced_is_said(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    spec = {**JOB, "family": "voxtral", "steps": 900, "precision": "bf16", "recipe": "sft", "resources": {"gpus": 2}}
    Path("job.yaml").write_text(yaml.safe_dump(spec))
    assert main(["explain", "job.yaml", "--tiny"]) == 0
    told = capsys.readouterr()
    said = [line.removeprefix("tiny: ") for line in told.err.splitlines()]
    assert {line.split(":")[0] for line in said} == {
        "name", "base", "language", "data.speech", "evaluate.on", "evaluate.limit", "evaluate.decode", "family",
        "precision", "resources", "steps", "global_batch",
    }  # fmt: skip
    assert f"base: owner/name → {ROOT / 'models' / 'tiny'}" in said
    assert "steps: 900 → 4" in said
    assert "t tiny  spec_hash" in told.out


def test_what_says_its_own_length_is_short_too():
    stage = {"name": "one", "steps": 700, "mix": {"speech": 1.0}}
    recipe = {"name": "custom", "stages": [stage, {**stage, "name": "two", "steps": 1}]}
    made = tiny({**JOB, "recipe": recipe})
    assert [s["steps"] for s in made["recipe"]["stages"]] == [OWN_STEPS, 1]
    assert "steps" not in made
    assert "steps" not in tiny({**JOB, "recipe": "majority"})
    asking = {"name": "label_permutation", "demonstrations": {"most": 2, "retriever": "BAAI/llm-embedder"}}
    assert tiny({**JOB, "recipe": asking})["recipe"]["demonstrations"]["retriever"] == "tfidf"


def test_a_grid_is_small_too():
    study = {**{k: v for k, v in JOB.items() if k != "name"}, "study": "s", "recipe": {"name": "label_permutation"}}
    grid = {"recipe.demonstrations.retriever": ["BAAI/llm-embedder", "random"], "recipe.labels": ["regular"]}
    made = tiny({**study, "grid": grid})
    cells = [{k: v[0] for k, v in made["grid"].items()}, *made["also"]]
    assert [cell["recipe.demonstrations.retriever"] for cell in cells] == ["tfidf", "random"]


def test_the_fewest_steps_that_the_recipe_accepts():
    once = {"name": "limited_speech", "scheme": "direct_mix", "speech_presentations": 3}
    made = tiny({**JOB, "data": {"text": "a", "speech": "b"}, "recipe": once})
    assert made["steps"] == 16  # 96 recordings in steps of 8
    grouped = {"name": "contrastive", "group_size": 6, "pretrain_epochs": 1}
    assert tiny({**JOB, "recipe": grouped, "global_batch": 12})["global_batch"] == 12
    with pytest.raises(SpecError, match="do not fit into the"):
        tiny({**JOB, "data": {"text": "a", "speech": "b"}, "recipe": {**once, "speech_presentations": 1000}})


@pytest.mark.parametrize(("fields", "forms"), [
    ({"evaluate": {"on": "x", "metric": "slu_f1"}}, ("json", "json")),
    ({"evaluate": {"on": "x", "metric": "wer"}}, ("text", "text")),
    ({"evaluate": {"on": "x", "metric": "macro_f1"}, "tasks": [
        {"name": "a", "instruction": {"en": "?"}, "answer": "label", "labels": ["x"]},
        {"name": "b", "instruction": {"en": "?"}, "answer": "label_set", "labels": ["y"]},
    ]}, ("mixed", "label_set")),
    ({"tasks": ["asr", "dialect"]}, ("mixed", "mixed")),
    ({"tasks": ["asr"]}, ("text", "text")),
])  # fmt: skip
def test_data_have_the_form_that_is_asked_for(fields, forms):
    made = tiny({**JOB, **fields})
    assert [Path(ref).parts[-1] for ref in (made["data"]["speech"], made["evaluate"]["on"])] == [
        f"{forms[0]}:train", f"{forms[1]}:test"
    ]  # fmt: skip


def test_specs_that_cannot_be_small_are_refused_by_name(tmp_path, capsys):
    suite = ROOT / "suites" / "examples" / "nightly-slu.yaml"
    assert main(["plan", str(suite), "--tiny"]) == 2
    assert "give one of the suite's jobs" in capsys.readouterr().err
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(JOB))
    assert main(["run", str(job), "--tiny", "--out", "s3://bucket/x"]) == 2
    assert "give a folder" in capsys.readouterr().err


def test_a_run_leaves_the_spec_that_it_followed(tmp_path):
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({**JOB, "recipe": "majority"}))
    command = [sys.executable, "-m", "attune.cli", "run", "job.yaml", "--tiny", "--out", "out"]
    ran = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "out" / "final.json").exists()
    assert read_yaml(tmp_path / "out" / "tiny.yaml")["name"] == "t tiny"


@pytest.mark.parametrize("form", FORMS)
def test_the_committed_data_are_sound(form, monkeypatch):
    monkeypatch.chdir(ROOT)
    ref = f"data/tiny/{form}"
    report = validate_dataset(ref, task=tasks_of(ref))
    assert (report.errors, report.warnings) == (0, 0)
    assert [len(rows_of(f"{ref}:{split}")) for split in ("train", "dev", "test", "source", "source_test", "extra")] == [
        32, 16, 16, 16, 8, 16
    ]  # fmt: skip
    assert {task.answer for name, task in tasks_of(ref).items() if name == rows_of(ref)[0].task} == {form}


def test_differences_are_by_field():
    assert list(differences({"a": {"b": 1, "c": 2}, "d": None}, {"a": {"b": 1, "c": 3}, "e": [1]})) == [
        "a.c: 2 → 3", "e: not said → [1]"
    ]  # fmt: skip
