"""Studies: grids over any field, what is held equal, cells that are one."""

import pytest
from specs import corpus_folder

from trainer.corpus import Reader, read_corpus
from trainer.fields import SpecError
from trainer.study import StudySpec, expand, load, presentations
from trainer.suite import Suite


def study(folder, **fields) -> StudySpec:
    plain = {
        "study": "s",
        "base": "models/tiny",
        "language": "en",
        "data": {"corpus": str(folder)},
        "recipe": "limited_speech",
        "global_batch": 8,
        "grid": {
            "scheme": ["text_only", "direct_mix", "curriculum"],
            "speech_fraction": ["25%", "100%"],
            "seed": [1, 2],
        },
    }
    return StudySpec.model_validate({**plain, **fields})


def test_cells_are_the_product_and_seeds_are_repetitions(tmp_path):
    found = expand(study(corpus_folder(tmp_path)), read_corpus)
    assert [c.name for c in found.cells] == [
        "text_only",
        "direct_mix speech_fraction=25%", "direct_mix speech_fraction=100%",
        "curriculum speech_fraction=25%", "curriculum speech_fraction=100%",
    ]  # fmt: skip
    assert all([run.spec.seed for run in cell.runs] == [1, 2] for cell in found.cells)


def test_steps_and_presentations_are_held(tmp_path):
    found = expand(study(corpus_folder(tmp_path)), read_corpus)
    assert len({run.steps for cell in found.cells for run in cell.runs}) == 1
    by_name = {c.name: presentations(c.runs[0]) for c in found.cells}
    assert by_name["direct_mix speech_fraction=100%"] == pytest.approx(by_name["curriculum speech_fraction=100%"])


def test_shares_that_would_differ_in_exposure_are_made_equal(tmp_path):
    recipe = {"name": "limited_speech", "speech_share": "25%"}
    found = expand(study(corpus_folder(tmp_path), recipe=recipe, steps=30), read_corpus)
    by_name = {c.name: presentations(c.runs[0]) for c in found.cells}
    assert by_name["curriculum speech_fraction=100%"] == pytest.approx(by_name["direct_mix speech_fraction=100%"])
    free = expand(
        study(corpus_folder(tmp_path), recipe=recipe, steps=30, hold={"speech_presentations": "free"}), read_corpus
    )
    by_name = {c.name: presentations(c.runs[0]) for c in free.cells}
    assert by_name["curriculum speech_fraction=100%"] < by_name["direct_mix speech_fraction=100%"]


def test_text_only_is_one_cell_over_all_fractions(tmp_path):
    found = expand(study(corpus_folder(tmp_path)), read_corpus)
    trained = {run.hash for cell in found.cells for run in cell.runs}
    assert len(trained) == 10  # 2 seeds of text-only, 8 of the mixing cells


def test_what_cannot_be_held_is_said(tmp_path):
    grid = {"scheme": ["speech_only", "direct_mix"], "seed": [1]}
    found = expand(study(corpus_folder(tmp_path), grid=grid, steps=30), read_corpus)
    assert any("each recording is shown 20.0 times" in note for note in found.notes)


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({"shceme": ["x"]}, "grid.shceme: no such field; did you mean 'scheme'?"),
        ({"optimizer.peak": [1]}, "no such field"),
        ({"name": ["a"]}, "grid.name: no such field"),
        ({"scheme": ["mixed"]}, "recipe.scheme"),
    ],
)
def test_a_bad_grid_names_its_key(tmp_path, grid, words):
    with pytest.raises(SpecError) as caught:
        expand(study(corpus_folder(tmp_path), grid=grid), read_corpus)
    assert words in str(caught.value)


def test_a_dotted_path_reaches_any_field(tmp_path):
    grid = {"optimizer.peak_lr": [1e-4, 3e-4], "tuning.rank": [4]}
    found = expand(study(corpus_folder(tmp_path), grid=grid), read_corpus)
    assert [c.runs[0].spec.optimizer.peak_lr for c in found.cells] == [1e-4, 3e-4]


