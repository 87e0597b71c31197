"""Artifact store: a folder or S3 behind one small interface, and commits whose manifest is the commit.

Objects are written once (S3 has no append and no fencing): a second put of the same bytes is a no-op, of
other bytes an error. A set of files exists when its `manifest.json` does: it is written last and lists path,
bytes and sha256 of every file.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from trainer.folder_store import FolderStore
from trainer.object_store import (
    ConflictError,
    DamagedError,
    MissingError,
    Store,
    StoreError,
    file_digest,
)
from trainer.s3_store import S3Store

__all__ = [
    "ConflictError", "DamagedError", "FolderStore", "MissingError", "S3Store", "Store", "StoreError",
    "commit", "commits", "open_store", "read_commit",
]  # fmt: skip

MANIFEST = "manifest.json"


def open_store(uri: str | os.PathLike[str], **s3_options: Any) -> Store:
    """The store at a folder path, `file:///folder` or `s3://bucket/prefix`.

    S3 reads the usual AWS environment (`AWS_ENDPOINT_URL`, keys, region); `s3_options` go to `S3Store`.
    """
    text = os.fspath(uri)
    if text.startswith("s3://"):
        parsed = urlparse(text)
        if not parsed.netloc:
            raise StoreError(f"store {text!r}: write s3://bucket/prefix")
        return S3Store(parsed.netloc, parsed.path.strip("/"), **s3_options)
    if text.startswith("file://"):
        text = unquote(urlparse(text).path)
    elif re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", text):
        raise StoreError(f"store {text!r}: unknown scheme; use a folder, file:// or s3://bucket/prefix")
    return FolderStore(text)


def commit(store: Store, prefix: str, files: Mapping[str, bytes | os.PathLike[str]]) -> dict[str, Any]:
    """Write `files` (path below `prefix` → bytes or local file), then the manifest that makes them exist.

    Returns the manifest: `{"files": [{"path", "bytes", "sha256"}, …]}`, sorted by path.
    """
    entries = []
    for path in sorted(files):
        content = files[path]
        if path == MANIFEST:
            raise StoreError(f"{prefix}: '{MANIFEST}' is the commit's own file; rename yours")
        if isinstance(content, bytes):
            size, sha256 = len(content), hashlib.sha256(content).hexdigest()
            store.put(f"{prefix}/{path}", content)
        else:
            size, sha256 = file_digest(Path(content))
            store.put_file(f"{prefix}/{path}", content)
        entries.append({"path": path, "bytes": size, "sha256": sha256})
    manifest = {"files": entries}
    store.put(f"{prefix}/{MANIFEST}", json.dumps(manifest, indent=1, sort_keys=True).encode() + b"\n")
    return manifest


def read_commit(store: Store, prefix: str) -> dict[str, Any]:
    """The manifest of a commit after checking size and sha256 of every file; MissingError, DamagedError."""
    manifest = _manifest(store, prefix)
    for entry in manifest["files"]:
        _check(f"{prefix}/{entry['path']}", entry, store)
    return manifest


def _manifest(store: Store, prefix: str) -> dict[str, Any]:
    key = f"{prefix}/{MANIFEST}"
    try:
        manifest = json.loads(store.get(key))
        whole = all(entry.keys() >= {"path", "bytes", "sha256"} for entry in manifest["files"])
    except (AttributeError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError):
        whole, manifest = False, {}
    if not whole:
        raise DamagedError(f"{key}: is not a manifest")
    return manifest


def _check(key: str, entry: dict[str, Any], store: Store) -> None:
    try:
        found = store.digest(key)
    except MissingError:
        raise DamagedError(f"{key}: is in the manifest but missing") from None
    _compare(key, entry, found)


def _compare(key: str, entry: dict[str, Any], found: tuple[int, str]) -> None:
    if found != (entry["bytes"], entry["sha256"]):
        raise DamagedError(
            f"{key}: has {found[0]} bytes, sha256 {found[1][:12]}…; "
            f"the manifest says {entry['bytes']} bytes, {entry['sha256'][:12]}…"
        )


def commits(store: Store, prefix: str) -> Iterator[str]:
    """Numbered commits `<prefix>/<number>` that have a manifest, highest number first, unchecked."""
    base = prefix.rstrip("/") + "/"
    numbers = set()
    for key in store.list(base):
        number, _, rest = key.removeprefix(base).partition("/")
        if rest == MANIFEST and number.isdecimal():
            numbers.add(number)
    yield from (base + number for number in sorted(numbers, key=int, reverse=True))
