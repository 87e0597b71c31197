"""The contract: what is accepted, what is refused and in which words, and what a hash depends on."""

import json
import re

import pytest
import yaml
from specs import corpus_folder, job, resolved

from trainer.fields import SpecError, UnfitDataError
from trainer.resolve import read_and_resolve
from trainer.spec import JobSpec, builtin_tasks, json_schema, parse_job, read_yaml

SIX_WORDS = yaml.safe_load("""
name: coffee-it
base: Qwen/Qwen2-Audio-7B-Instruct
language: it
data: {text: coffee-it/sentences, speech: coffee-it/recordings}
recipe: auto
evaluate: {metric: slu_f1}
resources: {gpus: 1, time: 4h}
""")


def refused(fields: dict) -> str:
    with pytest.raises(SpecError) as caught:
        parse_job({**SIX_WORDS, **fields})
    return str(caught.value)


def test_six_words_are_enough():
    spec = parse_job(SIX_WORDS)
    assert spec.resources.time == 14400
    assert spec.recipe.name == "auto"


# Every documented error, with the words that the user gets.
REFUSED = [
    ({"langauge": "it"}, "langauge: unknown key; did you mean 'language'?"),
    ({"data": {"corpus": "x", "spech_fraction": 0.1}}, "data.spech_fraction: unknown key; did you mean 'speech_"),
    ({"recipe": {"name": "limited_speech", "shceme": "x"}}, "recipe.shceme: unknown key; did you mean 'scheme'"),
    ({"recipe": {"name": "limited_speech", "scheme": "mixed"}}, "'text_only', 'synthetic_only', 'speech_only'"),
    ({"recipe": {"name": "data_scheduling", "order": ["asr"]}}, "schedule uniform has no use for order"),
    ({"recipe": {"name": "data_scheduling", "schedule": "tpc", "stage_shares": [0.5, 0.4]}}, "add up to 0.9"),
    ({"recipe": {"name": "data_scheduling", "schedule": "tpc", "mode": "sequential", "replay": 0.1}}, "leave replay"),
    ({"recipe": "sftt"}, "'custom', 'majority', 'untuned', 'linear_probe' (given: 'sftt')"),
    ({"recipe": {"name": "limited_speech", "speech_share": "5%", "speech_presentations": 2}}, "keep one"),
    ({"recipe": {"name": "limited_speech", "scheme": "text_only", "abundant": "synthetic"}}, "say synthetic_only"),
    ({"recipe": {"name": "limited_speech", "scheme": "text_only", "speech_presentations": 2}}, "shows no recordings"),
    ({"data": {"corpus": "x", "speech_fraction": 5}}, "data.speech_fraction: a share lies between 0 and 1"),
    ({"data": {"corpus": "x", "speech_fraction": "5 percent"}}, "write a share as '5%' or 0.05"),
    ({"data": {"corpus": "x", "text": "y"}}, "corpus gives text and speech"),
    ({"data": {}}, "give corpus, or text and/or speech"),
    ({"data": {"corpus": "x", "speech_fraction": "5%", "speech_per_label": 5}}, "both choose the recordings"),
    ({"resources": {"time": "4 hours"}}, "resources.time: write a time as '90s', '30m', '4h' or '2d'"),
    ({"resources": {"time": 0}}, "resources.time: a time is longer than 0 s"),
    ({"resources": {"time": "0h"}}, "resources.time: a time is longer than 0 s"),
    ({"seed": 2**53}, "seed: lies beyond 2^53"), ({"seed": str(10**30)}, "seed: lies beyond 2^53"),
    ({"evaluate": {"demos": {"seed": -(10**20)}}}, "evaluate.demos.seed: lies beyond 2^53"),
    ({"language": "italian!"}, "language: String should match pattern"),
    ({"steps": 0}, "steps: Input should be greater than 0 (given: 0)"),
    ({"micro_batch_tokens": -1}, "micro_batch_tokens must be above 0"),
    ({"tasks": [{"name": "t", "answer": "label", "instruction": {"en": "?"}}]}, "tasks[0]: answer label needs labels"),
    ({"optimizer": {"peak_lr": "fast"}}, "optimizer.peak_lr: Input should be a valid number"),
    ({"spec_version": 2}, "spec_version: Input should be 1 (given: 2)"),
    ({"recipe": {"name": "custom", "stages": [{"name": "a", "steps": 5, "mix": {"text": 0.5}}]}}, "add up to 0.5"),
    ({"recipe": {"name": "custom", "stages": [{"name": "a", "steps": 5, "mix": {"video": 1}}]}}, "stages[0].mix"),
]


