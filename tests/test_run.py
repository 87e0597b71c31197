import json
import re
import signal

import numpy as np
import pytest
import soundfile
import torch
import toy
from safetensors.torch import load as tensors_of

from trainer import run as running
from trainer.__main__ import main, newest_result
from trainer.bases import locate_base
from trainer.families import check_loaded, load
from trainer.fields import SpecError
from trainer.plan import StagePlan, plan_stage
from trainer.ranks import spawn
from trainer.result import Result
from trainer.run import own_device, run
from trainer.store import FolderStore
from trainer.terminal import Limit, Stop


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return toy.base(folder / "base"), toy.data(folder / "data")


def go(world, store, **options):
    resolved, corpus = toy.resolved(*world)
    return run(resolved, store, corpus=corpus, threads=1, **options)


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    store = FolderStore(tmp_path_factory.mktemp("out"))
    events = []
    return go(world, store, sink=events.append), store, events


def test_all_that_is_left_behind(done):
    result, store, _ = done
    assert result.outcome == "succeeded"
    keys = set(store.list())
    assert {"spec.json", "plan/text_first.npz", "plan/mixed_last.npz", "final.json", "attempts/1/result.json",
            "attempts/1/predictions/speech.jsonl", "attempts/1/predictions/text.jsonl"} <= keys  # fmt: skip
    assert Result.model_validate_json(store.get("final.json")) == result
    rows = [json.loads(line) for line in store.get("attempts/1/predictions/speech.jsonl").splitlines()]
    assert [r["utterance"] for r in rows] == [f"test-{i}" for i in range(9)]
    assert all({"reference", "text", "parsed", "valid", "counts", "modality"} <= r.keys() for r in rows)


def test_result_says_what_was_shown(done, world):
    result, store, events = done
    resolved, _ = toy.resolved(*world)
    plans = [StagePlan.load(store.path(f"plan/{s.name}.npz")) for s in resolved.stages]
    assert [p.sha256 for p in plans] == [plan_stage(resolved, n).sha256 for n in (0, 1)]
    assert result.lineage.plans == {s.name: p.sha256 for s, p in zip(resolved.stages, plans, strict=True)}
    by_source = {}
    for shown in result.shown:
        by_source[shown.source] = by_source.get(shown.source, 0) + shown.presentations
        assert abs(shown.realised_share - shown.requested_share) * 72 <= 1
    assert sum(by_source.values()) == 9 * 8
    assert by_source["speech"] == 18  # speech_presentations: 1
    speech = next(s for s in result.shown if s.source == "speech")
    lengths = [0.3 + 0.05 * (i % 7) for i in range(18)]
    assert speech.audio_seconds == pytest.approx(sum(lengths), abs=0.01)
    steps = [e for e in events if e["kind"] == "step"]
    assert result.tokens == sum(e["tokens"] for e in steps)
    assert result.gradients.max == pytest.approx(max(e["grad_norm"] for e in steps))


def test_result_says_where_it_came_from(done, world):
    result, _, _ = done
    resolved, _ = toy.resolved(*world)
    lineage = result.lineage
    assert lineage.spec_hash == resolved.hash
    assert set(lineage.data) == {"text", "speech", "test"}
    assert (lineage.device, lineage.precision, lineage.threads, lineage.world_size) == ("cpu", "fp32", 1, 1)
    assert {"torch", "transformers", "peft"} <= set(lineage.versions)
    assert {(s.modality, s.metric) for s in result.scores} >= {("speech", "accuracy"), ("text", "accuracy")}
    assert all(s.n == 9 and s.ci_low <= s.value <= s.ci_high for s in result.scores)


def test_a_finished_job_is_not_run_again(done, world):
    result, store, _ = done
    before = store.list()
    assert go(world, store, model="never touched") == result
    assert store.list() == before


def test_another_job_does_not_go_on_from_these_checkpoints(done, world):
    _, store, _ = done
    resolved, corpus = toy.resolved(*world, seed=5)
    with pytest.raises(SpecError, match="holds the job 'toy' of another spec"):
        run(resolved, store, corpus=corpus, threads=1)


