"""The same promises on every store: a folder, S3 (moto), Ceph's S3 among the integration tests, and a service of yours
where ATTUNE_TEST_S3_ENDPOINT, ATTUNE_TEST_S3_ACCESS_KEY and ATTUNE_TEST_S3_SECRET_KEY name one.
"""

import json
import os
import subprocess
import sys
import threading
import uuid

import pytest

from trainer.store import (
    ConflictError,
    DamagedError,
    FolderStore,
    MissingError,
    S3Store,
    StoreError,
    commit,
    commits,
    open_store,
    read_commit,
)

pytest_plugins = ["gateway"]
KINDS = ["folder", "moto", pytest.param("ceph", marks=pytest.mark.process)]
KINDS += ["service"] if os.environ.get("ATTUNE_TEST_S3_ENDPOINT") else []


def s3_store(endpoint: str, key: str, secret: str) -> S3Store:
    bucket = f"attune-{uuid.uuid4().hex[:12]}"
    store = S3Store(
        bucket, "some/prefix", endpoint_url=endpoint, aws_access_key_id=key, aws_secret_access_key=secret
    )
    store.client.create_bucket(Bucket=bucket)
    return store


@pytest.fixture(params=KINDS)
def store(request, tmp_path):
    if request.param == "folder":
        return FolderStore(tmp_path / "store")
    if request.param == "moto":
        return s3_store(request.getfixturevalue("moto_endpoint"), "test", "test")
    if request.param == "ceph":
        real = request.getfixturevalue("gateway")
        return s3_store(real.endpoint, real.access_key, real.secret_key)
    env = os.environ
    return s3_store(
        env["ATTUNE_TEST_S3_ENDPOINT"], env["ATTUNE_TEST_S3_ACCESS_KEY"], env["ATTUNE_TEST_S3_SECRET_KEY"]
    )


class TestObjects:
    def test_what_is_put_is_got(self, store, tmp_path):
        store.put("a/b.bin", b"\x00\x01")
        (tmp_path / "big").write_bytes(b"x" * 3_000_000)
        store.put_file("a/big", tmp_path / "big")
        assert store.get("a/b.bin") == b"\x00\x01"
        assert store.exists("a/b.bin")
        assert not store.exists("a")
        store.fetch("a/big", tmp_path / "deep" / "copy")
        assert (tmp_path / "deep" / "copy").read_bytes() == b"x" * 3_000_000
        assert store.digest("a/b.bin")[0] == 2

    def test_an_empty_object_is_an_object(self, store):
        store.put("empty", b"")
        assert store.get("empty") == b""
        assert store.list() == ["empty"]

    def test_the_same_bytes_again_change_nothing(self, store, tmp_path):
        store.put("k", b"one")
        store.put("k", b"one")
        (tmp_path / "f").write_bytes(b"one")
        store.put_file("k", tmp_path / "f")
        assert store.get("k") == b"one"

    def test_other_bytes_are_refused_and_the_first_stay(self, store, tmp_path):
        store.put("k", b"one")
        with pytest.raises(ConflictError, match="k"):
            store.put("k", b"two")
        (tmp_path / "f").write_bytes(b"three")
        with pytest.raises(ConflictError):
            store.put_file("k", tmp_path / "f")
        assert store.get("k") == b"one"

    def test_list_is_sorted_and_by_prefix(self, store):
        for key in ("b/2", "a/10", "a/9", "ab", "a/1/x"):
            store.put(key, key.encode())
        assert store.list() == ["a/1/x", "a/10", "a/9", "ab", "b/2"]
        assert store.list("a/") == ["a/1/x", "a/10", "a/9"]
        assert store.list("a/1") == ["a/1/x", "a/10"]
        assert store.list("zzz/") == []

    def test_a_missing_key_is_named(self, store, tmp_path):
        for ask in (store.get, store.digest, lambda key: store.fetch(key, tmp_path / "out")):
            with pytest.raises(MissingError, match="no/such"):
                ask("no/such")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        "key", ["", "/abs", "a//b", "../up", "a/../../b", "a/.", "a\\b", "a/.tmp-1", "a\nb"]
    )
    def test_an_unsafe_key_is_refused(self, store, key):
        with pytest.raises(StoreError, match="key"):
            store.put(key, b"")
        with pytest.raises(StoreError, match="key"):
            store.get(key)

    def test_of_many_writers_one_wins(self, store):
        outcomes = []

        def write(n):
            try:
                store.put("race", str(n).encode())
                outcomes.append(n)
            except ConflictError:
                outcomes.append(None)

        threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        winners = [n for n in outcomes if n is not None]
        assert len(outcomes) == 8
        assert [str(n).encode() for n in winners] == [store.get("race")]


    def test_an_entry_changes_with_its_object_and_a_replaced_one_is_not_taken_for_it(self, moto_endpoint, tmp_path):
        store = s3_store(moto_endpoint, "test", "test")
        store.put("k", b"one")
        ((key, size, etag),) = store.entries()
        assert (key, size) == ("k", 3)
        store.fetch("k", tmp_path / "k", etag)
        assert (tmp_path / "k").read_bytes() == b"one"
        store.client.put_object(Bucket=store.bucket, Key="some/prefix/k", Body=b"two")
        assert store.entries() != [(key, size, etag)]
        with pytest.raises(StoreError, match=r"k: .* refused the read"):
            store.fetch("k", tmp_path / "again", etag)
        assert not (tmp_path / "again").exists()