@pytest.mark.parametrize(("fields", "words"), REFUSED, ids=[str(n) for n in range(len(REFUSED))])
def test_a_bad_spec_is_refused_with_field_value_and_remedy(fields, words):
    assert words in refused(fields)


def test_all_problems_are_listed_at_once():
    message = refused({"langauge": "it", "steps": -1, "data": {"corpus": "x", "speech_fraction": 7}})
    assert len(message.splitlines()) == 3


def test_two_data_sets_that_say_different_things_of_a_task_are_refused(tmp_path):
    heard = corpus_folder(tmp_path / "b", texts=12)
    given = {"data": {"text": str(corpus_folder(tmp_path / "a")), "speech": str(heard)}}
    fields = {k: v for k, v in job(tmp_path, **given).items() if k != "tasks"}
    read_and_resolve(parse_job(fields))
    task = json.loads((tmp_path / "b" / "task.yaml").read_text())
    (tmp_path / "b" / "task.yaml").write_text(json.dumps({**task, "instruction": {"en": "Where to?"}}))
    with pytest.raises(SpecError, match="say different things of the task 'turn'; write it out here"):
        read_and_resolve(parse_job(fields))
    read_and_resolve(parse_job({**fields, "tasks": [task]}))


TURN = {"name": "turn", "instruction": {"en": "x"}, "answer": "label", "labels": ["go", "stop", "left", "right"]}
# What only the corpus can tell.
UNFIT = [
    ({"source": {"language": "fr", "data": "nowhere"}}, "source.data: no data set 'nowhere' under"),
    ({"evaluate": {"folds": 5}}, "evaluate.folds: cross-validation is not built yet"),
    ({"evaluate": {"metric": "wer"}}, "evaluate.metric: is not defined for the answer form 'label' of task turn"),
    ({"evaluate": {"cascade": True}, "tuning": {"method": "full", "encoder": "frozen"}}, "evaluate.cascade"),
    ({"tuning": {"method": "projector", "projector": "frozen"}}, "tuning.projector: method: projector trains"),
    ({"evaluate": {"metric": "slu_f2"}}, "evaluate.metric: unknown metric; did you mean 'slu_f1'?"),
    ({"data": {"corpus": "nowhere"}}, "data.corpus"),
    ({"tasks": ["turns"]}, "tasks[0]: no such task"),
    ({"tasks": [{**TURN, "metrics": ["macrof1"]}]}, "tasks.turn.metrics: unknown metric; did you mean 'macro_f1'?"),
    ({"tasks": [{**TURN, "metrics": ["accuracy", "bleu"]}]}, "tasks.turn.metrics: is not defined for the answer form"),
    ({"recipe": {"name": "limited_speech", "scheme": "synthetic_only"}}, "give data.synthetic"),
    ({"recipe": {"name": "limited_speech", "speech_presentations": 70}}, "do not fit into the 10 mixed steps"),
    ({"tuning": {"method": "full", "encoder": "lora"}}, "tuning.encoder: encoder: lora goes with method: lora"),
    ({"data": {"corpus": "HERE", "speech_per_label": 4}}, "has 3 recordings; ask for at most 3"),
    ({"tuning": {"targets": ["q_proj", "qproj"]}},
     "tuning.targets[1]: the language model has no such layer; did you mean 'q_proj'? (given: 'qproj')"),
    ({"tuning": {"targets": ["lm_head"]}}, "known: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"),
    ({"tuning": {"targets": []}}, "tuning.targets: names no layer"),
    ({"tuning": {"method": "projector"}, "recipe": {"name": "limited_speech", "scheme": "text_only"}},
     "tuning.method: stage text_only would train nothing: it opens only lm, and tuning keeps lm frozen; "
     "mix in recordings, or use method: lora (given: 'projector')"),
    ({"recipe": {"name": "limited_speech", "scheme": "curriculum", "late_warmup_ratio": 30}},
     "recipe: makes no stage: optimizer: warmup_ratio: a share lies between 0 and 1"),
    ({"recipe": {"name": "sft", "sources": ["text", "text"]}}, "recipe.sources: names a source twice"),
    ({"steps": None, "epochs": 1e308}, "epochs: more steps than can be counted"),
    ({"steps": 10**9}, "steps: 8,000,000,000 examples would be presented; a job has 100,000,000 at most"),
    ({"steps": None, "epochs": 1e9}, "steps: 52,000,000,000 examples would be presented"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "words"), UNFIT, ids=[str(n) for n in range(len(UNFIT))])
