"""A job that starts from an earlier one's weights: as the model that it was, pinned, refused where it does not fit."""

import json

import pytest
import torch
import toy
from api_server import a_job, posted
from protocol_server import ProtocolServer
from safetensors.torch import load as tensors_of

from trainer.families import load
from trainer.fields import SpecError
from trainer.objectives import objective_loss
from trainer.plan import plan_stage
from trainer.ranks import Ranks
from trainer.result import Result
from trainer.run import run
from trainer.runner import Settings, serve
from trainer.start import find_start
from trainer.store import FolderStore

pytest_plugins = ["databases", "api_service"]

ADAPTER = "adapter/adapter_model.safetensors"
ID = "ftjob-" + "0" * 25 + "1"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return toy.base(folder / "base"), toy.data(folder / "data")


def job(world, **changes):
    return toy.resolved(*world, **{"recipe": {"name": "sft"}, "steps": 2, "global_batch": 4, **changes})


def train(world, store, **changes):
    resolved, corpus = job(world, **changes)
    return run(resolved, store, corpus=corpus, threads=1)


@pytest.fixture(scope="module")
def earlier(world, tmp_path_factory):
    """(result, store) of the job that is started from, under the id that the service would have given it."""
    store = FolderStore(tmp_path_factory.mktemp("jobs") / ID)
    return train(world, store, seed=7), store


def test_training_starts_as_the_earlier_model_with_a_fresh_optimizer(world, earlier, tmp_path):
    result, store = earlier
    resolved, corpus = job(world, init_from=store.uri)
    events = []
    made = run(resolved, FolderStore(tmp_path), events.append, corpus=corpus, threads=1)
    assert made.outcome == "succeeded"
    assert made.lineage.init_from == {"ref": store.uri, "sha256": store.digest(f"{result.checkpoint}/{ADAPTER}")[1]}
    assert train(world, FolderStore(tmp_path / "plain")).lineage.init_from is None
    model = load(world[0], tuning=resolved.spec.tuning, seed=resolved.spec.seed)
    model.load_files({"adapter_model.safetensors": store.get(f"{result.checkpoint}/{ADAPTER}")})
    plan, examples = plan_stage(resolved, 0), toy.loop(resolved, corpus, model).examples
    stage = resolved.stages[0]
    first = [examples(stage, stage.sources[plan.source[i]], int(plan.row[i]), int(plan.view[i]), i) for i in range(4)]
    batch = model.collate(first)
    loss = float(objective_loss(stage.objective, model, batch).total.detach()) / len(batch.targets)
    assert next(e["loss"] for e in events if e["kind"] == "step") == pytest.approx(loss, rel=1e-5)


def test_resume_does_not_start_again(world, earlier, tmp_path):
    resolved, corpus = job(world, init_from=earlier[1].uri)
    whole = run(resolved, FolderStore(tmp_path / "whole"), corpus=corpus, threads=1)
    told, store = iter(["checkpoint_and_exit"]), FolderStore(tmp_path / "parts")
    run(resolved, store, control=lambda: next(told), corpus=corpus, threads=1)
    rest = run(resolved, store, corpus=corpus, threads=1)
    got, want = (
        s.get(f"{r.checkpoint}/{ADAPTER}") for s, r in ((store, rest), (FolderStore(tmp_path / "whole"), whole))
    )
    assert got == want


def test_the_hash_says_the_content_and_not_the_place(world, earlier, tmp_path):
    result, store = earlier
    places = [store.uri, f"{store.uri}/{result.checkpoint}", f"{store.uri}/{result.checkpoint}/adapter"]
    hashes = {job(world, init_from=place)[0].hash for place in places}
    assert len(hashes) == 1
    other = FolderStore(tmp_path)
    train(world, other, seed=8)
    plain, _ = job(world)
    assert len({plain.hash, job(world, init_from=other.uri)[0].hash, *hashes}) == 3
    stored = plain.model_dump(mode="json", by_alias=True)
    del stored["start"], stored["spec"]["init_from"]  # as jobs were stored before there was a choice
    assert type(plain).model_validate(stored).hash == plain.hash


