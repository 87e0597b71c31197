"""Copies of remote files on this machine's disk, bounded in bytes, shared by all processes that name the same folder
(light).

    <folder>/<aa>/<sha256 of the key>/<sha256 of the bytes><suffix>     a copy; its name says what it must hold
    <folder>/lock                                                       bytes in all, held while they change

A copy appears whole or not at all. What was used longest ago goes first. A copy whose bytes are not what its name says
is thrown away and fetched again. Whoever has opened a copy may go on reading it after it has gone (POSIX).
"""

import fcntl
import hashlib
import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from trainer.bases import cache_folder
from trainer.object_store import TEMPORARY, DamagedError, file_digest

SETTING, DEFAULT = "ATTUNE_CACHE_GB", 20.0
"""GB (10⁹ bytes) that copies of recordings and encoder states may take on this machine, each."""
KEPT = 0.9
"""Share of the limit that is left after tidying up, so that not every further copy has to."""
DEAD_S = 3600
"""A half-written copy this old belongs to nobody any more."""

Fetch = Callable[[Path], None]
"""Writes the file to a path; may raise whatever the other side says."""


def limit_bytes() -> int:
    """What `ATTUNE_CACHE_GB` says; ValueError where that is no positive number."""
    given = os.environ.get(SETTING) or str(DEFAULT)
    try:
        value = float(given)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise ValueError(f"{SETTING} is {given!r}; it must be a number of GB above 0")
    return int(value * 1e9)


class LocalCache:
    """Copies by key in one folder. `limit`: bytes; a single larger file is kept as the only one while it is new."""

    def __init__(self, folder: str | os.PathLike[str], limit: int | None = None):
        self.folder = Path(folder)
        self.limit = limit_bytes() if limit is None else limit
        self._checked: dict[Path, tuple[int, int, int]] = {}

    @classmethod
    def named(cls, name: str) -> "LocalCache":
        """The one of this user: `<ATTUNE_CACHE>/<name>`."""
        return cls(cache_folder() / name)

    def path(self, key: str, fetch: Fetch, *, suffix: str = "", sha256: str | None = None) -> Path:
        """The copy of `key`, fetched now unless it is there. It may go at any time, so open it at once, and ask again
        where it has gone. Damaged bytes (`fetch` raises DamagedError, or it is not `sha256`) are fetched once more,
        then refused: DamagedError."""
        return self._found(key, sha256) or self._fetched(key, fetch, suffix, sha256)

    def _place(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / name[:2] / name

    def _found(self, key: str, sha256: str | None) -> Path | None:
        """The copy, if there is a whole one. Its bytes are compared with its name when this process first sees it, and
        when it was written since."""
        with suppress(FileNotFoundError):
            for path in self._place(key).iterdir():
                if path.name.startswith(TEMPORARY):
                    continue
                at, said = path.stat(), path.name[:64]
                stamp = at.st_size, at.st_mtime_ns, at.st_ino
                known = self._checked.get(path) == stamp
                if sha256 in (None, said) and (known or file_digest(path)[1] == said):
                    os.utime(path, ns=(time.time_ns(), at.st_mtime_ns))  # also where the disk keeps no access times
                    self._checked[path] = stamp
                    return path
                path.unlink(missing_ok=True)
        return None

    def _fetched(self, key: str, fetch: Fetch, suffix: str, sha256: str | None) -> Path:
        place, digest = self._place(key), ""
        place.mkdir(parents=True, exist_ok=True)
        temporary = place / f"{TEMPORARY}{uuid.uuid4().hex}"
        try:
            for last in (False, True):
                try:
                    fetch(temporary)
                except DamagedError:
                    if last:
                        raise
                    continue
                size, digest = file_digest(temporary)
                if sha256 in (None, digest):
                    os.replace(temporary, path := place / f"{digest}{suffix}")
                    self._count(size, path)
                    return path
        finally:
            temporary.unlink(missing_ok=True)
        raise DamagedError(f"{key}: came twice with sha256 {digest[:12]}…, and should have {str(sha256)[:12]}…")

    def _count(self, size: int, newest: Path) -> None:
        """The copies are so many bytes more; the oldest go where that is too much, `newest` last."""
        with open(self.folder / "lock", "a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.seek(0)
            said = lock.read()
            total = int(said) + size if said.isdecimal() else self.limit + 1  # not known: look
            if total > self.limit:
                total = self._tidy(newest)
            lock.truncate(0)
            lock.write(str(total))

    def _tidy(self, newest: Path) -> int:
        """Removes what was used longest ago, and what dead processes left half written; returns the bytes left."""
        found = []
        for path in self.folder.glob("??/*/*"):
            with suppress(FileNotFoundError):
                at = path.stat()
                if not path.name.startswith(TEMPORARY):
                    found.append((path == newest, at.st_atime_ns, at.st_size, path))
                elif time.time() - at.st_mtime > DEAD_S:
                    path.unlink()
        found.sort()
        total = sum(size for _, _, size, _ in found)
        for last, _, size, path in found if total > self.limit else ():
            if total <= self.limit * KEPT or last:
                break
            path.unlink(missing_ok=True)
            self._checked.pop(path, None)
            with suppress(OSError):  # another copy of the key has just come
                path.parent.rmdir()
            total -= size
        return total
