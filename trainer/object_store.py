"""What every artifact store promises: write-once objects by key, and its errors."""

import hashlib
import os
import uuid
from pathlib import Path
from typing import Any, Protocol

TEMPORARY = ".tmp-"
"""How names of half-written files begin: never listed; `FolderStore.sweep` removes dead ones."""


class StoreError(ValueError):
    """Base of what a store can say:

    StoreError
    ├── MissingError    no such object
    ├── ConflictError   the object exists with other bytes
    └── DamagedError    a committed file is missing or its bytes differ from the manifest
    """


class MissingError(StoreError):
    """No object has this key."""


class ConflictError(StoreError):
    """The object exists with other bytes; objects are written once."""


class DamagedError(StoreError):
    """A committed set is not whole; the message names the file."""


class Store(Protocol):
    """Objects by key. A key is a relative path with forward slashes."""

    uri: str
    """Where the store lies, as `open_store` reads it."""

    def put(self, key: str, data: bytes) -> None:
        """Write an object once; the same bytes again change nothing, other bytes raise ConflictError."""
        ...

    def put_file(self, key: str, path: str | os.PathLike[str]) -> None:
        """`put` of a file's bytes, without holding them in memory."""
        ...

    def get(self, key: str) -> bytes:
        """The object's bytes; MissingError."""
        ...

    def exists(self, key: str) -> bool:
        """Whether the object is there."""
        ...

    def list(self, prefix: str = "") -> "list[str]":
        """All keys that begin with `prefix`, sorted."""
        ...

    def fetch(self, key: str, path: str | os.PathLike[str]) -> None:
        """Copy the object to a local file, whole or not at all; MissingError."""
        ...

    def digest(self, key: str) -> tuple[int, str]:
        """(bytes, sha256 hex) of the stored object, read now; MissingError."""
        ...


def safe_key(key: str) -> str:
    """The key itself, or StoreError: a relative path with forward slashes, no `.`, `..` or empty part."""
    parts = key.split("/")
    if not all(parts) or any(p in (".", "..") or p.startswith(TEMPORARY) for p in parts):
        raise StoreError(f"key {key!r}: must be a relative path without '.', '..' or empty parts")
    if "\\" in key or any(ord(c) < 32 or "\ud800" <= c <= "\udfff" for c in key):
        raise StoreError(f"key {key!r}: backslashes, control characters and halves of characters are not allowed")
    return key


class WholeFile:
    """A temporary name beside `path` that takes its place when the block ends well."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.temporary = self.path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")

    def __enter__(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self.temporary

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            os.replace(self.temporary, self.path)
        else:
            self.temporary.unlink(missing_ok=True)


def file_digest(path: Path) -> tuple[int, str]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest
