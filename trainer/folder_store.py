"""The store in a local folder."""

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.object_store import TEMPORARY, ConflictError, MissingError, WholeFile, file_digest, safe_key


class FolderStore:
    """A store in a local folder. A key appears with all its bytes on disk, or not at all."""

    def __init__(self, root: str | os.PathLike[str]):
        self.root = Path(root).absolute()
        self.uri = str(self.root)

    def path(self, key: str) -> Path:
        """Where the file of a key lies."""
        return self.root / safe_key(key)

    def put(self, key: str, data: bytes) -> None:
        self._put(key, lambda file: file.write(data))

    def put_file(self, key: str, path: str | os.PathLike[str]) -> None:
        def copy(file: Any) -> None:
            with open(path, "rb") as source:
                while block := source.read(1 << 20):
                    file.write(block)

        self._put(key, copy)

    def _put(self, key: str, write: Callable[[Any], Any]) -> None:
        target = self.path(key)
        _make_folder(target.parent)
        temporary = target.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
        try:
            with open(temporary, "xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(temporary, target)  # unlike a rename, never replaces what another just wrote
            except OSError:
                if target.exists():
                    if file_digest(temporary) != file_digest(target):
                        raise ConflictError(f"{key}: exists in {self.root} with other bytes") from None
                else:  # a file system without hard links: whole, but of two writers at once the later one wins
                    os.rename(temporary, target)
            _sync_folder(target.parent)
        finally:
            temporary.unlink(missing_ok=True)

    def get(self, key: str) -> bytes:
        try:
            return self.path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise MissingError(f"{key}: not in {self.root}") from None

    def exists(self, key: str) -> bool:
        return self.path(key).is_file()

    def list(self, prefix: str = "") -> list[str]:
        start = self.root
        if "/" in prefix:
            start = self.root / safe_key(prefix.rpartition("/")[0])
        keys = []
        for folder, _, names in os.walk(start):
            base = Path(folder).relative_to(self.root).as_posix()
            keys += [n if base == "." else f"{base}/{n}" for n in names if not n.startswith(TEMPORARY)]
        return sorted(key for key in keys if key.startswith(prefix))

    def fetch(self, key: str, path: str | os.PathLike[str]) -> None:
        source = self.path(key)
        if not source.is_file():
            raise MissingError(f"{key}: not in {self.root}")
        with WholeFile(path) as temporary, open(source, "rb") as file, open(temporary, "wb") as out:
            while block := file.read(1 << 20):
                out.write(block)

    def digest(self, key: str) -> tuple[int, str]:
        if not (path := self.path(key)).is_file():
            raise MissingError(f"{key}: not in {self.root}")
        return file_digest(path)

    def sweep(self) -> int:
        """Remove what dead processes left half written (call when nobody writes); the number of files."""
        leftovers = list(self.root.rglob(f"{TEMPORARY}*"))
        for path in leftovers:
            path.unlink(missing_ok=True)
        return len(leftovers)


def _sync_folder(folder: Path) -> None:
    """Make the new name in the folder survive a power cut (POSIX; Windows has no such call)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _make_folder(folder: Path) -> None:
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)
