"""Data sets that lie in S3: used like any other, recordings fetched as they are asked for, into a bounded cache."""

import hashlib
import json
import multiprocessing
import uuid
from pathlib import Path

import numpy as np
import pytest
import soundfile
from specs import corpus_folder

from api.local_paths import leaves
from trainer import audio, streamed
from trainer.corpus import read_corpus
from trainer.datasets import examine
from trainer.fields import SpecError
from trainer.local_cache import LocalCache, limit_bytes
from trainer.manifest import ManifestError, load, locate
from trainer.object_store import DamagedError
from trainer.resolve import check_pins, read_and_resolve
from trainer.spec import parse_job
from trainer.tokens import DataError
from trainer.validate import validate_dataset

BYTES = 2 * 16_000 * 2.1 + 44
"""Of the longest clip: 16-bit samples, and a header."""


class Bucket:
    """An S3 bucket that counts what is read of it."""

    def __init__(self, client, monkeypatch):
        self.client, self.name, self.read = client, f"data-{uuid.uuid4().hex[:12]}", []
        self.client.create_bucket(Bucket=self.name)
        plain = streamed._fetch

        def fetch(uri, key, etag, target):
            self.read.append(key)
            plain(uri, key, etag, target)

        monkeypatch.setattr(streamed, "_fetch", fetch)
        monkeypatch.setattr(streamed, "FRESH_S", 0.0)

    def put(self, folder: Path, prefix: str = "sets/turns") -> str:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            key = f"{prefix}/{path.relative_to(folder).as_posix()}"
            self.client.put_object(Bucket=self.name, Key=key, Body=path.read_bytes())
        return f"s3://{self.name}/{prefix}"


@pytest.fixture
def bucket(s3, monkeypatch):
    for memory in (streamed._store, streamed._recordings, streamed._listing):
        memory.cache_clear()
    return Bucket(s3, monkeypatch)


@pytest.fixture
def folder(tmp_path):
    """12 recordings of train and 6 of test."""
    folder = corpus_folder(tmp_path / "turns")
    (folder / "audio").mkdir()
    for split, count in (("train", 12), ("test", 6)):
        for n in range(count):
            wave = np.random.default_rng([n, count]).normal(0, 0.1, 16000 + 1600 * n).astype(np.float32)
            soundfile.write(folder / "audio" / f"{split}-{n}.wav", wave, 16000)
    return folder


def copies(tmp_path) -> list[Path]:
    return sorted(p for p in (tmp_path / "cache" / "recordings").rglob("*.wav"))


def spec(uri: str, **fields):
    return parse_job(
        {"name": "t", "base": "models/tiny", "language": "en", "data": {"corpus": uri}, "steps": 4, "global_batch": 4}
        | fields
    )


class TestReference:
    def test_rows_are_those_of_the_folder_and_no_recording_is_read(self, bucket, folder):
        uri = bucket.put(folder)
        for suffix, count in (("", 46), (":train", 40), (":test", 6), ("/test.jsonl", 6), ("/", 46)):
            there, here = load(uri + suffix), load(str(folder) + suffix)
            assert len(there) == count
            assert [(u.id, u.text, u.label) for u in there] == [(u.id, u.text, u.label) for u in here]
        assert bucket.read == []

    def test_a_job_is_resolved_from_listing_and_manifests_alone(self, bucket, folder):
        uri = bucket.put(folder)
        resolved, corpus = read_and_resolve(spec(uri))
        assert resolved.test.ref == f"{uri}:test"
        assert resolved.sources["speech"].ref == f"{uri}:train"
        assert (resolved.sources["speech"].rows, len(corpus.tasks)) == (12, 1)
        assert bucket.read == []
        again = read_and_resolve(spec(uri))[0]
        assert again.hash == resolved.hash

    @pytest.mark.parametrize("change", ["recording", "manifest"])
    def test_a_data_set_that_changed_is_another(self, bucket, folder, change):
        uri = bucket.put(folder)
        resolved = read_and_resolve(spec(uri))[0]
        if change == "recording":
            soundfile.write(folder / "audio" / "train-3.wav", np.zeros(8000), 16000)
        else:
            rows = (folder / "train.jsonl").read_text().replace("number 3", "number three")
            (folder / "train.jsonl").write_text(rows)
        bucket.put(folder)
        with pytest.raises(DataError, match="has changed since the job was resolved"):
            check_pins(resolved, read_corpus(spec(uri)))

    def test_what_is_not_there_is_said(self, bucket, folder):
        uri = bucket.put(folder)
        for ref, said in (
            (f"{uri}s", "nothing is stored there"),
            (f"{uri}:trian", "no split 'trian', did you mean 'train'"),
            (f"{uri}/audio", "no manifest.jsonl or train/dev/test.jsonl in s3://"),
            (f"{uri}/other.jsonl", "has: test, train"),
            ("s3://no-such-bucket-here/x", "cannot be listed"),
        ):
            with pytest.raises(ManifestError, match=said):
                load(ref)
        with pytest.raises(SpecError, match=r"data\.corpus: .*nothing is stored there"):
            read_corpus(spec(f"{uri}s"))

    def test_a_damaged_manifest_is_brought_again(self, bucket, folder):
        uri = bucket.put(folder)
        here = locate(f"{uri}:train").files[0]
        here.write_text("{}\n")
        assert len(load(f"{uri}:train")) == 40

    def test_the_service_does_not_read_buckets_for_strangers_nor_copy_them(self, bucket, folder):
        uri = bucket.put(folder)
        assert leaves(uri)
        with pytest.raises(ManifestError, match="lies in S3 already"):
            examine(uri)


