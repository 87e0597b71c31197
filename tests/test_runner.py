"""A runner against the protocol over HTTP, in this process: a toy base, real jobs, a real store."""

import os
import shutil
import threading

import pytest
import toy
from protocol_server import ProtocolServer, until

import trainer.evaluate
import trainer.lease
import trainer.runner
from trainer.datasets import examine, store_version
from trainer.lease import FencedError
from trainer.ranks import Ranks, spawn
from trainer.result import Result
from trainer.run import run
from trainer.runner import BOOTSTRAP, EndedError, Settings, SettingsError, main, serve
from trainer.store import FolderStore
from trainer.tokens import DataError

ADAPTER = "adapter/adapter_model.safetensors"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return toy.base(folder / "base"), toy.data(folder / "data")


@pytest.fixture(scope="module")
def job(world):
    return toy.resolved(*world)[0]


@pytest.fixture(scope="module")
def calm(world, job, tmp_path_factory):
    """(result, store) of the same job without any service."""
    store = FolderStore(tmp_path_factory.mktemp("calm"))
    return run(job, store, roots=[world[1]], threads=1), store


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("ATTUNE_THREADS", "1")
    monkeypatch.setattr(trainer.lease, "RETRY_S", 0.01)
    found = ProtocolServer()
    yield found
    found.close()


@pytest.fixture
def settings(server, world, tmp_path):
    return lambda **changes: Settings(
        **{"runner": "run-1", "api": server.url, "store": str(tmp_path / "store"), "pool": "pool-1",
           "data": [str(world[1])], "idle_exit_s": 0, "beat_s": 0.01, **changes}
    )  # fmt: skip


def left(tmp_path, name):
    return FolderStore(tmp_path / "store" / "projects" / "p" / "jobs" / name)


def same_bits(store, result, calm):
    undisturbed, other = calm
    assert store.get(f"{result.checkpoint}/{ADAPTER}") == other.get(f"{undisturbed.checkpoint}/{ADAPTER}")
    for modality in ("speech", "text"):
        kept = f"predictions/{modality}.jsonl"
        assert store.get(f"attempts/{result.attempt}/{kept}") == other.get(f"attempts/1/{kept}")


class At:
    """`watch` that does something at steps, each once; training waits for it."""

    def __init__(self, actions):
        self.actions = dict(actions)

    def __call__(self, event):
        if event["kind"] == "step" and (action := self.actions.pop(event["step"], None)):
            action()


def test_two_jobs_one_base(server, settings, job, world, calm, tmp_path):
    other = toy.resolved(*world, seed=3)[0]
    first, second = server.submit(job, "ftjob-1"), server.submit(other, "ftjob-2")
    os.environ[BOOTSTRAP] = "code-1"
    assert serve(Ranks(), settings(), "code-1") == "no work for 0 s"
    assert BOOTSTRAP not in os.environ
    assert (server.codes, sum("register" in call for call in server.calls)) == (set(), 1)
    notes = [e["message"] for a in (first, second) for e in a.events if e["kind"] == "note"]
    assert len([n for n in notes if n.startswith("base ")]) == 1
    for attempt, name in ((first, "ftjob-1"), (second, "ftjob-2")):
        assert attempt.steps() == list(range(1, 10))
        store = left(tmp_path, name)
        final = Result.model_validate_json(store.get("final.json"))
        assert (final.outcome, final.attempt) == ("succeeded", 1)
        assert (attempt.done["outcome"], attempt.done["reason"]) == ("succeeded", None)
        assert attempt.done["result_sha256"] == store.digest("final.json")[1]
        states = [e["state"] for e in attempt.events if e["kind"] == "state"]
        assert states == ["loading", "training", "evaluating"]
        assert attempt.events[-1]["kind"] == "predicted"
    same_bits(left(tmp_path, "ftjob-1"), calm[0], calm)
    asked = server.claims[0]
    assert (asked["protocol"], asked["pool"], asked["world_size"], asked["kinds"]) == (1, "pool-1", 1, ["train"])


