"""SALAD's Stage II: clusters, P_target and draws by hand; measured, selected and spoken end to end; its recipe."""

import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import toy

from attune.building import Engine, Speech, build_speech
from attune.building.active import Active, _job, build_active
from attune.cli import main
from attune.importing import SourceError
from trainer import active, selection
from trainer.families import load
from trainer.fields import SpecError
from trainer.manifest import load as load_data
from trainer.objectives.distillation import kl
from trainer.run import run
from trainer.store import FolderStore

TTS = shlex.join([sys.executable, "-I", "-S", str(Path(__file__).with_name("tiny_tts.py"))]) + " {wav} {text_file}"


class TestSelection:
    def test_target_by_hand(self):
        """1/2 · .1², 1/4 · .2², 1/4 · .4² = .005, .01, .04."""
        found = selection.target(np.array([0.5, 0.25, 0.25]), np.array([0.1, 0.2, 0.4]), 2)
        assert found == pytest.approx([1 / 11, 2 / 11, 8 / 11])

    def test_gamma_0_is_uniform_over_texts_even_where_nothing_is_misaligned(self):
        web = np.array([0.7, 0.2, 0.1])
        assert selection.target(web, np.array([0.3, 0.0, 9.0]), 0) == pytest.approx(web)

    def test_a_large_gamma_takes_the_worst_alone(self):
        """Its powers would be beyond what a number can say."""
        for worst in (4.0, 0.004):
            found = selection.target(np.array([0.5, 0.5]), np.array([worst / 2, worst]), 999)
            assert found == pytest.approx([0, 1])

    def test_nothing_to_select_by_is_said(self):
        with pytest.raises(ValueError, match="misalignment is 0 in every cluster"):
            selection.target(np.array([0.5, 0.5]), np.zeros(2), 5)

    def test_misalignment_is_the_mean_per_token_and_the_whole_one_where_nothing_was_probed(self):
        clusters, sums = np.array([0, 0, 2, 2]), np.array([3.0, 1.0, 9.0, -1e-9])
        found, probes = selection.misalignment(clusters, sums, np.array([3, 5, 2, 1]), 3)
        assert found == pytest.approx([4 / 8, 13 / 11, 9 / 3])
        assert probes.tolist() == [2, 0, 2]

    def test_draws_follow_the_target_without_replacement_and_go_on_when_a_cluster_is_empty(self):
        clusters = np.repeat([0, 1, 2], [50, 4000, 4000])
        drawn = selection.order(clusters, np.array([0.5, 0.4, 0.1]), seed=3)
        assert sorted(drawn) == list(range(8050))
        first = clusters[drawn[:40]]
        assert 10 <= (first == 0).sum() <= 30
        gone = max(n for n, text in enumerate(drawn) if clusters[text] == 0) + 1
        after = clusters[drawn[gone : gone + 2000]]
        assert (after == 1).mean() == pytest.approx(0.8, abs=0.03)  # .4 of the .5 that is left
        assert selection.order(clusters, np.array([0.5, 0.4, 0.1]), seed=3, count=7) == drawn[:7]
        assert selection.order(clusters, np.array([0.5, 0.4, 0.1]), seed=4, count=7) != drawn[:7]

    def test_clusters_of_probability_0_come_last_by_size(self):
        drawn = selection.order(np.array([0, 0, 1, 1, 1]), np.array([1.0, 0.0]), seed=0)
        assert sorted(drawn[:2]) == [0, 1]
        assert sorted(drawn[2:]) == [2, 3, 4]

    def test_texts_of_a_kind_come_together_and_no_cluster_is_too_large(self):
        kinds = [
            "switch on the light in room {}",
            "quelle heure est-il au pays {}",
            "wieviel kostet das Brot Nummer {}",
        ]
        texts = [kind.format(n) for kind in kinds for n in range(20)]
        points = selection.embedded([*texts, "switch on the light in room 99", "wieviel kostet das Brot Nummer 99"])
        found, probe = selection.clustered(points[:60], points[60:], 3, seed=0)
        assert [len(set(found[n : n + 20].tolist())) for n in (0, 20, 40)] == [1, 1, 1]
        assert probe.tolist() == [found[0], found[40]]
        of_text, _ = selection.clustered(points[:60], points[60:], 10, seed=0)
        assert np.bincount(of_text).max() <= selection.ROOM * 6

    def test_few_and_equal_texts(self):
        assert selection.embedded(["a"]).shape == (1, 1)
        points = selection.embedded(["same"] * 6)
        found, probe = selection.clustered(points[:5], points[5:], 2, seed=0)
        assert (len(found), len(probe)) == (5, 1)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A finished Stage I job of three steps, broad texts, and a probe set that a command has spoken."""
    folder = tmp_path_factory.mktemp("world")
    base, data = toy.base(folder / "base"), toy.data(folder / "data")
    (data / "broad").mkdir()
    rows = []
    for n in range(30):
        text = f"{['the lamp in room', 'number of the street'][n % 2]} {n}"
        rows.append({"id": f"b{n}", "task": "tone", "language": "en", "split": "train", "label": "low", "text": text})
    rows.append({**rows[0], "id": "told", "text": "Tone 3 is low!"})  # what the job is tested on
    (data / "broad" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (data / "broad" / "task.yaml").write_bytes((data / "text" / "task.yaml").read_bytes())
    build_speech("broad", data / "probe", Speech(Engine.of(TTS), workers=2), roots=[data])
    resolved, corpus = toy.resolved(base, data, recipe="salad", steps=3)
    job = folder / "job"
    assert run(resolved, FolderStore(job), corpus=corpus).outcome == "succeeded"
    return {"base": base, "data": data, "job": job, "resolved": resolved}


def ask(world, **said) -> Active:
    return Active(str(world["job"]), "broad", "probe:train", **{"clusters": 3, "budget": "8", **said})


def build(world, out, said=None, **options):
    """build_active with the measurement in this process."""
    speech = Speech(Engine.of(TTS), workers=2)
    options = {"measure": active.main, **options}
    return build_active(said or ask(world), out, speech, roots=[world["data"]], **options)


def test_divergence_is_the_formula_one_example_at_a_time(world):
    resolved, model = active.adapted(str(world["job"]))
    probe = load_data("probe", [world["data"]])[:5]
    apart, tokens = active.measured(model, probe, resolved, {})
    from trainer.stage import Plain
    from trainer.views import Recordings, training_example

    tasks = {task.name: task for task in resolved.spec.tasks}
    for n, row in enumerate(probe):
        e = training_example(row, 1, Plain(), tasks, model.tokens, Recordings(16000), twin="asked")
        with torch.no_grad():
            heard = model.forward(model.collate([e]))
            with model.base_only():
                taught = model.forward(model.collate([e.twin]))
        assert tokens[n] == len(e.answer)
        assert apart[n] == pytest.approx(float(kl(taught, heard).sum()), rel=1e-4)


def test_the_adapter_is_the_jobs(world):
    """What `adapted` loads answers as the job's own model did: its divergence is not the untuned base's."""
    resolved, model = active.adapted(str(world["job"]))
    untuned = load(world["base"], tuning=resolved.spec.tuning, seed=resolved.spec.seed)
    probe = load_data("probe", [world["data"]])
    ours, theirs = (active.measured(m, probe, resolved, {})[0].sum() for m in (model, untuned))
    assert ours != pytest.approx(theirs, rel=1e-3)


def test_selected_texts_are_spoken_and_told(world, tmp_path):
    report = build(world, tmp_path / "out", licence="CC0")
    rows, told = load_data(str(tmp_path / "out")), json.loads((tmp_path / "out" / "clusters.json").read_text())
    assert report.rows == len(rows) == 8
    assert all(row.audio and row.split == "train" for row in rows)
    assert "told" not in {row.id for row in rows}
    assert "1 texts are in the test set and left out" in report.notes
    clusters = told["clusters"]
    assert sum(c["texts"] for c in clusters) == 30
    assert [c["chosen"] for c in clusters] == [sum(r.meta["cluster"] == c["cluster"] for r in rows) for c in clusters]
    weight = [c["p_web"] * c["misalignment"] ** 5 for c in clusters]
    assert [c["p_target"] for c in clusters] == pytest.approx([w / sum(weight) for w in weight])
    assert report.provenance["selected by"] == "active, gamma 5, for the job toy"
    assert not list(tmp_path.glob(".*"))


def test_a_job_may_be_tested_on_several_sets(world, tmp_path):
    evaluate = {"on": ["speech:test", "other:test"], "decode": {"max_new_tokens": 4}}
    (world["data"] / "other").mkdir()
    row = {"id": "x", "task": "tone", "language": "en", "split": "test", "label": "low", "text": "the lamp in room 0"}
    row |= {"audio": "x.wav", "duration_s": 0.3}
    soundfile.write(world["data"] / "other" / "x.wav", toy.wave(300, 0.3), 16000)
    (world["data"] / "other" / "test.jsonl").write_text(json.dumps(row) + "\n")
    (world["data"] / "other" / "task.yaml").write_bytes((world["data"] / "text" / "task.yaml").read_bytes())
    resolved, corpus = toy.resolved(world["base"], world["data"], recipe="salad", steps=1, evaluate=evaluate)
    assert run(resolved, FolderStore(tmp_path / "job"), corpus=corpus).outcome == "succeeded"
    report = build(world, tmp_path / "out", ask({**world, "job": tmp_path / "job"}, budget="29"))
    assert "2 texts are in the test set and left out" in report.notes


def test_the_control_draws_evenly_and_a_time_is_met_by_the_fewest(world, tmp_path):
    build(world, tmp_path / "all", ask(world, strategy="uniform", budget="30"))
    told = json.loads((tmp_path / "all" / "clusters.json").read_text())
    assert all(c["p_target"] == pytest.approx(c["p_web"]) and c["chosen"] == c["texts"] for c in told["clusters"])
    order = [row.duration_s for row in load_data(str(tmp_path / "all"))]
    report = build(world, tmp_path / "some", ask(world, strategy="uniform", budget="2s"))
    assert report.seconds >= 2 > report.seconds - order[report.rows - 1]
    share = ask(world, strategy="uniform", budget="20%")  # of 18 recordings of .3 to .6 s
    whole = sum(row.duration_s for row in load_data("speech:train", [world["data"]]))
    report = build(world, tmp_path / "share", share)
    assert 0 <= report.seconds - 0.2 * whole < max(order)


def test_an_ended_build_does_not_measure_again(world, tmp_path):
    measured = []

    def measure(arguments):
        measured.append(arguments)
        return active.main(arguments)

    failing = Speech(Engine.of(f"{TTS} --fail-on room"), workers=2)
    everything = ask(world, budget="30")
    with pytest.raises(SourceError, match="could not be spoken"):
        build_active(everything, tmp_path / "out", failing, roots=[world["data"]], measure=measure)
    report = build(world, tmp_path / "out", everything, measure=measure)
    assert len(measured) == 1
    assert report.rows == 30
    assert report.id == build(world, tmp_path / "x" / "out", everything).id


def test_the_command(world, tmp_path, capsys):
    """By the front door: the measurement is another process."""
    asked = ["build", "active", "--job", str(world["job"]), "--texts", "broad", "--probe", "probe:train", "--tts", TTS]
    asked += ["--clusters", "2", "--budget", "3", "--data-root", str(world["data"]), "--out", str(tmp_path / "out")]
    assert main(asked) == 0
    assert "3 of 30 rows from broad" in capsys.readouterr().out


def test_a_job_that_cannot_be_read_is_said(tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(SourceError, match=r"--job s3://bucket/job: cannot be read \(Unable to locate credentials"):
        _job("s3://bucket/job")
    for name in ("final.json", "spec.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(SourceError, match=r"its spec.json is no job's"):
        _job(str(tmp_path))


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"job": "nowhere"}, "--job nowhere: no finished job lies there"),
        ({"budget": "some"}, "--budget 'some': must be a share of the job's recordings"),
        ({"budget": "0"}, "--budget '0': must be"),
        ({"budget": "31"}, "there are 30 texts to select from"),
        ({"budget": "1h"}, "--budget: 3600 s of speech are wanted, and all 30 texts make"),
        ({"strategy": "greedy"}, "must be active or uniform"),
        ({"texts": "board"}, "no data set 'board'.*did you mean 'broad'"),
    ],
)
def test_refusals(world, tmp_path, said, words):
    with pytest.raises(ValueError, match=words):
        build(world, tmp_path / "out", Active(**{**vars(ask(world)), **said}))


class TestRecipe:
    def stages(self, world, phase, **knobs):
        data = {"text": "text", "speech": "speech", "synthetic": "probe:train"}
        recipe = {"name": "salad", "phase": phase, **knobs}
        return toy.resolved(world["base"], world["data"], recipe=recipe, data=data, steps=40)[0].stages

    def test_the_second_stage_shows_three_sources_alike(self, world):
        (stage,) = self.stages(world, "active_selection")
        assert stage.mix == {name: pytest.approx(1 / 3) for name in ("text", "speech", "synthetic")}
        assert (stage.steps, stage.objective.alpha, stage.optimizer.schedule) == (40, 1.0, "wsd")

    def test_both_stages_share_the_steps(self, world):
        first, second = self.stages(world, "both", text_share=0.25)
        assert (first.name, first.steps, second.name, second.steps) == ("distillation", 37, "active", 3)
        assert first.mix == {"text": 0.25, "speech": 0.75}
        assert [s.steps for s in self.stages(world, "both", active_share=0.5)] == [20, 20]

    def test_refusals(self, world):
        with pytest.raises(SpecError, match="active_selection shows its sources in equal parts"):
            self.stages(world, "active_selection", text_share=0.5)
        with pytest.raises(SpecError, match=r"needs the source 'synthetic'; give data\.synthetic"):
            toy.resolved(world["base"], world["data"], recipe={"name": "salad", "phase": "both"}, steps=4)

    def test_it_trains(self, world, tmp_path):
        data = {"text": "text", "speech": "speech", "synthetic": "probe:train"}
        recipe = {"name": "salad", "phase": "both", "active_share": 0.5}
        resolved, corpus = toy.resolved(world["base"], world["data"], recipe=recipe, data=data, steps=4)
        assert run(resolved, FolderStore(tmp_path), corpus=corpus).outcome == "succeeded"