class TestRecordings:
    def test_the_same_samples_as_on_disk_read_once(self, bucket, folder, tmp_path):
        uri = bucket.put(folder)
        rows, own = load(f"{uri}:test"), load(f"{folder}:test")
        for _ in range(2):
            for there, here in zip(rows, own, strict=True):
                assert np.array_equal(audio.read(there.audio, 0.1, 0.2), audio.read(here.audio, 0.1, 0.2))
                assert audio.info(there.audio) == audio.info(here.audio)
        assert bucket.read == [f"audio/test-{n}.wav" for n in range(6)]
        assert len(copies(tmp_path)) == 6

    def test_all_of_a_data_set_is_validated_through_a_cache_of_three_clips(self, bucket, folder, tmp_path, monkeypatch):
        monkeypatch.setenv("ATTUNE_CACHE_GB", str(3.5 * BYTES / 1e9))
        report = validate_dataset(bucket.put(folder), listen=True)
        assert (report.recordings, report.errors) == (18, 0)
        kept = copies(tmp_path)
        assert 2 <= len(kept) <= 7
        assert sum(path.stat().st_size for path in kept) <= 3.5 * BYTES

    def test_a_damaged_copy_is_fetched_again(self, bucket, folder, tmp_path):
        uri = bucket.put(folder)
        row = load(f"{uri}:test")[0]
        whole = audio.read(row.audio)
        (copy,) = copies(tmp_path)
        data = copy.read_bytes()
        for damage in (data[:-100], data[:9000] + b"\xff" + data[9001:], b""):
            copy.unlink()
            copy.write_bytes(damage)
            assert np.array_equal(audio.read(row.audio), whole)
        assert bucket.read == ["audio/test-0.wav"] * 4

    def test_a_transfer_that_is_not_its_etag_is_repeated_and_then_refused(self, bucket, folder, monkeypatch):
        row = load(f"{bucket.put(folder)}:test")[0]
        store, bad = streamed._store(streamed._object(row.audio)[0].uri), [True, False]
        whole = store.fetch

        def fetch(key, path, etag=None):
            whole(key, path, etag)
            if bad.pop(0):
                Path(path).write_bytes(b"x" * 99)

        monkeypatch.setattr(store, "fetch", fetch)
        assert len(audio.read(row.audio)) == 16000
        bad[:] = [True, True]
        with pytest.raises(DamagedError, match="came with MD5"):
            audio.read(load(f"{bucket.put(folder)}:test")[1].audio)

    def test_an_object_under_a_key_service_is_not_compared_with_its_etag(self, bucket, folder, monkeypatch):
        row = load(f"{bucket.put(folder)}:test")[0]
        listing, key = streamed._object(row.audio)
        store = streamed._store(listing.uri)
        assert store.tags_are_md5(key)
        monkeypatch.setattr(store.client, "head_object", lambda **_: {"ServerSideEncryption": "aws:kms"})
        assert not store.tags_are_md5(key)

    @pytest.mark.parametrize("change", ["missing", "changed"])
    def test_a_recording_that_is_no_longer_as_it_was_listed(self, bucket, folder, change):
        uri = bucket.put(folder)
        row = load(f"{uri}:test")[0]
        if change == "missing":
            bucket.client.delete_object(Bucket=bucket.name, Key="sets/turns/audio/test-0.wav")
        else:
            bucket.client.put_object(Bucket=bucket.name, Key="sets/turns/audio/test-0.wav", Body=b"another")
        with pytest.raises(audio.AudioError) as said:
            audio.read(row.audio)
        assert said.value.code == change
        assert str(said.value).startswith(f"{uri}/audio/test-0.wav: ")

    def test_a_row_without_its_recording_is_reported_on_its_line(self, bucket, folder):
        (folder / "audio" / "test-2.wav").unlink()
        report = validate_dataset(f"{bucket.put(folder)}:test")
        (issue,) = report.issues
        assert (issue.line, issue.code) == (3, "audio_missing")
        assert issue.value == f"s3://{bucket.name}/sets/turns/audio/test-2.wav"


# ---- the cache by itself


def write(data: bytes):
    return lambda path: path.write_bytes(data)


def never(path):
    raise AssertionError("is there already")