def test_uploaded_data_sets_come_from_the_store_wherever_the_service_keeps_its_own(
    server, settings, world, calm, tmp_path, monkeypatch
):
    store, service, inputs = FolderStore(tmp_path / "store"), tmp_path / "service", {}
    for name in ("speech", "text"):
        shutil.copytree(world[1] / name, service / f"file-{name}")
        report, version = examine(name, [world[1]])
        inputs[f"file-{name}"] = store_version(store, "projects/p", version, report)
    job = toy.resolved(world[0], service, data={"text": "file-text", "speech": "file-speech"})[0]
    assert (job.spec.evaluate.on, job.test.ref) == ("file-speech:test", "file-speech:test")
    shutil.rmtree(service)
    monkeypatch.setenv("ATTUNE_CACHE", str(tmp_path / "cache"))
    attempt = server.submit(job, "ftjob-1", inputs=inputs)
    serve(Ranks(), settings(data=[]), "code-1")
    assert attempt.done["outcome"] == "succeeded"
    result = Result.model_validate_json(left(tmp_path, "ftjob-1").get("final.json"))
    same_bits(left(tmp_path, "ftjob-1"), result, calm)


def test_the_code_is_good_once(server, settings):
    server.codes.clear()
    with pytest.raises(EndedError, match="its code was used before"):
        serve(Ranks(), settings(), "code-1")
    assert server.claims == []


def test_a_runner_that_is_drained_leaves(server, settings):
    server.drained = True
    assert serve(Ranks(), settings(idle_exit_s=3600), "code-1") == "asked to leave"


def test_a_service_that_is_away_from_the_start_is_not_waited_for_longer_than_work(server, settings):
    server.close()
    try:
        assert serve(Ranks(), settings(idle_exit_s=0.05), "code-1") == "no work for 0.05 s"
    finally:
        server.open()


def test_nothing_is_lost_or_doubled_while_the_service_is_away(server, settings, job, calm, tmp_path, capfd):
    attempt = server.submit(job, "ftjob-1")

    def back():
        until(lambda: "is away" in capfd.readouterr().err)
        server.lost_replies = 1
        server.open()

    serve(Ranks(), settings(), "code-1", At({3: server.close, 6: back}))
    assert attempt.steps() == list(range(1, 10))
    assert attempt.acked == len(attempt.events)
    assert attempt.done["outcome"] == "succeeded"
    same_bits(left(tmp_path, "ftjob-1"), calm[0], calm)


def test_a_claim_whose_answer_was_lost_is_made_once(server, settings, job):
    first, second = server.submit(job, "ftjob-1"), server.submit(job, "ftjob-2")
    server.lost_claims = 2

    def drain(event):
        server.drained |= event["kind"] == "predicted" and first.done is not None

    assert serve(Ranks(), settings(idle_exit_s=3600), "code-1", drain) == "asked to leave"
    assert [a.done["outcome"] for a in (first, second)] == ["succeeded"] * 2
    assert len(server.claims) >= 4


def test_a_store_that_does_not_answer_after_the_end_costs_no_result(
    server, settings, job, monkeypatch, tmp_path, capfd
):
    attempt = server.submit(job, "ftjob-1")
    monkeypatch.setattr(trainer.lease.LeasedStore, "digest", lambda *_: 1 / 0)
    serve(Ranks(), settings(), "code-1")
    assert (attempt.done["outcome"], attempt.done["result_sha256"]) == ("succeeded", None)
    assert "final.json: written, but not read back (division by zero)" in capfd.readouterr().err
    assert left(tmp_path, "ftjob-1").exists("final.json")


def test_fenced_it_writes_nothing_more(server, settings, job, tmp_path):
    attempt, before = server.submit(job, "ftjob-1"), []

    def fence():
        until(lambda: attempt.steps()[-1:] == [3])
        attempt.fenced = True
        until(lambda: "beats ftjob-1/1" not in {thread.name for thread in threading.enumerate()})  # it has heard
        before.extend(left(tmp_path, "ftjob-1").list())

    with pytest.raises(FencedError):
        serve(Ranks(), settings(), "code-1", At({3: fence}))
    assert left(tmp_path, "ftjob-1").list() == before
    assert not any(key.endswith("result.json") for key in before)
    assert (attempt.steps(), attempt.done) == ([1, 2, 3], None)