def test_pause_and_resume_end_like_an_undisturbed_run(done, world, tmp_path):
    result, calm, _ = done
    store = FolderStore(tmp_path)
    told = iter(["continue", "continue", "checkpoint_and_exit"])
    paused = go(world, store, control=lambda: next(told))
    assert (paused.outcome, paused.reason, paused.steps) == ("yielded", "yielded", 3)
    assert not store.exists("final.json")
    resumed = go(world, store)
    assert (resumed.outcome, resumed.attempt, resumed.attempts) == ("succeeded", 2, [1, 2])
    adapter = "adapter/adapter_model.safetensors"
    assert store.get(f"{resumed.checkpoint}/{adapter}") == calm.get(f"{result.checkpoint}/{adapter}")
    for modality in ("speech", "text"):
        assert store.get(f"attempts/2/predictions/{modality}.jsonl") == calm.get(
            f"attempts/1/predictions/{modality}.jsonl"
        )
    same = {"scores", "shown", "tokens", "final_loss", "gradients"}
    assert resumed.model_dump(include=same) == result.model_dump(include=same)


def test_a_warm_process_gives_the_same_bits(done, world, tmp_path):
    result, calm, _ = done
    model = load(world[0], name=str(world[0]))
    for n in (1, 2):
        store = FolderStore(tmp_path / str(n))
        again = go(world, store, model=model)
        assert not model.trained
        adapter = "adapter/adapter_model.safetensors"
        assert store.get(f"{again.checkpoint}/{adapter}") == calm.get(f"{result.checkpoint}/{adapter}")
        assert again.scores == result.scores


@pytest.fixture(scope="module")
def another(tmp_path_factory):
    return toy.base(tmp_path_factory.mktemp("another") / "base", seed=5)


@pytest.mark.parametrize(
    ("which", "changes", "message"),
    [("another", {}, r"base: the job was resolved with .*base \(files:.*\), loaded is other \(files:"),
     ("same", {"precision": "bf16"}, "precision: the job computes in bf16 on cpu, other is loaded in fp32"),
     ("half", {}, "precision: the job computes in fp32 on cpu, other is loaded in bf16")],
)  # fmt: skip
def test_a_lent_model_that_is_not_the_jobs_is_refused(world, another, tmp_path, which, changes, message):
    resolved, corpus = toy.resolved(*world, **changes)
    dtype = torch.bfloat16 if which == "half" else torch.float32
    model = load(another if which == "another" else world[0], name="other", dtype=dtype)
    result = run(resolved, FolderStore(tmp_path), corpus=corpus, model=model, threads=1)
    assert (result.reason, result.steps) == ("invalid_spec", 0)
    assert re.search(message, result.message)
    assert not model.trained


def test_a_lent_model_of_the_hub_is_known_by_name_and_commit(world):
    resolved, _ = toy.resolved(*world)
    spec = resolved.spec.model_copy(update={"base": "owner/name"})
    model = load(world[0], name="owner/name")
    check_loaded(model, spec, None, "fp32")
    check_loaded(model, spec, "main", "fp32")
    with pytest.raises(SpecError, match=r"owner/name \(0000.*loaded is owner/name \(base\)"):
        check_loaded(model, spec, "0" * 40, "fp32")
    with pytest.raises(SpecError, match=r"owner/name \(not pinned\), loaded is owner/other"):
        check_loaded(load(world[0], name="owner/other"), spec, None, "fp32")


def test_a_base_that_changed_since_it_was_resolved_is_refused(world, tmp_path):
    folder = toy.base(tmp_path / "base")
    resolved, corpus = toy.resolved(folder, world[1])
    toy.base(folder, seed=5)
    result = run(resolved, FolderStore(tmp_path / "out"), corpus=corpus, threads=1)
    assert (result.reason, result.steps) == ("invalid_spec", 0)
    assert "resolve the job again" in result.message


