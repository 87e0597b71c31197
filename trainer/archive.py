"""Archives from strangers, unpacked into a folder or refused (light): zip, tar, tar.gz.

Nothing is written outside the folder, nothing but plain files is made, and neither size, number nor headers may grow
beyond what is allowed, whatever the archive says of itself.
"""

import gzip
import io
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

MOST_BYTES = 4 << 30
MOST_FILES = 200_000
DIRECTORY, HEADER, BLOCK = 32 << 20, 1 << 20, 1 << 20
"""Largest directory of a zip, largest header of a tar member, and how much is copied at a time, in bytes."""
BESIDE = ("__MACOSX", ".DS_Store")
"""What a desktop adds to archives; left out, as are names that begin with `._`."""


class ArchiveError(ValueError):
    """The archive cannot be unpacked, or must not be."""


def unpack(archive: Path, folder: Path, *, most_bytes: int = MOST_BYTES, most_files: int = MOST_FILES) -> int:
    """Unpack into `folder`, an empty one; the number of files. After ArchiveError there may be some."""
    with open(archive, "rb") as file:
        head = file.read(4)
        file.seek(0)
        try:
            if head[:2] == b"PK":
                members = _of_zip(_Bounded(file, DIRECTORY))
            else:
                plain = gzip.GzipFile(fileobj=file) if head[:2] == b"\x1f\x8b" else file
                members = _of_tar(_Bounded(plain, HEADER, most_bytes + most_files * 4096))
            return _write(members, folder, most_bytes, most_files)
        except (zipfile.BadZipFile, tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, NotImplementedError,
                RuntimeError) as error:  # fmt: skip  # RuntimeError: zipfile's for an encrypted member
            raise ArchiveError(f"not a whole zip, tar or tar.gz without a password: {error}") from None


def _write(members: Iterator[tuple[str, IO[bytes]]], folder: Path, most_bytes: int, most_files: int) -> int:
    files = written = 0
    for name, content in members:
        place = _inside(name)
        if place is None:
            continue
        files += 1
        if files > most_files:
            raise ArchiveError(f"has more than {most_files:,} files; make several data sets of it")
        target = folder / place
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "xb") as out:
                while block := content.read(BLOCK):
                    written += len(block)
                    if written > most_bytes:
                        raise _too_large(most_bytes)
                    out.write(block)
        except (FileExistsError, NotADirectoryError):
            raise ArchiveError(f"{name!r} stands twice, or is a file and a folder") from None
        except OSError as error:
            raise ArchiveError(f"{name!r} cannot be written: {error.strerror}") from None
    return files


def _too_large(most: int) -> ArchiveError:
    return ArchiveError(f"holds more than {most / 2**30:.3g} GiB; make several data sets of it")


def _inside(name: str) -> PurePosixPath | None:
    """Where in the folder a member goes; None where it is to be left out; ArchiveError where it would go elsewhere."""
    path = PurePosixPath(name)
    parts = path.parts
    if path.is_absolute() or ".." in parts or "\\" in name or any(ord(c) < 32 for c in name) or not parts:
        raise ArchiveError(f"the name {name!r} leads out of the archive, or is none; use relative names without '..'")
    if any("\ud800" <= c <= "\udfff" for c in name):
        raise ArchiveError(f"the name {name!r} is not UTF-8; rename the file, and pack again")
    if any(part in BESIDE or part.startswith("._") for part in parts):
        return None
    return path


def _of_zip(file: "_Bounded") -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(file) as archive:  # type: ignore[arg-type]
        for member in archive.infolist():
            if member.is_dir():
                continue
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG):
                raise ArchiveError(f"{member.filename!r} is a link or a device; put plain files in")
            file.most = BLOCK  # the directory is read; what follows comes in blocks
            with archive.open(member) as content:
                yield member.filename, content


def _of_tar(file: "_Bounded") -> Iterator[tuple[str, IO[bytes]]]:
    with tarfile.open(fileobj=file, mode="r:") as archive:  # type: ignore[arg-type]
        for member in archive:
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise ArchiveError(f"{member.name!r} is a link, a device or has holes; put plain files in")
            content = archive.extractfile(member)
            assert content is not None, "a regular file has content"
            yield member.name, content
            archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every header
    while file.read(HEADER):  # to the checksum at the end, which gzip compares when it gets there
        pass


class _Bounded(io.RawIOBase):
    """A file of which at most `most` bytes may be read at once, and that may not go beyond `end`: a header that says it
    is a gigabyte would be read into memory whole."""

    def __init__(self, file: Any, most: int, end: int | None = None):
        self.file, self.most, self.end = file, most, end

    def read(self, size: int = -1) -> bytes:
        found = b"" if size > self.most else self.file.read(self.most + 1 if size < 0 else size)
        if size > self.most or len(found) > self.most:
            raise ArchiveError(f"a header has more than {self.most} bytes; that is no archive of recordings")
        self._check(self.file.tell())
        return found

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence == 0:
            self._check(offset)
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def _check(self, at: int) -> None:
        if self.end is not None and at > self.end:
            raise _too_large(self.end)
