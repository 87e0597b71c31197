"""A study from its file to its report, in one warm process, on a random toy base and real waveforms."""

import json

import pytest
import toy
import yaml

from trainer.__main__ import main
from trainer.run import run
from trainer.store import FolderStore


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
    for scheme in ("text_only", "direct_mix", "curriculum"):
        assert {(f"{scheme} speech_fraction=50%", 1), (f"{scheme} speech_fraction=50%", 2)} <= runs
    names = {r["row"] for r in rows}
    controls = {"majority", "untuned", "linear probe, 9 recordings", "linear probe, 18 recordings"}
    assert controls | {"speech_only", "text_only speech_fraction=50%, cascade"} <= names
    for row in rows:
        assert {"scheme", "speech_fraction", "speech_presentations", "seed", "metric", "value"} <= set(row)
        assert row["ci_low"] <= row["value"] <= row["ci_high"]
        assert row["n"] == 9


def test_text_only_is_trained_once_per_seed_and_jobs_are_whole(done):
    jobs = sorted((done[0] / "jobs").iterdir())
    assert len(jobs) == 8
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