def test_a_family_unlike_the_bases_is_refused_before_training(world, tmp_path, monkeypatch):
    resolved, corpus = toy.resolved(*world, family="qwen2_audio")
    monkeypatch.setattr("trainer.families.family_of", lambda folder: "another_family")
    result = run(resolved, FolderStore(tmp_path), corpus=corpus, threads=1)
    assert (result.reason, result.steps) == ("invalid_spec", 0)
    assert "is of the family another_family (given: 'qwen2_audio')" in result.message


def test_ranks_go_round_the_gpus():
    assert [own_device(rank, 0) for rank in range(2)] == ["cpu", "cpu"]
    assert [own_device(rank, 2) for rank in range(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]


def test_two_attempts_at_once_both_come_to_their_end(done, world, tmp_path):
    """The second begins, trains and finishes in the middle of the first."""
    calm, _, _ = done
    store, others, notes = FolderStore(tmp_path), [], []

    def meanwhile(event):
        if event["kind"] == "step" and event["step"] == 3 and not others:
            others.append(go(world, store))
        notes.extend([event["message"]] if event["kind"] == "note" else [])

    result = go(world, store, sink=meanwhile)
    (other,) = others
    assert (other.outcome, other.attempt) == ("succeeded", 2)
    assert result == other
    assert notes == ["attempt 2 finished before this one; its result stays the job's"]
    first = Result.model_validate_json(store.get("attempts/1/result.json"))
    assert (first.outcome, first.attempts, first.scores) == ("succeeded", [1, 2], calm.scores)
    assert Result.model_validate_json(store.get("final.json")) == other


def test_the_cause_of_a_late_failure_is_not_masked(world, tmp_path, monkeypatch):
    store = FolderStore(tmp_path)
    put = store.put

    def full(key, data):
        if key == "final.json":
            raise OSError("disk full")
        put(key, data)

    monkeypatch.setattr(store, "put", full)
    with pytest.raises(OSError, match="disk full"):
        go(world, store)
    assert Result.model_validate_json(store.get("attempts/1/result.json")).outcome == "succeeded"


def test_a_time_limit_ends_with_a_checkpoint_and_says_so(world, tmp_path):
    store, now = FolderStore(tmp_path), iter(range(0, 1000, 10))
    result = go(world, store, control=Limit(35, clock=lambda: next(now)))
    assert (result.outcome, result.reason, result.steps) == ("yielded", "timeout", 4)
    assert "resources.time" in result.message
    assert result.checkpoint == "attempts/1/checkpoints/4"
    assert go(world, store, control=Limit(None)).outcome == "succeeded"


def test_a_signal_and_the_limit_share_one_control():
    was = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        now = iter([0, 1, 99])
        stop = Stop(Limit(50, clock=lambda: next(now)))
        assert (stop(), stop.reason) == ("continue", None)
        assert (stop(), stop.reason) == ("checkpoint_and_exit", "timeout")
        asked = Stop(Limit(None))
        signal.raise_signal(signal.SIGINT)
        assert (asked(), asked.reason) == ("checkpoint_and_exit", None)
    finally:
        for number, handler in was.items():
            signal.signal(number, handler)


def test_bad_data_leaves_a_result_with_reason_and_log(world, tmp_path):
    folder = toy.data(tmp_path / "data")
    resolved, corpus = toy.resolved(world[0], folder)
    (folder / "speech/audio/train3.wav").write_bytes(b"no audio")
    store = FolderStore(tmp_path / "out")
    result = run(resolved, store, corpus=corpus, threads=1)
    assert (result.outcome, result.reason) == ("failed", "invalid_data")
    assert "train3.wav" in result.message
    assert 0 < result.steps < 9
    assert result.checkpoint == f"attempts/1/checkpoints/{result.steps // 2 * 2}"
    assert result.log_tail[-1]["kind"] == "error"
    assert "Traceback" in result.log_tail[-1]["traceback"]
    assert Result.model_validate_json(store.get("attempts/1/result.json")) == result
    soundfile.write(folder / "speech/audio/train3.wav", toy.wave(220, 0.45, seed=3), 16000)
    assert run(resolved, store, corpus=corpus, threads=1).outcome == "succeeded"


def test_changed_data_is_refused(world, tmp_path):
    folder = toy.data(tmp_path / "data")
    resolved, _ = toy.resolved(world[0], folder)
    path = folder / "text/train.jsonl"
    path.write_text(path.read_text().replace("a tone called low", "a low tone"))
    result = run(resolved, FolderStore(tmp_path / "out"), roots=[folder], threads=1)
    assert (result.reason, result.steps) == ("invalid_data", 0)
    assert "data.text" in result.message
    assert "has changed" in result.message


def test_a_changed_test_set_is_refused(world, tmp_path):
    folder = toy.data(tmp_path / "data")
    resolved, _ = toy.resolved(world[0], folder)
    path = folder / "speech/test.jsonl"
    path.write_text(path.read_text().replace("tone 4 is", "the tone 4 is"))
    result = run(resolved, FolderStore(tmp_path / "out"), roots=[folder], threads=1)
    assert (result.reason, result.steps) == ("invalid_data", 0)
    assert "evaluate.on: " in result.message
    assert "has changed" in result.message


def test_a_recording_longer_than_the_window_is_named(world, tmp_path):
    folder = toy.data(tmp_path / "data")
    soundfile.write(folder / "speech/audio/test4.wav", np.zeros(17 * 16000, np.float32), 16000)
    rows = (folder / "speech/test.jsonl").read_text().splitlines()
    rows[4] = json.dumps({**json.loads(rows[4]), "duration_s": 17.0})
    (folder / "speech/test.jsonl").write_text("\n".join(rows) + "\n")
    resolved, corpus = toy.resolved(world[0], folder)
    result = run(resolved, FolderStore(tmp_path / "out"), corpus=corpus, threads=1)
    assert result.reason == "invalid_data"
    assert "utterance test-4: 17.00 s of audio, the base hears at most 16 s" in result.message


def test_a_bug_is_written_and_raised(world, tmp_path, monkeypatch):
    store = FolderStore(tmp_path)
    monkeypatch.setattr("trainer.baselines.predict", lambda *_, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        go(world, store)
    result = Result.model_validate_json(store.get("attempts/1/result.json"))
    assert (result.outcome, result.reason, result.steps) == ("failed", "infrastructure", 9)
    monkeypatch.undo()
    assert go(world, store).outcome == "succeeded"


def test_a_base_that_changed_under_training_is_no_success(world, tmp_path, monkeypatch):
    """Also where the process loaded it itself."""
    loaded, loading = [], running.load_base

    def keep(*arguments):
        loaded.append(loading(*arguments))
        return loaded[0]

    def spoil(event):
        if event["kind"] == "step" and event["step"] == 5:
            loaded[0].stock.lm_head.weight.data[0, 0] += 1

    monkeypatch.setattr(running, "load_base", keep)
    store = FolderStore(tmp_path)
    with pytest.raises(RuntimeError, match="base model's weights changed"):
        go(world, store, sink=spoil)
    assert not store.exists("final.json")
    assert Result.model_validate_json(store.get("attempts/1/result.json")).reason == "infrastructure"


def in_two(ranks, world, out):
    go(world, FolderStore(out), ranks=ranks)


def test_two_ranks_leave_one_result(done, world, tmp_path):
    alone, calm, _ = done
    spawn(in_two, 2, world, tmp_path, method="fork")
    store = FolderStore(tmp_path)
    result = Result.model_validate_json(store.get("final.json"))
    assert (result.outcome, result.attempts, result.lineage.world_size) == ("succeeded", [1], 2)
    assert result.final_loss == pytest.approx(alone.final_loss, rel=1e-4)
    assert result.shown == alone.shown
    speech = "attempts/1/predictions/speech.jsonl"
    both = [[json.loads(line)["utterance"] for line in s.get(speech).splitlines()] for s in (store, calm)]
    assert both[0] == both[1]


def test_auto_follows_the_hearing_check_once_for_all_attempts(world, tmp_path):
    resolved, corpus = toy.resolved(*world, tuning={"rank": 4, "encoder": "auto"})
    store, events = FolderStore(tmp_path), []
    told = iter(["continue", "checkpoint_and_exit"])
    paused = run(resolved, store, events.append, lambda: next(told), corpus=corpus, threads=1)
    assert paused.outcome == "yielded"
    assert paused.hearing["encoder"] == "lora"  # random weights hear nothing
    kinds = [e["kind"] for e in events]
    said = next(e["message"] for e in events if e["kind"] == "note")
    assert said.startswith("encoder: lora. base WER ")
    assert kinds.index("note") < kinds.index("step")
    stored = store.get("inputs/encoder.json")
    resumed = run(resolved, store, corpus=corpus, threads=1)
    assert resumed.hearing == json.loads(stored)
    tensors = tensors_of(store.get(f"{resumed.checkpoint}/adapter/adapter_model.safetensors"))
    assert any("audio_tower" in key for key in tensors)


def test_a_cancel_does_not_wait_for_the_hearing_check(world, tmp_path):
    resolved, corpus = toy.resolved(*world, tuning={"rank": 4, "encoder": "auto"})
    store = FolderStore(tmp_path)
    result = run(resolved, store, control=lambda: "abort", corpus=corpus, threads=1)
    assert (result.outcome, result.reason, result.steps) == ("failed", "user", 0)
    assert not store.exists("inputs/encoder.json")


def test_a_test_set_that_cannot_be_scored_is_said_before_training(world, tmp_path):
    folder = toy.data(tmp_path / "data")
    path = folder / "speech/test.jsonl"
    path.write_text(path.read_text().replace('"label": "low"', '"label": null', 1))
    resolved, corpus = toy.resolved(world[0], folder)
    result = run(resolved, FolderStore(tmp_path / "out"), corpus=corpus, threads=1)
    assert (result.reason, result.steps) == ("invalid_data", 0)
    assert "test utterance test-0 cannot be scored" in result.message


def test_command_line(world, tmp_path, capsys):
    resolved, _ = toy.resolved(*world)
    spec = tmp_path / "job.json"
    spec.write_text(resolved.spec.model_dump_json(by_alias=True, exclude_unset=True))
    out = str(tmp_path / "out")
    command = [str(spec), "--out", out, "--data-root", str(world[1])]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "speech   tone" in said
    assert "checkpoints/9/adapter" in said
    spec.write_text(spec.read_text().replace('"global_batch":8', '"global_bach":8'))
    assert main(command) == 2
    assert "did you mean 'global_batch'?" in capsys.readouterr().err


def failed(out) -> Result:
    """The one result that a start left in a folder; nothing else lies there."""
    store = FolderStore(out)
    assert store.list() == ["attempts/1/claim.json", "attempts/1/result.json"]
    return newest_result(str(out))


@pytest.fixture
def start(world, tmp_path):
    """`start(out, **changes)`: the exit code of the toy job with changed fields, run by the command line."""
    resolved, _ = toy.resolved(*world)
    plain = json.loads(resolved.spec.model_dump_json(by_alias=True, exclude_unset=True, exclude={"tasks"}))

    def start(out, root=world[1], **changes):
        path = tmp_path / "job.json"
        path.write_text(json.dumps({**plain, **changes}))
        return main([str(path), "--out", str(out), "--data-root", str(root)])

    return start


@pytest.mark.parametrize(
    ("changes", "name", "reason", "words"),
    [({"global_bach": 8}, "job", "invalid_spec", "did you mean 'global_batch'?"),
     ({"tuning": {"targets": ["qproj"]}}, "toy", "invalid_spec", "tuning.targets[0]: "),
     ({"base": "./nowhere"}, "toy", "invalid_spec", "no such folder"),
     ({"data": {"text": "text", "speech": "nowhere"}}, "toy", "invalid_data", "data.speech: ")],
)  # fmt: skip
def test_what_cannot_begin_leaves_a_result(start, tmp_path, changes, name, reason, words, capsys):
    code = start(tmp_path / "out", **changes)
    if "base" in changes:  # known only when the base is loaded: run() leaves the result
        result = newest_result(str(tmp_path / "out"))
    else:
        result = failed(tmp_path / "out")
        assert result.message == capsys.readouterr().err.strip()
    assert code == 2
    assert (result.name, result.outcome, result.reason, result.steps) == (name, "failed", reason, 0)
    assert words in result.message


def test_a_job_goes_on_where_it_could_not_begin(start, tmp_path):
    assert start(tmp_path / "out", language="nowhere!") == 2
    assert start(tmp_path / "out") == 0
    assert newest_result(str(tmp_path / "out")).attempts == [1, 2]


def test_a_finished_run_keeps_its_result_whatever_is_started_there(start, tmp_path, capsys):
    out = tmp_path / "out"
    assert start(out) == 0
    store = FolderStore(out)
    before = {key: store.get(key) for key in store.list()}
    for changes, words in (
        ({"seed": 5}, "holds the job 'toy' of another spec"),
        ({"global_bach": 8}, "unknown key"),
        ({"data": {"text": "text", "speech": "nowhere"}}, "data.speech: "),
    ):
        assert start(out, **changes) == 2
        assert words in capsys.readouterr().err
    assert {key: store.get(key) for key in store.list()} == before


def test_a_paused_run_whose_data_are_gone_says_so_and_another_spec_leaves_nothing(start, tmp_path):
    out, gone = tmp_path / "out", tmp_path / "gone"
    gone.mkdir()
    assert start(out, resources={"time": "0.001s"}) == 1
    assert start(out, gone, resources={"time": "0.001s"}, seed=5) == 2
    assert newest_result(str(out)).reason == "timeout"
    assert start(out, gone, resources={"time": "0.001s"}) == 2
    result = newest_result(str(out))
    assert (result.reason, result.attempt, result.attempts) == ("invalid_data", 2, [1, 2])


def test_a_job_pinned_to_an_older_base_in_s3_is_refused(world, s3_base, tmp_path):
    base = s3_base(world[0])
    resolved, corpus = toy.resolved(*world, base=base)
    model = load(locate_base(base), name=base)
    check_loaded(model, resolved.spec, resolved.base_revision, "fp32")
    s3_base(toy.base(tmp_path / "new", seed=5))
    result = run(resolved, FolderStore(tmp_path / "out"), corpus=corpus, threads=1)
    assert (result.reason, result.steps) == ("invalid_spec", 0)
    assert "its files have changed since the job was resolved" in result.message
    with pytest.raises(SpecError, match="the job was resolved with s3://"):
        check_loaded(load(locate_base(base), name=base), resolved.spec, resolved.base_revision, "fp32")


def test_command_line_keeps_the_time_limit(world, tmp_path, capsys):
    resolved, _ = toy.resolved(*world, resources={"time": "0.001s"})
    spec = tmp_path / "job.json"
    spec.write_text(resolved.spec.model_dump_json(by_alias=True, exclude_unset=True))
    assert main([str(spec), "--out", str(tmp_path / "out"), "--data-root", str(world[1])]) == 1
    assert "timeout after 1 of 9 steps: the time limit" in capsys.readouterr().out


@pytest.mark.parametrize("out", ["/dev/null/x", "s3://bucket/x"])
def test_a_place_that_cannot_be_written_is_one_line(world, tmp_path, out, monkeypatch, capsys):
    for name, value in (("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "y"), ("AWS_MAX_ATTEMPTS", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nothing listens there
    resolved, _ = toy.resolved(*world)
    path = tmp_path / "job.yaml"
    fields = {"recipe", "data", "steps", "tuning", "global_batch", "name", "base", "language"}
    path.write_text(json.dumps(resolved.spec.model_dump(mode="json", by_alias=True, include=fields)))
    assert main([str(path), "--out", out, "--data-root", str(world[1])]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"--out {out}: cannot be written or read")