class TestCommits:
    def test_a_commit_is_read_back(self, store, tmp_path):
        (tmp_path / "w").write_bytes(b"weights")
        made = commit(store, "ck/10", {"state.json": b"{}", "adapter/w": tmp_path / "w"})
        assert [entry["path"] for entry in made["files"]] == ["adapter/w", "state.json"]
        assert read_commit(store, "ck/10") == made
        assert store.get("ck/10/adapter/w") == b"weights"
        again = commit(store, "ck/10", {"state.json": b"{}", "adapter/w": b"weights"})
        assert again == made

    def test_without_a_manifest_nothing_exists(self, store):
        store.put("ck/10/state.json", b"{}")
        with pytest.raises(MissingError):
            read_commit(store, "ck/10")
        assert list(commits(store, "ck")) == []

    def test_the_newest_by_number_is_first_and_checked_when_read(self, store):
        for step in (9, 10, 100):
            commit(store, f"ck/{step}", {"state.json": str(step).encode()})
        commit(store, "ck/notes", {"a": b""})
        store.put("ck/2000/state.json", b"")  # died before its manifest
        damaged = {"files": [{"path": "state.json", "bytes": 3, "sha256": "0" * 64}]}
        store.put("ck/300/state.json", b"300")
        store.put("ck/300/manifest.json", json.dumps(damaged).encode())
        store.put("ck/400/manifest.json", b"[1, 2")
        store.put("ck/500/manifest.json", b'{"files": [1]}')
        assert list(commits(store, "ck")) == ["ck/500", "ck/400", "ck/300", "ck/100", "ck/10", "ck/9"]
        for broken in ("ck/500", "ck/400", "ck/300"):
            with pytest.raises(DamagedError, match=broken):
                read_commit(store, broken)

    def test_damage_names_the_file(self, store):
        entry = {"path": "lost", "bytes": 1, "sha256": "0" * 64}
        store.put("ck/1/manifest.json", json.dumps({"files": [entry]}).encode())
        with pytest.raises(DamagedError, match="ck/1/lost"):
            read_commit(store, "ck/1")
        store.put("ck/1/lost", b"xyz")
        with pytest.raises(DamagedError, match=r"ck/1/lost.*3 bytes"):
            read_commit(store, "ck/1")

    def test_a_manifest_cannot_reach_outside_the_store(self, store):
        entry = {"path": "../evil", "bytes": 0, "sha256": "0" * 64}
        store.put("ck/1/manifest.json", json.dumps({"files": [entry]}).encode())
        with pytest.raises(StoreError, match="key"):
            read_commit(store, "ck/1")

    def test_the_name_of_the_manifest_is_taken(self, store):
        with pytest.raises(StoreError, match="manifest"):
            commit(store, "ck/1", {"manifest.json": b""})