def test_a_projector_that_learnt_alone_is_taken_into_lora(world, tmp_path):
    """And what the earlier job did not train is as in the base."""
    first = train(world, FolderStore(tmp_path / "first"), tuning={"method": "projector", "encoder": "frozen"})
    resolved, corpus = job(world, init_from=str(tmp_path / "first"))
    model = load(world[0], tuning=resolved.spec.tuning, seed=0)
    model.start_from(corpus.start.weights(), corpus.start.ref)
    left = tensors_of(FolderStore(tmp_path / "first").get(f"{first.checkpoint}/adapter/model.safetensors"))
    mine = tensors_of(model.files()["adapter_model.safetensors"])
    for name, value in left.items():
        assert torch.equal(mine[f"base_model.model.{name}"], value)
    assert all(not value.any() for name, value in mine.items() if "lora_B" in name)


@pytest.mark.parametrize("tuning", [{"dora": True}, {"encoder": "full"}, {"encoder": "lora"}, {"method": "full"}])
def test_every_kind_of_tuning_comes_back(world, tuning):
    tuning = job(world, tuning={"rank": 4, "alpha": 8, "encoder": "frozen", **tuning})[0].spec.tuning
    one, other = load(world[0], tuning=tuning, seed=1), load(world[0], tuning=tuning, seed=2)
    with torch.no_grad():
        for parameter in one.trained.values():
            parameter.add_(0.01)
    (weights,) = (data for name, data in one.files().items() if name.endswith(".safetensors"))
    other.start_from(weights, "there")
    assert other.files() == one.files()