def test_paused_it_yields_and_the_next_attempt_ends_like_an_undisturbed_one(server, settings, job, calm, tmp_path):
    attempt = server.submit(job, "ftjob-1")

    def pause():
        attempt.action = "checkpoint_and_exit"
        beats = len(attempt.beats)
        until(lambda: len(attempt.beats) > beats + 1)

    assert serve(Ranks(), settings(), "code-1", At({3: pause})) == "no work for 0 s"
    assert (attempt.done["outcome"], attempt.done["reason"]) == ("yielded", "yielded")
    assert attempt.steps()[-1] == 4
    server.codes.add("code-2")
    again = server.submit(job, "ftjob-1", attempt=2)
    serve(Ranks(), settings(), "code-2")
    assert again.done["outcome"] == "succeeded"
    assert again.steps() == list(range(5, 10))
    store = left(tmp_path, "ftjob-1")
    same_bits(store, Result.model_validate_json(store.get("final.json")), calm)
    assert {key.split("/")[1] for key in store.list("attempts/")} == {"1", "2"}


def test_aborted_it_ends_for_its_user_and_goes_on_to_the_next_job(server, settings, job, world):
    attempt = server.submit(job, "ftjob-1")

    def cancel():
        attempt.action = "abort"
        beats = len(attempt.beats)
        until(lambda: len(attempt.beats) > beats + 1)

    second = server.submit(toy.resolved(*world, seed=3)[0], "ftjob-2")
    serve(Ranks(), settings(), "code-1", At({3: cancel}))
    assert (attempt.done["outcome"], attempt.done["reason"]) == ("failed", "user")
    assert second.done["outcome"] == "succeeded"


def test_without_the_service_for_long_it_leaves_a_checkpoint_and_goes(server, settings, job, tmp_path, capfd):
    attempt = server.submit(job, "ftjob-1")

    def lose():
        server.close()
        until(lambda: "is away" in capfd.readouterr().err)

    try:
        with pytest.raises(EndedError, match="how ftjob-1/1 ended stands in the store"):
            serve(Ranks(), settings(detached_max_s=0), "code-1", At({3: lose}))
    finally:
        server.open()
    assert attempt.done is None
    kept = Result.model_validate_json(left(tmp_path, "ftjob-1").get("attempts/1/result.json"))
    assert (kept.outcome, kept.steps, kept.checkpoint) == ("yielded", 4, "attempts/1/checkpoints/4")


def test_a_time_limit_is_a_timeout(server, settings, world):
    attempt = server.submit(toy.resolved(*world, resources={"time": "0.001s"})[0], "ftjob-1")
    serve(Ranks(), settings(), "code-1")
    assert (attempt.done["outcome"], attempt.done["reason"]) == ("yielded", "timeout")
    assert "resources.time" in attempt.done["message"]


def test_a_base_that_is_not_there_is_the_jobs_failure(server, settings, job, calm):
    gone = job.model_copy(update={"spec": job.spec.model_copy(update={"base": "/no/such/base"})})
    attempt, fine = server.submit(gone, "ftjob-1"), server.submit(job, "ftjob-2")
    serve(Ranks(), settings(), "code-1")
    assert (attempt.done["outcome"], attempt.done["reason"]) == ("failed", "invalid_spec")
    assert "/no/such/base" in attempt.done["message"]
    assert fine.done["outcome"] == "succeeded"


def test_a_base_relative_to_a_data_folder_is_found_from_anywhere(world, server, settings, job, tmp_path, monkeypatch):
    """As where a spec by REST names `models/tiny`, and Ray's workers stand in folders of their own."""
    monkeypatch.chdir(tmp_path)
    relative = job.model_copy(update={"spec": job.spec.model_copy(update={"base": world[0].name})})
    assert relative.hash == job.hash
    attempt = server.submit(relative, "ftjob-1")
    serve(Ranks(), settings(data=[str(world[1]), str(world[0].parent)]), "code-1")
    assert attempt.done["outcome"] == "succeeded", attempt.done


def test_missing_data_is_the_jobs_failure(server, settings, job, tmp_path):
    attempt = server.submit(job, "ftjob-1")
    serve(Ranks(), settings(data=[str(tmp_path)]), "code-1")
    assert (attempt.done["outcome"], attempt.done["reason"]) == ("failed", "invalid_data")
    assert attempt.done["result_sha256"] == left(tmp_path, "ftjob-1").digest("attempts/1/result.json")[1]