def test_a_spec_that_its_data_cannot_serve_is_refused(tmp_path, fields, words):
    folder = corpus_folder(tmp_path)
    if "data" in fields:
        fields = {"data": {k: str(folder) if v == "HERE" else v for k, v in fields["data"].items()}}
    with pytest.raises(SpecError) as caught:
        read_and_resolve(parse_job(job(folder, **fields)))
    assert words in str(caught.value)


# Custom stages that would train nothing: (source, what they open, tuning), and what is said of it.
IDLE = [
    ("text", {"lm": False}, {}, "it opens no part; open lm (given: [])"),
    ("speech", {"lm": False}, {}, "it opens no part; open lm or projector (given: [])"),
    ("speech", {"lm": False, "encoder": True}, {},
     "it opens only encoder, and tuning keeps encoder frozen; open lm or projector (given: ['encoder'])"),
    ("speech", {"lm": False, "projector": True}, {"projector": "frozen"},
     "it opens only projector, and tuning keeps projector frozen; open lm (given: ['projector'])"),
    ("text", {"lm": False, "projector": True}, {}, "it opens only projector, which text never reaches; open lm"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "opened", "tuning", "words"), IDLE, ids=[str(n) for n in range(len(IDLE))])
def test_a_custom_stage_that_would_train_nothing_is_refused(tmp_path, source, opened, tuning, words):
    fine = {"name": "first", "steps": 5, "mix": {"text": 1}}
    idle = {"name": "idle", "steps": 5, "mix": {source: 1}, "trainable": opened}
    fields = {"recipe": {"name": "custom", "stages": [fine, idle]}, "tuning": {"encoder": "frozen", **tuning}}
    spec = parse_job(job(corpus_folder(tmp_path), steps=None, **fields))
    with pytest.raises(SpecError) as caught:
        read_and_resolve(spec)
    assert str(caught.value).startswith(f"recipe.stages[1].trainable: stage idle would train nothing: {words}")


@pytest.mark.parametrize(("steps", "rate"), [(0, 1e-4), (5, 0)])
def test_a_custom_stage_without_length_or_rate_is_refused(tmp_path, steps, rate):
    stage = {"name": "a", "steps": steps, "mix": {"text": 1}, "optimizer": {"peak_lr": rate}}
    field = "peak_lr" if steps else "steps"
    with pytest.raises(SpecError, match=rf"recipe\.stages\[0\]\..*{field}: Input should be greater than 0 .given: 0"):
        parse_job(job(tmp_path, recipe={"name": "custom", "stages": [stage]}))


def test_what_is_wrong_with_the_data_is_told_from_what_is_wrong_with_the_spec(tmp_path):
    folder = corpus_folder(tmp_path)
    asked = {"corpus": str(folder), "speech_per_label": 4}
    for data, kind in (({"corpus": "nowhere"}, UnfitDataError), (asked, SpecError)):
        with pytest.raises(SpecError) as caught:
            read_and_resolve(parse_job(job(folder, data=data)))
        assert type(caught.value) is kind


def test_a_base_in_s3_is_pinned_by_its_listing(tmp_path, s3_base, monkeypatch):
    folder, files = corpus_folder(tmp_path / "data"), tmp_path / "files"
    files.mkdir()
    (files / "config.json").write_text("{}")
    base = s3_base(files)
    first = resolved(folder, base=base)
    assert re.fullmatch("listing:[0-9a-f]{64}", first.base_revision or "")
    assert resolved(folder, base=base, revision=first.base_revision).base_revision == first.base_revision
    (files / "model.safetensors").write_text("weights")
    s3_base(files)
    second = resolved(folder, base=base)
    assert second.base_revision != first.base_revision
    assert second.hash != first.hash
    with pytest.raises(SpecError, match=r"revision: s3://.* holds listing:.* now; leave revision out"):
        resolved(folder, base=base, revision=first.base_revision)
    with pytest.raises(SpecError, match=r"base: .*nothing is stored there"):
        resolved(folder, base=f"{base}-7b")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    assert resolved(folder, base=base).base_revision is None