def test_a_field_of_a_table_in_a_table_goes_by_its_whole_path(tmp_path):
    recipe = {"name": "label_permutation", "labels": "regular"}
    grid = {"recipe.demonstrations.most": [0, 2], "evaluate.decode.beams": [1, 3]}
    found = expand(study(corpus_folder(tmp_path), recipe=recipe, grid=grid), read_corpus)
    assert [c.name for c in found.cells] == ["most=0 beams=1", "most=0 beams=3", "most=2 beams=1", "most=2 beams=3"]
    assert [c.runs[0].spec.recipe.demonstrations.most for c in found.cells] == [0, 0, 2, 2]
    for wrong in ("recipe.demonstrations.leest", "recipe.name", "beams", "recipe.labels.x"):
        with pytest.raises(SpecError, match="no such field"):
            expand(study(tmp_path, recipe=recipe, grid={wrong: [1]}), read_corpus)


def test_fields_of_one_name_in_two_tables_make_cells_of_their_own(tmp_path):
    grid = {"recipe.schedule": ["uniform", "ads"], "optimizer.schedule": ["cosine", "constant"]}
    found = expand(study(corpus_folder(tmp_path), recipe={"name": "data_scheduling"}, grid=grid), read_corpus)
    assert [c.name for c in found.cells] == [
        f"recipe.schedule={a} optimizer.schedule={b}" for a in ("uniform", "ads") for b in ("cosine", "constant")
    ]  # fmt: skip
    assert [c.runs[0].spec.optimizer.schedule for c in found.cells] == ["cosine", "constant"] * 2


@pytest.mark.parametrize(("fields", "words"), [
    ({"data": None}, "data: Input should be"), ({"data": "here"}, "data: Input should be"),
    ({"recipe": 3, "grid": {"seed": [1]}}, "recipe"), ({"recipe": ["sft"]}, "grid.scheme: no such field"),
    ({"tuning": None, "grid": {"tuning.rank": [4]}}, "tuning: is a mapping of fields"),
    ({"data": None, "recipe": {"name": "limited_speech", "scheme": "text_only"}, "grid": {"seed": [1]}}, "data"),
])  # fmt: skip
def test_a_study_with_a_table_that_is_none_is_refused(tmp_path, fields, words):
    corpus_folder(tmp_path)
    with pytest.raises(SpecError) as caught:
        expand(study(tmp_path, **fields), read_corpus)
    assert words in str(caught.value)


def test_custom_stages_keep_their_own_steps(tmp_path):
    def custom(*steps):
        stages = [[{"name": "a", "steps": n, "mix": {"text": 1}}] for n in steps]
        grid = {"recipe": [{"name": "custom", "stages": s} for s in stages], "seed": [1, 2]}
        return study(corpus_folder(tmp_path), grid=grid, controls=[])

    (cell,) = expand(custom(3), read_corpus).cells
    assert [run.steps for run in cell.runs] == [3, 3]
    with pytest.raises(SpecError, match=r"own steps, here 3 to 4; say hold: \{steps: free\}"):
        expand(custom(3, 4), read_corpus)


def test_tasks_that_differ_in_more_than_their_names_are_different_jobs(tmp_path):
    turn = {"name": "turn", "answer": "label", "labels": ["go", "stop", "left", "right"]}
    tasks = [[{**turn, "instruction": {"en": words}}] for words in ("Which way?", "Where to?")]
    grid = {"scheme": ["text_only"], "tasks": tasks}
    found = expand(study(corpus_folder(tmp_path), grid=grid), Reader(["."]))
    said = [run.spec.tasks[0].instruction["en"] for cell in found.cells for run in cell.runs]
    assert said == ["Which way?", "Where to?"]


def test_an_unknown_key_of_a_study_is_refused(tmp_path):
    with pytest.raises(SpecError, match="did you mean 'controls'"):
        expand(study(corpus_folder(tmp_path), control=["untuned"]), read_corpus)


