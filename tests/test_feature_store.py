"""Encoder states in the artifact store: shared, checked, made again where they are damaged."""

import hashlib
import json
import uuid

import boto3
import numpy as np
import pytest
import torch
import toy

from trainer import feature_store
from trainer.example import wave_key
from trainer.families import load
from trainer.feature_store import FeatureStore
from trainer.features import FeatureCache
from trainer.store import FolderStore, S3Store, StoreError


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path, monkeypatch):
    monkeypatch.setenv("ATTUNE_CACHE", str(tmp_path / "cache"))
    if request.param == "folder":
        return FolderStore(tmp_path / "store")
    endpoint = request.getfixturevalue("moto_endpoint")
    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
    bucket = f"store-{uuid.uuid4().hex[:12]}"
    boto3.client("s3", endpoint_url=endpoint, **keys).create_bucket(Bucket=bucket)
    return S3Store(bucket, "root", endpoint_url=endpoint, **keys)


def states(n, dtype=np.float32, vectors=5):
    return np.random.default_rng(n).normal(size=(vectors, 4)).astype(dtype)


def replace(store, key, data):
    """Changes an object behind the store's back."""
    if isinstance(store, FolderStore):
        store.path(key).write_bytes(data)
    else:
        store.client.put_object(Bucket=store.bucket, Key=store.prefix + key, Body=data)


def remove(store, key):
    if isinstance(store, FolderStore):
        store.path(key).unlink()
    else:
        store.client.delete_object(Bucket=store.bucket, Key=store.prefix + key)


def filled(store, count=3, **options):
    found = FeatureStore(store, **options)
    for n in range(count):
        found.put("e", f"w{n}", states(n))
    found.flush()
    return found


def one(store, suffix):
    (key,) = (key for key in store.list("features/e/") if key.endswith(suffix))
    return key


def test_another_process_reads_the_same_bits(store):
    wide = np.zeros((0, 4), np.float32)
    kinds = {"plain": states(1), "half": states(2, np.float16), "empty": wide, "long": states(3, vectors=999)}
    kinds["bf16"] = (states(4).view(np.uint32) & 0xFFFF0000).view(np.float32)
    first = FeatureStore(store)
    for wave, value in kinds.items():
        first.put("e", wave, value)
        assert first.get("e", wave) is value
    first.flush()
    for reader in (first, FeatureStore(store)):
        for wave, value in kinds.items():
            found = reader.get("e", wave)
            assert found is not None
            assert (found.dtype, found.shape) == (value.dtype, value.shape)
            assert np.array_equal(found.view(np.uint8), value.view(np.uint8))
            found += 1  # its own memory
        assert reader.get("e", "other") is None
        assert reader.get("other", "plain") is None
    index = json.loads(store.get(one(store, ".json")))
    assert index["bytes"] == sum(value.nbytes for value in kinds.values()) - kinds["bf16"].nbytes // 2


def test_shards_are_written_once_and_more_states_are_more_shards(store):
    filled(store, shard_bytes=2 * states(0).nbytes)
    keys = store.list("features/e/")
    assert [key.rpartition(".")[2] for key in keys] == ["bin", "json"] * 2
    before = {key: store.get(key) for key in keys}
    filled(store, shard_bytes=2 * states(0).nbytes)  # another that did not look first
    assert {key: store.get(key) for key in store.list("features/e/")} == before
    assert all(FeatureStore(store).get("e", f"w{n}") is not None for n in range(3))