def test_an_utterance_in_train_and_test_is_refused(tmp_path):
    folder = corpus_folder(tmp_path)
    first = (folder / "test.jsonl").read_text().splitlines()[0].replace('"split": "test"', '"split": "train"')
    with (folder / "train.jsonl").open("a") as file:
        file.write(first + "\n")
    with pytest.raises(SpecError, match="is in the test set too"):
        read_and_resolve(parse_job(job(folder)))


def test_a_hash_depends_on_what_decides_the_result_and_on_nothing_else(tmp_path):
    folder = corpus_folder(tmp_path / "a")
    plain = resolved(folder).hash
    assert resolved(folder, name="other", tags={"a": "b"}, resources={"priority": 3, "time": "1h"}).hash == plain
    assert resolved(corpus_folder(tmp_path / "moved"), name="x").hash == plain
    for change in ({"seed": 1}, {"steps": 11}, {"global_batch": 16}, {"tuning": {"rank": 8}}, {"language": "fr"}):
        assert resolved(folder, **change).hash != plain
    assert resolved(corpus_folder(tmp_path / "more", texts=41)).hash != plain


def test_the_same_rows_are_the_same_job_however_they_were_asked_for(tmp_path):
    folder = corpus_folder(tmp_path)
    text_only = {"name": "limited_speech", "scheme": "text_only"}
    hashes = {
        resolved(folder, recipe=text_only, data={"corpus": str(folder), "speech_fraction": share}).hash
        for share in ("25%", "50%", 1.0)
    }
    assert len(hashes) == 1


def test_golden_hashes(tmp_path):
    """A stored job must hash the same under every later version (decisions, section 9)."""
    folder = corpus_folder(tmp_path)
    base = "Qwen/Qwen2-Audio-7B-Instruct"
    found = {
        scheme: resolved(folder, base=base, recipe={"name": "limited_speech", "scheme": scheme}).hash
        for scheme in ("text_only", "direct_mix", "curriculum")
    }
    assert found == GOLDEN


def test_fields_are_documented():
    schema = json_schema()
    models = {"JobSpec": schema, **schema["$defs"]}
    bare = [
        f"{name}.{field}"
        for name, model in models.items()
        for field, value in model.get("properties", {}).items()
        if not value.get("description")
    ]
    assert bare == []


def test_builtin_tasks_are_sound():
    tasks = builtin_tasks()
    assert {"transcribe", "command"} <= set(tasks)
    assert len(tasks["command"].labels or []) == 40
    assert {"no", "yes"} <= set(tasks["command"].labels or [])


def test_a_broken_file_names_its_line(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("name: a\n  data: [\n")
    with pytest.raises(SpecError, match="not valid YAML at line 2"):
        read_yaml(path)
    with pytest.raises(SpecError, match="no such file"):
        read_yaml(tmp_path / "y.yaml")


def test_resolved_specs_round_trip_as_json(tmp_path):
    one = resolved(corpus_folder(tmp_path), recipe={"name": "limited_speech", "scheme": "curriculum"})
    again = type(one).model_validate_json(one.model_dump_json(by_alias=True))
    assert again == one
    assert again.hash == one.hash
    assert isinstance(again.spec, JobSpec)


GOLDEN = {
    "text_only": "c53e0f0e4fd80fc415958343693678ba8180472a6949e367f2f93dacefadf7c5",
    "direct_mix": "f5f6a66bc14d2d50274a8bdce489e2d36875312dc1a5ae4704efecf3f7207942",
    "curriculum": "7007b42175d88d9070bd65559e908fa95d436c47b29984f5bd2462f0207f9fd0",
}


@pytest.mark.parametrize("ref", ["sets/turns", "sets/turns:train", "sets/turns/train.jsonl"])
def test_a_test_set_that_was_not_named_is_named_as_the_training_data_were(tmp_path, ref):
    """Not by the folder that it lies in: other machines have others."""
    folder = corpus_folder(tmp_path / "root" / "sets" / "turns")
    spec, roots = parse_job(job(folder, data={"corpus": ref})), [tmp_path / "other", tmp_path / "root"]
    found = read_and_resolve(spec, roots)[0]
    assert (found.spec.evaluate.on, found.test.ref) == ("sets/turns:test", "sets/turns:test")
    if ref.endswith(".jsonl"):
        (tmp_path / "other" / "sets" / "turns").mkdir(parents=True)  # what the words would mean now
        assert read_and_resolve(spec, roots)[0].test.ref == f"{folder}:test"