def test_after_an_unexpected_error_it_takes_no_further_job(server, settings, job, tmp_path, monkeypatch):
    attempt, second = server.submit(job, "ftjob-1"), server.submit(job, "ftjob-2")
    monkeypatch.setattr("trainer.baselines.predict", lambda *_, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        serve(Ranks(), settings(), "code-1")
    assert (attempt.done["outcome"], attempt.done["reason"]) == ("failed", "infrastructure")
    assert attempt.done["message"].startswith("ZeroDivisionError: ")
    assert (second.beats, second.done) == ([], None)


def test_a_base_that_changed_ends_the_process_and_publishes_nothing(server, settings, job, monkeypatch, tmp_path):
    """The checksum over the base after an attempt: something wrote to it."""
    attempt = server.submit(job, "ftjob-1")
    loaded, load = [], trainer.runner.load_base

    def keep(*arguments):
        loaded.append(load(*arguments))
        return loaded[0]

    def spoil():
        loaded[0].stock.lm_head.weight.data[0, 0] += 1

    monkeypatch.setattr("trainer.runner.load_base", keep)
    with pytest.raises(RuntimeError, match="base model's weights changed"):
        serve(Ranks(), settings(), "code-1", At({5: spoil}))
    assert (attempt.done["outcome"], attempt.done["reason"]) == ("failed", "infrastructure")
    store = left(tmp_path, "ftjob-1")
    assert not store.exists("final.json")
    result = Result.model_validate_json(store.get("attempts/1/result.json"))
    assert (result.outcome, result.reason, result.scores) == ("failed", "infrastructure", [])


def test_a_job_that_changes_the_base_gets_a_runner_of_its_own(server, settings, world, job):
    spec = {"tuning": {"method": "projector", "encoder": "frozen"},
            "recipe": {"name": "limited_speech", "scheme": "speech_only"}}  # fmt: skip
    alone, second = server.submit(toy.resolved(*world, **spec)[0], "ftjob-1"), server.submit(job, "ftjob-2")
    assert "one attempt per runner" in serve(Ranks(), settings(), "code-1")
    assert alone.done["outcome"] == "succeeded"
    assert second.beats == []


def test_a_hash_that_differs_is_another_code(server, settings, job):
    attempt = server.submit(job, "ftjob-1")
    server.queue[0]["spec_hash"] = "0" * 64
    with pytest.raises(EndedError, match=r"hash is .* in the code .* of this runner"):
        serve(Ranks(), settings(), "code-1")
    assert (attempt.done["outcome"], attempt.done["reason"]) == ("failed", "infrastructure")


def test_a_number_is_given_once(server, settings, job, tmp_path):
    left(tmp_path, "ftjob-1").put("attempts/1/claim.json", b"another's")
    attempt = server.submit(job, "ftjob-1")
    with pytest.raises(ValueError, match=r"attempts/1/claim\.json: exists"):
        serve(Ranks(), settings(), "code-1")
    assert attempt.done["reason"] == "infrastructure"
    assert left(tmp_path, "ftjob-1").list() == ["attempts/1/claim.json"]


def test_a_finished_job_is_only_reported(server, settings, job, calm, tmp_path):
    store = left(tmp_path, "ftjob-1")
    for key in calm[1].list():
        store.put(key, calm[1].get(key))
    attempt = server.submit(job, "ftjob-1", attempt=2)
    serve(Ranks(), settings(), "code-1")
    assert (attempt.done["outcome"], attempt.steps()) == ("succeeded", [])
    assert attempt.done["result_sha256"] == store.digest("final.json")[1]


def both(ranks, settings):
    serve(ranks, settings, "code-1")


def test_two_ranks_one_speaks(server, settings, job, calm, tmp_path):
    first, second = server.submit(job, "ftjob-1"), server.submit(job, "ftjob-2")
    first.action = "checkpoint_and_exit"
    spawn(both, 2, settings(world_size=2), method="fork")
    assert sum("register" in call for call in server.calls) == 1
    assert {asked["world_size"] for asked in server.claims} == {2}
    assert first.done["outcome"] == "yielded"
    assert (second.done["outcome"], second.steps()) == ("succeeded", list(range(1, 10)))
    final = Result.model_validate_json(left(tmp_path, "ftjob-2").get("final.json"))
    assert final.lineage.world_size == 2
    assert final.final_loss == pytest.approx(calm[0].final_loss, rel=1e-4)


def deaf(ranks, settings, error):
    """Rank 1 fails alone in the first batch that it scores, and never again."""
    if ranks.rank == 1:
        generate, left = trainer.evaluate.generate, [error]

        def once(*arguments, **options):
            if left:
                raise left.pop()
            return generate(*arguments, **options)

        trainer.evaluate.generate = once
    serve(ranks, settings, "code-1")


def test_a_rank_that_fails_alone_costs_one_job_and_not_the_runner(server, settings, job):
    first, second = server.submit(job, "ftjob-1"), server.submit(job, "ftjob-2")
    spawn(deaf, 2, settings(world_size=2), DataError("broken recording"), method="fork")
    assert (first.done["outcome"], first.done["reason"]) == ("failed", "invalid_data")
    assert first.done["message"] == "broken recording"
    assert (second.done["outcome"], second.steps()) == ("succeeded", list(range(1, 10)))


def test_an_unexpected_failure_of_another_rank_ends_the_runner(server, settings, job):
    first, second = server.submit(job, "ftjob-1"), server.submit(job, "ftjob-2")
    with pytest.raises(Exception, match="in a batch"):
        spawn(deaf, 2, settings(world_size=2), ZeroDivisionError("in a batch"), method="fork")
    assert (first.done["outcome"], first.done["reason"]) == ("failed", "infrastructure")
    assert first.done["message"] == "ZeroDivisionError: in a batch"
    assert second.beats == []


def test_a_cancel_during_the_evaluation_does_not_wait_for_its_end(server, settings, job, tmp_path, monkeypatch):
    """And a pause leads to another evaluation of the same checkpoint, without a step."""
    monkeypatch.setattr("trainer.evaluate.BATCH_TOKENS", 1)
    monkeypatch.setattr("trainer.evaluate.scoring.PROGRESS_S", 0)
    paused, cancelled = server.submit(job, "ftjob-1"), server.submit(job, "ftjob-2")

    def order(event):
        if event["kind"] == "progress" and event["done"] == 2:
            mine = next(a for a in (paused, cancelled) if a.done is None)
            mine.action = "checkpoint_and_exit" if mine is paused else "abort"
            beats = len(mine.beats)
            until(lambda: len(mine.beats) > beats + 1)

    serve(Ranks(), settings(), "code-1", order)
    assert (paused.done["outcome"], paused.done["reason"]) == ("yielded", "yielded")
    assert (cancelled.done["outcome"], cancelled.done["reason"]) == ("failed", "user")
    for attempt in (paused, cancelled):
        assert attempt.steps() == list(range(1, 10))
        assert [e["done"] for e in attempt.events if e["kind"] == "progress"] == [1, 2]
        assert "predicted" not in {e["kind"] for e in attempt.events}
    server.codes.add("code-2")
    again = server.submit(job, "ftjob-1", attempt=2)
    serve(Ranks(), settings(), "code-2")
    assert (again.done["outcome"], again.steps()) == ("succeeded", [])
    final = Result.model_validate_json(left(tmp_path, "ftjob-1").get("final.json"))
    assert (final.steps, final.checkpoint, final.attempts) == (9, "attempts/1/checkpoints/9", [1, 2])
    assert {e["of"] for e in again.events if e["kind"] == "progress"} == {9}


def test_what_the_environment_lacks_is_named(monkeypatch, capsys):
    for name in list(os.environ):
        if name.startswith("ATTUNE_"):
            monkeypatch.delenv(name)
    assert main(["--local"]) == 2
    assert capsys.readouterr().err == (
        "set ATTUNE_RUNNER_ID, ATTUNE_API_URL, ATTUNE_STORE, ATTUNE_POOL, ATTUNE_BOOTSTRAP_CODE\n"
    )
    given = {"ATTUNE_RUNNER_ID": "run-1", "ATTUNE_API_URL": "http://x", "ATTUNE_STORE": "s", "ATTUNE_POOL": "p"}
    with pytest.raises(SettingsError, match="ATTUNE_IDLE_EXIT_S is 'soon'"):
        Settings.read({**given, BOOTSTRAP: "c", "ATTUNE_IDLE_EXIT_S": "soon"})
    said = {**given, BOOTSTRAP: "c", "ATTUNE_DATA": os.pathsep.join(["a", "b"]), "ATTUNE_WORLD_SIZE": "2"}
    settings, code = Settings.read(said)
    assert (settings.data, settings.world_size, settings.detached_max_s, code) == (["a", "b"], 2, 1800.0, "c")
    assert BOOTSTRAP not in said