class TestFolder:
    def test_a_flipped_bit_is_seen(self, tmp_path):
        store = FolderStore(tmp_path)
        commit(store, "ck/1", {"a": b"abc"})
        commit(store, "ck/2", {"a": b"abc"})
        (tmp_path / "ck/2/a").write_bytes(b"abd")
        with pytest.raises(DamagedError, match="ck/2/a"):
            read_commit(store, "ck/2")
        assert read_commit(store, "ck/1")

    def test_without_hard_links_files_are_written_once_too(self, tmp_path, monkeypatch):
        def refused(*_):
            raise PermissionError("Operation not permitted")

        monkeypatch.setattr("os.link", refused)
        store = FolderStore(tmp_path)
        store.put("k", b"one")
        store.put("k", b"one")
        with pytest.raises(ConflictError, match="k: exists"):
            store.put("k", b"two")
        assert store.get("k") == b"one"
        assert [p.name for p in tmp_path.iterdir()] == ["k"]

    def test_leftovers_of_a_dead_writer_are_not_listed_and_go(self, tmp_path):
        store = FolderStore(tmp_path)
        store.put("a/b", b"1")
        (tmp_path / "a" / ".tmp-dead").write_bytes(b"half")
        assert store.list() == ["a/b"]
        assert store.sweep() == 1
        assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["b"]

    def test_a_failed_write_leaves_nothing(self, tmp_path):
        store = FolderStore(tmp_path / "s")
        with pytest.raises(FileNotFoundError):
            store.put_file("a/b", tmp_path / "absent")
        assert store.list() == []
        assert store.sweep() == 0


class TestS3:
    def test_a_service_without_conditional_writes_still_writes_once(self, moto_endpoint, monkeypatch):
        store = s3_store(moto_endpoint, "test", "test")
        put = store.client.put_object

        def no_conditions(**request):
            if "IfNoneMatch" in request:
                response = {"Error": {"Code": "NotImplemented"}, "ResponseMetadata": {"HTTPStatusCode": 501}}
                raise store.client.exceptions.ClientError(response, "PutObject")
            return put(**request)

        monkeypatch.setattr(store.client, "put_object", no_conditions)
        store.put("k", b"one")
        store.put("k", b"one")
        with pytest.raises(ConflictError):
            store.put("k", b"two")
        assert store.get("k") == b"one"

    def test_files_too_large_for_one_put_are_written_once_too(self, moto_endpoint, monkeypatch, tmp_path):
        store = s3_store(moto_endpoint, "test", "test")
        monkeypatch.setattr("trainer.s3_store.LARGEST_PUT", 2)
        upload, sent = store.client.upload_fileobj, []

        def counted(file, bucket, name):
            sent.append(name)
            upload(file, bucket, name)

        monkeypatch.setattr(store.client, "upload_fileobj", counted)
        for content in (b"first", b"first"):
            (tmp_path / "f").write_bytes(content)
            store.put_file("big", tmp_path / "f")
        (tmp_path / "f").write_bytes(b"other")
        with pytest.raises(ConflictError, match="big"):
            store.put_file("big", tmp_path / "f")
        assert store.get("big") == b"first"
        assert len(sent) == 1

    def test_more_keys_than_one_page_holds(self, moto_endpoint):
        store = s3_store(moto_endpoint, "test", "test")
        backend = store.client.put_object
        for n in range(1005):
            backend(Bucket=store.bucket, Key=f"{store.prefix}n/{n}", Body=b"")
        assert len(store.list("n/")) == 1005

    def test_a_bucket_that_is_not_there(self, moto_endpoint):
        store = S3Store(
            "no-such-bucket", endpoint_url=moto_endpoint, aws_access_key_id="a", aws_secret_access_key="b"
        )
        for ask in (lambda: store.put("k", b""), lambda: store.get("k")):
            with pytest.raises(StoreError, match="no such bucket"):
                ask()


class TestOpen:
    def test_the_address_says_which(self, tmp_path, monkeypatch):
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        assert isinstance(open_store(tmp_path), FolderStore)
        spaced = tmp_path / "a b"
        opened = open_store(spaced.as_uri())
        assert isinstance(opened, FolderStore)
        assert opened.root == spaced
        s3 = open_store("s3://bucket/a/b/", aws_access_key_id="a", aws_secret_access_key="b")
        assert isinstance(s3, S3Store)
        assert (s3.bucket, s3.prefix, s3.uri) == ("bucket", "a/b/", "s3://bucket/a/b")
        with pytest.raises(StoreError, match="gs://"):
            open_store("gs://bucket")
        with pytest.raises(StoreError, match="s3://bucket"):
            open_store("s3:///x")

    def test_a_folder_store_does_not_pay_for_boto3(self):
        code = "import sys, trainer.store as s; s.open_store('.'); print('boto3' in sys.modules)"
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert ran.stdout.strip() == "False", ran.stderr
