"""Data sets that lie in S3 (light): `s3://bucket/prefix` as a folder here that holds their manifests, and their
recordings as they are asked for.

    <cache>/data/<sha256 of the listing>/listing.json      where from; bytes and ETag of every object, by key
    <cache>/data/<sha256 of the listing>/<name>/           manifests and task.yaml, and nothing else
    <cache>/recordings/                                    recordings, bounded (`trainer.local_cache`)

Rows of such a data set name recordings in that folder as rows of any other do; `trainer.audio` asks here for the copy.
"""

import hashlib
import json
import os
import re
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from trainer.bases import cache_folder
from trainer.local_cache import LocalCache
from trainer.object_store import DamagedError, MissingError, StoreError, WholeFile, file_digest
from trainer.utterance import ManifestError

SCHEME = "s3://"
FRESH_S = 30.0
"""A listing counts as the present one for so many seconds: reading one corpus asks for it several times."""
MANIFESTS = (".jsonl", ".jsonl.gz")
TASK = "task.yaml"

_known: dict[str, tuple[float, Path]] = {}


class GoneError(ValueError):
    """A recording is not in S3 as it was when the data set was listed; `code` is `missing` or `changed`."""

    def __init__(self, code: str, reason: str):
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True)
class _Listing:
    uri: str
    objects: dict[str, tuple[int, str]]
    """(bytes, ETag) by key."""
    brought: dict[str, str]
    """sha256 of the files that are here, by name."""


def mirror(uri: str) -> Path:
    """The local folder of the data set at `s3://bucket/prefix`. ManifestError where there is none; what boto3 raises
    where the service cannot be asked."""
    uri = uri.rstrip("/")
    at, folder = _known.get(uri, (0.0, None))
    if folder is None or time.monotonic() - at > FRESH_S or not folder.is_dir():
        folder = _brought(uri)
        _known[uri] = time.monotonic(), folder
    return folder


def _brought(uri: str) -> Path:
    from botocore.exceptions import ClientError

    from trainer.store import open_store

    try:
        store: Any = open_store(uri)
        objects = store.entries()
    except (ClientError, StoreError) as error:
        raise ManifestError(f"{uri}: cannot be listed ({error})") from None
    if not objects:
        raise ManifestError(f"{uri}: nothing is stored there; correct the address, or copy the data set there")
    place = _data() / hashlib.sha256(json.dumps([uri, objects]).encode()).hexdigest()
    folder = place / uri.rpartition("/")[2]
    wanted = [(k, e) for k, _, e in objects if k == TASK or ("/" not in k and k.endswith(MANIFESTS))]
    if _whole(place, folder, [key for key, _ in wanted]):
        return folder
    try:
        for key, etag in wanted:
            store.fetch(key, folder / key, etag)
    except StoreError as error:  # also where it was replaced between the listing and now
        raise ManifestError(f"{uri}: {error}") from None
    brought = {key: file_digest(folder / key)[1] for key, _ in wanted}
    listing = {"uri": uri, "objects": {key: [size, etag] for key, size, etag in objects}, "brought": brought}
    folder.mkdir(parents=True, exist_ok=True)
    with WholeFile(place / "listing.json") as temporary:
        temporary.write_text(json.dumps(listing), encoding="utf-8")
    _listing.cache_clear()
    return folder


def _whole(place: Path, folder: Path, names: list[str]) -> bool:
    """Whether the folder is there with all its files as they were brought."""
    try:
        said = _listing(place).brought
        return all(file_digest(folder / name)[1] == said[name] for name in names)
    except (OSError, ValueError, KeyError):
        return False


@lru_cache(maxsize=8)
def _listing(place: Path) -> _Listing:
    said = json.loads((place / "listing.json").read_text(encoding="utf-8"))
    return _Listing(said["uri"], {k: (size, etag) for k, (size, etag) in said["objects"].items()}, said["brought"])


def _data() -> Path:
    return _data_in(cache_folder())


@lru_cache(maxsize=4)
def _data_in(cache: Path) -> Path:
    return cache.absolute() / "data"


@lru_cache(maxsize=4)
def _beginning(*environment: str | None) -> str:
    return f"{_data()}{os.sep}"


def is_streamed(path: str | os.PathLike[str]) -> bool:
    """Whether a recording belongs to a data set in S3. Asked for every recording of a corpus, so it must be quick."""
    said = os.environ.get
    return os.fspath(path).startswith(_beginning(said("ATTUNE_CACHE"), said("XDG_CACHE_HOME"), said("HOME")))


def address(path: str | os.PathLike[str]) -> str:
    """Where a recording lies, for people: its address in S3, or the path itself."""
    if not is_streamed(path):
        return os.fspath(path)
    listing, key = _object(path)
    return f"{listing.uri}/{key}"


def _object(path: str | os.PathLike[str]) -> tuple[_Listing, str]:
    parts = Path(os.path.normpath(path)).relative_to(_data()).parts
    return _listing(_data() / parts[0]), "/".join(parts[2:])


def stamp(path: str | os.PathLike[str]) -> bytes | None:
    """What stands for a recording's bytes in a fingerprint, without reading them: size and ETag; None where there is no
    such object."""
    listing, key = _object(path)
    found = listing.objects.get(key)
    return None if found is None else hashlib.sha256(f"{found[0]} {found[1]}".encode()).digest()


def local(path: str | os.PathLike[str]) -> Path:
    """The copy of a recording on this machine, fetched now unless it is there; it may go any time, so open it at once.
    GoneError; OSError and what boto3 raises where the service refuses or cannot be asked."""
    listing, key = _object(path)
    if key not in listing.objects:
        raise GoneError("missing", f"not in {listing.uri}; correct the path or copy the recording there")
    etag = listing.objects[key][1]

    def fetch(target: Path) -> None:
        try:
            _fetch(listing.uri, key, etag, target)
        except MissingError:
            raise GoneError("missing", f"no longer in {listing.uri}; copy the recording there again") from None
        except DamagedError:
            raise
        except StoreError as error:
            if [now for name, _, now in _store(listing.uri).entries(key) if name == key] not in ([], [etag]):
                message = f"{listing.uri} holds another recording now; put the old one back, or submit the job again"
                raise GoneError("changed", message) from None
            raise OSError(str(error)) from error

    return _recordings(cache_folder()).path(f"{listing.uri}/{key} {etag}", fetch, suffix=Path(key).suffix)


def _fetch(uri: str, key: str, etag: str, target: Path) -> None:
    """The object to a file; DamagedError where the ETag is the MD5 of other bytes."""
    store = _store(uri)
    store.fetch(key, target, etag)
    if re.fullmatch('"[0-9a-f]{32}"', etag):
        with open(target, "rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found != etag.strip('"') and store.tags_are_md5(key):
            raise DamagedError(f"{uri}/{key}: came with MD5 {found}, and its ETag is {etag}")


@lru_cache(maxsize=8)
def _store(uri: str) -> Any:
    from trainer.store import open_store

    return open_store(uri)


@lru_cache(maxsize=2)
def _recordings(folder: Path) -> LocalCache:
    return LocalCache(folder / "recordings")