class TestCache:
    def test_what_was_used_longest_ago_goes_first(self, tmp_path):
        cache = LocalCache(tmp_path, limit=50)
        for name in "abcd":
            cache.path(name, write(name.encode() * 10))
        cache.path("a", never)
        for name in "ef":  # 60 bytes are too many: b and c go, for 45 to be left
            cache.path(name, write(name.encode() * 10))
        for name in "adef":
            assert cache.path(name, never).read_bytes() == name.encode() * 10
        assert not any(cache._found(name, None) for name in "bc")

    def test_a_file_larger_than_the_limit_is_kept_while_it_is_the_newest(self, tmp_path):
        cache = LocalCache(tmp_path, limit=50)
        small = cache.path("small", write(b"s"))
        assert cache.path("large", write(b"l" * 99)).read_bytes() == b"l" * 99
        assert not small.exists()
        cache.path("next", write(b"n"))
        assert cache._found("large", None) is None

    def test_bytes_that_are_not_those_that_are_known(self, tmp_path):
        cache, said = LocalCache(tmp_path, limit=50), hashlib.sha256(b"right").hexdigest()
        answers = iter([b"wrong", b"right"])
        path = cache.path("k", lambda path: path.write_bytes(next(answers)), sha256=said, suffix=".bin")
        assert (path.read_bytes(), path.name) == (b"right", f"{said}.bin")
        with pytest.raises(DamagedError, match="came twice"):
            cache.path("other", write(b"wrong"), sha256=said)
        assert [p for p in tmp_path.rglob("*") if p.is_file() and p != path] == [tmp_path / "lock"]

    def test_a_fetch_that_fails_leaves_nothing(self, tmp_path):
        def fetch(path):
            path.write_bytes(b"half")
            raise OSError("the line went dead")

        with pytest.raises(OSError, match="went dead"):
            LocalCache(tmp_path, limit=50).path("k", fetch)
        assert not [p for p in tmp_path.rglob("*") if p.is_file()]

    def test_a_lost_count_is_made_again(self, tmp_path):
        cache = LocalCache(tmp_path, limit=35)
        for name in "abc":
            cache.path(name, write(name.encode() * 10))
        (tmp_path / "lock").write_text("not a number")
        cache.path("d", write(b"d" * 10))
        assert int((tmp_path / "lock").read_text()) == sum(p.stat().st_size for p in tmp_path.glob("??/*/*")) == 30

    @pytest.mark.parametrize("given", ["0", "-1", "much", "nan"])
    def test_a_size_that_is_none_is_refused(self, given, monkeypatch):
        monkeypatch.setenv("ATTUNE_CACHE_GB", given)
        with pytest.raises(ValueError, match=f"ATTUNE_CACHE_GB is '{given}'"):
            limit_bytes()


def use(folder: str, worker: int, out) -> None:
    cache = LocalCache(folder, limit=2000)
    for n in range(200):
        name = (n * (worker + 3)) % 40
        for _ in range(9):
            try:
                data = cache.path(str(name), write(bytes([name]) * 100)).read_bytes()
            except FileNotFoundError:
                continue
            break
        assert data == bytes([name]) * 100
    out.put(worker)


def test_several_processes_share_one_cache(tmp_path):
    context = multiprocessing.get_context("fork")
    out = context.Queue()
    workers = [context.Process(target=use, args=(str(tmp_path), n, out)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    held = list(tmp_path.glob("??/*/*"))
    assert sum(p.stat().st_size for p in held) <= 2000
    assert all(hashlib.sha256(p.read_bytes()).hexdigest() == p.name for p in held)
    json.loads((tmp_path / "lock").read_text())


def test_a_job_trains_from_s3_as_from_a_folder(bucket, tmp_path, monkeypatch):
    import toy

    from trainer.run import run
    from trainer.store import FolderStore

    base, data = toy.base(tmp_path / "base"), toy.data(tmp_path / "data")
    speech, text = bucket.put(data / "speech", "sets/speech"), bucket.put(data / "text", "sets/text")
    left = []
    for name, fields in (("folder", {}), ("s3", {"data": {"text": text, "speech": speech}})):
        resolved, corpus = toy.resolved(base, data, **fields)
        if name == "s3":
            assert bucket.read == []
            monkeypatch.setenv("ATTUNE_CACHE_GB", "0.00005")  # a few clips: they come and go
        store = FolderStore(tmp_path / name)
        result = run(resolved, store, corpus=corpus, threads=1)
        assert result.outcome == "succeeded"
        adapter = store.get(f"{result.checkpoint}/adapter/adapter_model.safetensors")
        left.append((adapter, store.get("attempts/1/predictions/speech.jsonl")))
    assert left[0] == left[1]
    assert resolved.sources["speech"].ref == f"{speech}:train"
    assert resolved.test.ref == f"{speech}:test"
    assert len(set(bucket.read)) > 9
    assert sum(path.stat().st_size for path in copies(tmp_path)) <= 50_000