@pytest.mark.parametrize(("tuning", "words"), [
    ({"rank": 8, "alpha": 8}, "rank 4, here tuning.rank is 8"), ({"rank": 4}, "alpha 8.*, here tuning.alpha is 32"),
    ({"method": "full"}, "a LoRA adapter, here tuning.method is full"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_loaded(world, earlier, tuning, words):
    with pytest.raises(SpecError, match=f"init_from: does not fit this job: {words}"):
        job(world, init_from=earlier[1].uri, tuning={"encoder": "frozen", **tuning})


def test_another_base_is_refused(world, earlier, tmp_path):
    other, (result, store) = (toy.base(tmp_path / "other", seed=5), world[1]), earlier
    for place in (store.uri, f"{store.uri}/{result.checkpoint}", f"{store.uri}/{result.checkpoint}/adapter/"):
        with pytest.raises(SpecError, match=r"trained on the base files:.*, here it is files:"):
            job(other, init_from=place)


def test_weights_that_are_none_end_the_job_with_a_reason(world, earlier, tmp_path):
    result, store = earlier
    config = store.get(f"{result.checkpoint}/adapter/adapter_config.json")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_bytes(config)
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"no tensors")
    made = train(world, FolderStore(tmp_path / "out"), init_from=str(tmp_path / "adapter"))
    assert (made.outcome, made.reason) == ("failed", "invalid_spec")
    assert "init_from: its weights cannot be read" in made.message


def test_weights_without_a_place_end_the_job_with_a_reason(world, earlier, tmp_path):
    changes = {"tuning": {"rank": 4, "alpha": 8, "encoder": "frozen", "projector": "frozen"}}
    made = train(world, FolderStore(tmp_path), init_from=earlier[1].uri, **changes)
    assert (made.outcome, made.reason) == ("failed", "invalid_spec")
    assert "2 of its" in made.message
    assert "multi_modal_projector" in made.message


def test_weights_that_changed_since_are_refused(world, earlier, tmp_path):
    result, store = earlier
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (tmp_path / name).write_bytes(store.get(f"{result.checkpoint}/adapter/{name}"))
    resolved, _ = job(world, init_from=str(tmp_path))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"others")
    made = run(resolved, FolderStore(tmp_path / "out"), roots=[world[1]], threads=1)
    assert (made.outcome, made.reason) == ("failed", "invalid_data")
    assert "init_from: " in made.message
    assert "has changed since" in made.message


def test_what_is_no_artifact_is_refused(world, earlier, tmp_path):
    for ref, words in (
        (str(tmp_path), "no job's folder, and no adapter_model.safetensors"), ("nowhere", "looked in .*nowhere"),
        (str(world[0]), "a whole model; name it in base"), (ID, "the service alone knows jobs by their id"),
    ):  # fmt: skip
        with pytest.raises(SpecError, match=words):
            find_start(ref)
    (tmp_path / "spec.json").write_text("{}")
    with pytest.raises(SpecError, match="has not come to its end"):
        find_start(str(tmp_path))
    (tmp_path / "final.json").write_text('{"checkpoint": null}')
    with pytest.raises(SpecError, match="trained nothing"):
        find_start(str(tmp_path))
    with pytest.raises(SpecError, match="recipe untuned trains nothing; leave init_from out"):
        job(world, recipe={"name": "untuned"}, init_from=earlier[1].uri, steps=None)
    with pytest.raises(SpecError, match="say init_from beside recipe"):
        job(world, recipe={"name": "contrastive", "init_from": "somewhere"})


# ---- the service


def test_a_runner_finds_it_by_its_id(world, earlier, tmp_path, monkeypatch):
    monkeypatch.setenv("ATTUNE_THREADS", "1")
    store = FolderStore(tmp_path / "store/projects/p/jobs" / ID)
    for key in earlier[1].list():
        store.put(key, earlier[1].get(key))
    from trainer.resolve import read_and_resolve

    spec = job(world)[0].spec.model_copy(update={"init_from": ID})
    resolved, _ = read_and_resolve(spec, [world[1]], str(tmp_path / "store/projects/p/jobs"))
    server = ProtocolServer()
    try:
        attempt = server.submit(resolved, "ftjob-2")
        settings = {"runner": "run-1", "api": server.url, "store": str(tmp_path / "store"), "pool": "pool-1"}
        serve(Ranks(), Settings(**settings, data=[str(world[1])], idle_exit_s=0, beat_s=0.01), "code-1")
    finally:
        server.close()
    assert attempt.done["outcome"] == "succeeded"
    final = FolderStore(tmp_path / "store/projects/p/jobs/ftjob-2").get("final.json")
    assert Result.model_validate_json(final).lineage.init_from["ref"] == ID


def test_an_id_is_good_within_its_project_once_the_job_has_succeeded(service, request):
    with service.client("write", request.node.name) as stranger:
        mine = service.queued(a_job())
        wanted = a_job(init_from=mine)
        assert "the job is queued; a job starts from one that has succeeded" in refused(service.http, wanted)
        service.finish(mine, {})
        place = service.store.path(f"projects/{service.project}/jobs/{mine}")
        (place / "final.json").write_text(json.dumps({"checkpoint": "attempts/1/checkpoints/3"}))
        (place / "spec.json").write_text(json.dumps({"base_revision": None}))
        folder = place / "attempts/1/checkpoints/3/adapter"
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_bytes(b"weights")
        lora = {"r": 16, "lora_alpha": 32.0, "use_rslora": False, "use_dora": False}
        (folder / "adapter_config.json").write_text(json.dumps(lora))
        hashes = [posted(service.http, "/v1/jobs?dry_run=true", spec)["spec_hash"] for spec in (wanted, a_job())]
        assert hashes[0] != hashes[1]
        posted(service.http, "/v1/jobs", wanted)
        assert "no such job" in refused(stranger, wanted)
        study = {"study": "s", "grid": {"seed": [1]}, **{k: v for k, v in wanted.items() if k != "name"}}
        posted(service.http, "/v1/studies?dry_run=true", study)
        assert "no such job" in refused(stranger, study, "/v1/studies")


def refused(client, spec, path="/v1/jobs"):
    answer = client.post(path, json=spec)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].endswith("init_from")
    return answer.json()["error"]["message"]