def test_a_suite_is_understood(tmp_path):
    path = tmp_path / "suite.yaml"
    path.write_text(
        "suite: nightly-slu\nbaseline: {branch: main}\njobs: [recipes/coffee-it.yaml]\nseeds: [1, 2, 3]\n"
        "gate: {slu_f1: {worse_by: 1.0}, invalid_rate: {max: 1%}, samples_per_s: {worse_by: 5%}}\ninconclusive: pass\n"
    )
    found = load(path)
    assert isinstance(found, Suite)
    assert found.gate["invalid_rate"].max == pytest.approx(0.01)
    assert found.gate["slu_f1"].worse_by == pytest.approx(1.0)


def test_every_comparison_offers_the_exposure_matched_control(tmp_path):
    fields = {
        "recipe": {"name": "limited_speech", "speech_share": "25%"},
        "grid": {"scheme": ["direct_mix", "curriculum"], "seed": [1, 2]},
        "controls": ["exposure_matched"],
        "steps": 30,
    }
    free = study(corpus_folder(tmp_path), **fields, hold={"speech_presentations": "free"})
    found = {c.name: c for c in expand(free, read_corpus).cells}
    control = found["direct_mix, exposure of curriculum"]
    assert len(control.runs) == 2
    assert presentations(control.runs[0]) == pytest.approx(presentations(found["curriculum"].runs[0]))
    held = expand(study(tmp_path, **fields), read_corpus)
    assert "direct_mix is the exposure-matched control of curriculum" in held.notes


def test_the_cascade_is_scored_where_it_means_something(tmp_path):
    found = expand(study(corpus_folder(tmp_path), controls=["cascade"]), read_corpus)
    scored = {c.settings["scheme"]: c.runs[0].spec.evaluate.cascade for c in found.cells}
    assert scored == {"text_only": True, "direct_mix": False, "curriculum": False}


def test_what_the_grid_varies_is_not_overwritten_by_hold(tmp_path):
    grid = {"scheme": ["direct_mix"], "speech_presentations": [0.5, 1]}
    with pytest.raises(SpecError, match=r"say hold: \{speech_presentations: free"):
        expand(study(corpus_folder(tmp_path), grid=grid), read_corpus)
    free = study(corpus_folder(tmp_path), grid=grid, hold={"speech_presentations": "free"})
    assert [presentations(c.runs[0]) for c in expand(free, read_corpus).cells] == pytest.approx([0.5, 1.0])


def test_another_learning_rate_is_no_exposure_matched_control(tmp_path):
    fields = {"controls": ["exposure_matched"], "steps": 30, "also": [{"scheme": "curriculum"}]}
    grid = {"scheme": ["direct_mix"], "optimizer.peak_lr": [1e-5]}
    found = expand(study(corpus_folder(tmp_path), grid=grid, **fields), read_corpus)
    assert any(c.name.startswith("direct_mix, exposure of curriculum") for c in found.cells)


def test_one_job_is_one_run_however_often_the_grid_names_it(tmp_path):
    """Text-only under three subset seeds is one job; counted three times it would look three times as sure."""
    grid = {"scheme": ["text_only", "direct_mix"], "seed": [1, 2], "data.subset_seed": [1, 2, 3]}
    data = {"corpus": str(corpus_folder(tmp_path)), "speech_fraction": "50%"}
    found = {c.name: len(c.runs) for c in expand(study(tmp_path, grid=grid, data=data), read_corpus).cells}
    assert found == {"text_only": 2, "direct_mix": 6}


def test_null_puts_a_field_back(tmp_path):
    data = {"corpus": str(corpus_folder(tmp_path)), "speech_per_label": 2}
    fields = {"grid": {"scheme": ["direct_mix"]}, "also": [{"scheme": "direct_mix", "speech_per_label": None}]}
    found = expand(study(tmp_path, data=data, **fields), read_corpus)
    assert [c.runs[0].sources["speech"].rows for c in found.cells] == [8, 12]


def test_a_cell_that_stands_twice_is_refused(tmp_path):
    again = {"scheme": "direct_mix", "speech_fraction": "25%", "seed": 1}
    twice = study(corpus_folder(tmp_path), also=[again])
    with pytest.raises(SpecError, match="stands twice"):
        expand(twice, read_corpus)


@pytest.mark.parametrize("name", ["majority", "untuned", "linear probe, 12 recordings"])
def test_a_cell_and_a_control_of_one_name_are_refused(tmp_path, name):
    """The only cell of a study is named after it."""
    folder, grid = corpus_folder(tmp_path), {"scheme": ["direct_mix"], "seed": [1, 2]}
    assert name in {cell.name for cell in expand(study(folder, grid=grid), read_corpus).baselines}
    with pytest.raises(SpecError, match="choose another name") as refused:
        expand(study(folder, study=name, grid=grid), read_corpus)
    assert [(p.param, p.value) for p in refused.value.problems] == [("study", name)]
    several = {**grid, "scheme": ["direct_mix", "curriculum"]}
    assert name not in {cell.name for cell in expand(study(folder, study=name, grid=several), read_corpus).cells}


def test_all_controls_that_apply_are_the_default(tmp_path):
    assert expand(study(corpus_folder(tmp_path)), read_corpus).controls == [
        "majority", "untuned", "linear_probe", "cascade", "exposure_matched"
    ]  # fmt: skip
    alone = expand(study(tmp_path, grid={"scheme": ["text_only"]}), read_corpus)
    assert alone.controls == ["majority", "untuned", "cascade"]


def test_order_exposure_and_restart_at_equal_steps(tmp_path):
    """{spread, late} x {once, many}, each with and without the restart; text alone with and without it."""
    grid = {"scheme": ["direct_mix", "curriculum"], "speech_presentations": [1, 4], "restart": ["on", "off"]}
    also = [{"scheme": "text_only", "restart": restart} for restart in ("on", "off")]
    free = study(corpus_folder(tmp_path), grid=grid, also=also, steps=30, hold={"speech_presentations": "free"})
    found = expand(free, read_corpus)
    assert len(found.cells) == 10
    assert {run.steps for cell in found.cells for run in cell.runs} == {30}
    times = {c.name: presentations(c.runs[0]) for c in found.cells}
    assert times["curriculum speech_presentations=4 restart=off"] == pytest.approx(4)
    assert times["direct_mix speech_presentations=1 restart=on"] == pytest.approx(1)
    assert len(found.jobs()) == 10 + len(found.baselines)
    twins = [note for note in found.notes if "is the exposure-matched control of" in note]
    assert "direct_mix speech_presentations=4 restart=off is the exposure-matched control of curriculum " \
        "speech_presentations=4 restart=off" in twins  # fmt: skip
    assert "direct_mix speech_presentations=4 restart=on is the exposure-matched control of curriculum " \
        "speech_presentations=4 restart=on" in twins  # fmt: skip


def test_no_recordings_is_text_alone_and_the_curriculum_its_restart(tmp_path):
    grid = {"scheme": ["text_only", "direct_mix", "curriculum"], "speech_fraction": [0, "100%"]}
    found = expand(study(corpus_folder(tmp_path), grid=grid, controls=["exposure_matched"]), read_corpus)
    stages = {c.name: [s.name for s in c.runs[0].stages] for c in found.cells}
    assert stages["direct_mix speech_fraction=0"] == ["text_only"]
    assert stages["curriculum speech_fraction=0"] == ["text_first", "text_last"]
    assert "direct_mix speech_fraction=0: trains the same as text_only, so once" in found.notes
    assert not any("exposure of curriculum speech_fraction=0" in c.name for c in found.cells)


def test_a_curve_of_the_share_is_kept_and_said(tmp_path):
    ramp = {"kind": "linear", "start": 0.1, "end": 0.5}
    recipe = {"name": "limited_speech", "speech_share": ramp}
    grid = {"scheme": ["direct_mix", "curriculum"]}
    found = expand(study(corpus_folder(tmp_path), recipe=recipe, steps=30, grid=grid), read_corpus)
    assert all(c.runs[0].stages[-1].mix["speech"].kind == "linear" for c in found.cells[:2])
    assert any("is not held; recordings are shown" in note for note in found.notes)
