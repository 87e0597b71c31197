"""What is made of recordings ahead of a step, and what is not made at all."""

import threading

import numpy as np
import pytest
import torch
import toy

from trainer import audio, loop, views
from trainer.ahead import Ahead
from trainer.example import Clip, wave_key
from trainer.families import load
from trainer.feature_store import FeatureStore
from trainer.features import FeatureCache
from trainer.spec import Execution
from trainer.store import FolderStore
from trainer.tokens import DataError
from trainer.views import SPEECH, Recordings, example


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return toy.base(folder / "base"), toy.data(folder / "data")


def job(world, encoder="frozen"):
    return toy.resolved(*world, tuning={"rank": 4, "alpha": 8, "encoder": encoder})


def model_of(resolved, world, prefetch=2):
    model = load(world[0], tuning=resolved.spec.tuning, seed=resolved.spec.seed)
    model.execution = Execution(prefetch=prefetch)
    return model


@pytest.mark.parametrize("encoder", ["frozen", "lora"])
def test_a_step_decodes_nothing_and_makes_no_frames(world, encoder, monkeypatch):
    """All of it is done by the threads; and it is the same training."""
    resolved, corpus = job(world, encoder)
    files = []
    for prefetch in (0, 2):
        model, by = model_of(resolved, world, prefetch), set()
        frames, read = model.frames, audio.read

        def made(wave, frames=frames, by=by):
            by.add(threading.current_thread() is threading.main_thread())
            return frames(wave)

        def decoded(*where, read=read, by=by):
            by.add(threading.current_thread() is threading.main_thread())
            return read(*where)

        monkeypatch.setattr(model, "frames", made)
        monkeypatch.setattr(audio, "read", decoded)
        assert toy.loop(resolved, corpus, model).run().reason is None
        monkeypatch.undo()
        assert by == {not prefetch}
        files.append(model.files())
    assert files[0] == files[1]


@pytest.mark.parametrize("prefetch", [0, 2])
def test_frames_that_cannot_be_made_are_said_by_the_step_that_needs_them(world, prefetch, monkeypatch):
    resolved, corpus = job(world)
    model, events = model_of(resolved, world, prefetch), []
    made = toy.loop(resolved, corpus, model, sink=events.append)
    plan, stage = made.plans[1], resolved.stages[1]
    spoken = [i for i in range(len(plan.row)) if plan.view[i] == 1]
    at = next(i for i in spoken if i >= 8)  # not of the stage's first step
    broken = np.asarray(made.examples(stage, stage.sources[plan.source[at]], int(plan.row[at]), 1, at).wave)
    frames = model.frames

    def fails(wave):
        if np.array_equal(wave, broken):
            raise ValueError("no frames of this one")
        return frames(wave)

    monkeypatch.setattr(model, "frames", fails)
    with pytest.raises(ValueError, match="no frames of this one"):
        made.run()
    assert made.step == resolved.stages[0].steps + at // 8


def test_what_is_known_of_a_recording_is_not_decoded_again(world, monkeypatch):
    resolved, corpus = job(world)
    rows, task = corpus.sources["speech"].rows[:3], next(t for t in resolved.spec.tasks if t.name == "tone")
    model, recordings = load(world[0]), Recordings(16000, limit_bytes=0)  # none but the last is held
    first = [model.listened(example(u, SPEECH, task, model.tokens, recordings), kept=model.keeps) for u in rows]
    want = model.audio_states([h for e in first for h in e.heard])
    monkeypatch.setattr(audio, "read", None)
    again = [model.listened(example(u, SPEECH, task, model.tokens, recordings), kept=model.keeps) for u in rows]
    assert [e.prompt for e in again] == [e.prompt for e in first]
    found = model.audio_states([h for e in again for h in e.heard])
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


def test_a_recording_that_is_gone_when_it_is_decoded_again_is_named(world, monkeypatch):
    resolved, corpus = job(world)
    rows, task = corpus.sources["speech"].rows[:2], next(t for t in resolved.spec.tasks if t.name == "tone")
    model, recordings = load(world[0]), Recordings(16000, limit_bytes=0)
    made = [example(u, SPEECH, task, model.tokens, recordings) for u in rows]

    def gone(path, *where):
        raise audio.AudioError(path, "missing", "no such file")

    monkeypatch.setattr(audio, "read", gone)
    with pytest.raises(DataError, match=rf"utterance {rows[0].id}: .*{rows[0].id.replace('-', '')}.wav: no such file"):
        model.listened(made[0], kept=True)


def test_no_more_is_remembered_of_recordings_than_a_bound(world, monkeypatch):
    monkeypatch.setattr(views, "CLIPS", 2)
    recordings, rows = Recordings(16000), job(world)[1].sources["speech"].rows
    first = [recordings.clip(u) for u in (rows[0], rows[1], rows[0])]
    assert first[0] is first[2]
    recordings.clip(rows[2])
    assert len(recordings._clips) == 1
    again = recordings.clip(rows[0])
    assert again is not first[0]
    assert again.key == first[0].key


def test_a_clip_is_decoded_for_its_samples_alone():
    wave, read = toy.wave(220, 0.5), []
    clip = Clip(lambda: read.append(1) or wave)
    assert len(clip) == len(wave)
    assert clip.key == wave_key(clip) == wave_key(wave)
    decoded = len(read)
    assert (len(clip), clip.key) == (len(wave), wave_key(wave))
    assert len(read) == decoded
    assert np.asarray(clip) is wave


def test_a_repeated_step_waited_for_its_examples_once(world, monkeypatch):
    """The clock stands still but while examples are waited for."""
    resolved, corpus = job(world)
    now, whole, events, asked = [0.0], Ahead.step, [], set()

    def step(ahead, t):
        if t not in asked:
            now[0] += 5.0
        asked.add(t)
        return whole(ahead, t)

    monkeypatch.setattr(Ahead, "step", step)
    monkeypatch.setattr(loop, "time", type("clock", (), {"perf_counter": lambda: now[0]}))
    made = toy.loop(resolved, corpus, model_of(resolved, world), sink=events.append, budget=400)
    backward, failures = made._backward, iter([torch.OutOfMemoryError("CUDA out of memory")])

    def fails_once(*given, **options):
        if (error := next(failures, None)) is not None:
            raise error
        return backward(*given, **options)

    monkeypatch.setattr(made, "_backward", fails_once)
    made.stages, made.plans = made.stages[:1], made.plans[:1]
    assert made.run().reason is None
    steps = [e for e in events if e["kind"] == "step"]
    assert any("is repeated" in e["message"] for e in events if e["kind"] == "note")
    assert [e["data_wait"] for e in steps] == [e["seconds"] for e in steps] == [5.0] * len(steps)


def test_threads_share_a_cache(tmp_path):
    """Memory for two, shards of three: whatever was put is found, in memory, waiting or stored."""
    cache = FeatureCache(FeatureStore(FolderStore(tmp_path), shard_bytes=3 * 400), limit=2 * 400)
    wrong, there, start = [], [], threading.Barrier(4)

    def work(k):
        start.wait()
        for turn in range(40):
            cache.put("e", f"{k} {turn}", np.full(100, 100 * k + turn, np.float32))
            there.append((k, turn))
            other, n = there[7 * turn % len(there)]
            found = cache.get("e", f"{other} {n}")
            if found is None or not (found == 100 * other + n).all():
                wrong.append((other, n, found))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(there) == 160
    assert cache.bytes == 2 * 400