@pytest.mark.parametrize("damage", ["altered", "truncated", "missing", "another"])
def test_damaged_states_are_said_and_made_again(store, damage):
    filled(store, count=2)
    key = one(store, ".bin")
    data = store.get(key)
    match damage:
        case "altered":
            replace(store, key, data[:3] + bytes([data[3] ^ 1]) + data[4:])
        case "truncated":
            replace(store, key, data[: len(data) // 2 - 1])
        case "another":
            replace(store, key, data[::-1])
        case "missing":
            remove(store, key)
    said = []
    reader = FeatureStore(store, said.append)
    assert reader.get("e", "w0") is None
    assert [event["kind"] for event in said] == ["note"]
    assert "are damaged and made anew" in said[0]["message"]
    assert reader.get("e", "w0") is None
    for n in range(2):
        if reader.get("e", f"w{n}") is None:
            reader.put("e", f"w{n}", states(n))
    reader.flush()
    assert len(said) == 1
    later = FeatureStore(store, said.append)
    for n in range(2):
        assert np.array_equal(later.get("e", f"w{n}"), states(n))
    assert len(said) == 1  # nobody tries the damaged one again


def test_one_altered_value_costs_that_value_alone(tmp_path):
    store = FolderStore(tmp_path)
    filled(store)
    key = one(store, ".bin")
    data = store.get(key)
    replace(store, key, bytes([data[0] ^ 1]) + data[1:])
    reader = FeatureStore(store)
    assert reader.get("e", "w0") is None
    assert np.array_equal(reader.get("e", "w1"), states(1))


@pytest.mark.parametrize("change", [("{", ""), ('"w0"', '"v0"'), ("[5, 4]", "[4, 5]"), ("false", "true")])
def test_a_damaged_index_is_said_and_its_states_are_made_again(tmp_path, change):
    store, notes = FolderStore(tmp_path), []
    filled(store)
    key = one(store, ".json")
    replace(store, key, store.get(key).decode().replace(*change).encode())
    reader = FeatureStore(store, notes.append)
    assert [reader.get("e", f"w{n}") for n in range(3)] == [None] * 3
    assert len(notes) == 1
    assert f"the index {key} is damaged" in notes[0]["message"]
    for n in range(3):
        reader.put("e", f"w{n}", states(n))
    reader.flush()
    later = FeatureStore(store)
    assert all(np.array_equal(later.get("e", f"w{n}"), states(n)) for n in range(3))


def test_states_are_known_by_the_wave_that_they_are_of(tmp_path):
    """An index that is whole but wrong, as a fault in the program would write it."""
    store = FolderStore(tmp_path)
    filled(store)
    key = one(store, ".json")
    index = json.loads(store.get(key))
    places = index["states"]
    places["w0"], places["w1"] = places["w1"], places["w0"]
    data = json.dumps(index, sort_keys=True).encode() + b"\n"
    shard = hashlib.sha256(data).hexdigest()[:32]
    store.put(f"features/f/{shard}.json", data)
    store.put(f"features/f/{shard}.bin", store.get(one(store, ".bin")))
    reader = FeatureStore(store)
    assert [reader.get("f", f"w{n}") is None for n in range(3)] == [True, True, False]


def test_half_a_commit_is_none(tmp_path):
    store = FolderStore(tmp_path)
    filled(store)
    remove(store, one(store, ".json"))
    assert FeatureStore(store).get("e", "w0") is None


def test_what_others_add_is_found_after_a_while(tmp_path, monkeypatch):
    store = FolderStore(tmp_path)
    reader = FeatureStore(store)
    assert reader.get("e", "w0") is None
    filled(store)
    assert reader.get("e", "w0") is None
    monkeypatch.setattr(feature_store, "REFRESH_S", 0.0)
    assert np.array_equal(reader.get("e", "w0"), states(0))


def test_a_store_that_is_away_costs_time_only(tmp_path, monkeypatch):
    store, notes = FolderStore(tmp_path), []
    cache = FeatureCache(FeatureStore(store, notes.append, shard_bytes=1))

    def refused(*_):
        raise StoreError("the disk is full")

    monkeypatch.setattr(store, "put", refused)
    value = states(1)
    assert cache.put("e", "w", value) is value
    assert cache.get("e", "w") is value
    assert cache.get("e", "v") is None
    cache.flush()
    assert ["the disk is full" in note["message"] for note in notes] == [True]
    monkeypatch.undo()
    monkeypatch.setattr(feature_store, "time", type("clock", (), {"monotonic": staticmethod(lambda: 1e12)}))
    cache.put("e", "w", value)
    cache.flush()
    assert np.array_equal(FeatureStore(store).get("e", "w"), value)


# ---- with a model


WAVES = [toy.wave(220, 0.5), toy.wave(440, 0.3, seed=1)]


def test_a_second_machine_does_not_encode_again_and_damage_is_repaired(tmp_path):
    folder, store = toy.base(tmp_path / "base"), FolderStore(tmp_path / "store")
    calls, notes = [], []

    def found_by(note=lambda event: None):
        model = load(folder, cache=FeatureCache(FeatureStore(store, note)))
        states_of = model.states_of
        model.states_of = lambda heard: calls.extend(h.key for h in heard) or states_of(heard)
        found = model.audio_states(WAVES)
        model.cache.flush()
        return found

    first = found_by()
    assert calls == [wave_key(w) for w in WAVES]
    assert all(torch.equal(a, b) for a, b in zip(first, found_by(), strict=True))
    assert len(calls) == 2
    (key,) = (key for key in store.list("features/") if key.endswith(".bin"))
    data = store.get(key)
    replace(store, key, data[: len(data) // 3])
    for expected in (4, 4):
        again = found_by(notes.append)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert len(calls) == expected
    assert len(notes) == 1


def test_a_trained_encoder_leaves_nothing(tmp_path):
    store = FolderStore(tmp_path / "store")
    model = load(toy.base(tmp_path / "base"), cache=FeatureCache(FeatureStore(store)))
    model.encoder_is_base = False
    model.audio_states(WAVES)
    model.cache.flush()
    assert store.list() == []
