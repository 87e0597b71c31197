"""The rows of one source, read from a data set and told apart from those that are held out (light)."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from trainer import streamed
from trainer.fields import UnfitDataError, problem
from trainer.manifest import ManifestError, Utterance, fingerprint, load, locate, manifests_in

Roots = Sequence[Path | str]


@dataclass(frozen=True)
class SourceRows:
    """The rows of one source."""

    ref: str
    """Reference as the user wrote it."""
    rows: list[Utterance]
    """Usable rows, audio paths absolute."""
    available: int
    """Rows before any were chosen among them."""
    folder: Path
    """Folder that the manifest's audio paths are relative to; of several data sets that of the first."""
    parts: tuple["SourceRows", ...] = ()
    """The data sets that it is put together from, where there are several."""

    def each(self) -> tuple["SourceRows", ...]:
        """Its data sets."""
        return self.parts or (self,)

    @property
    def refs(self) -> str | list[str]:
        """Its reference, or those of its data sets."""
        return [part.ref for part in self.parts] or self.ref

    @cached_property
    def sha256(self) -> str:
        """Fingerprint of the usable rows: manifest lines and the bytes of their recordings (in S3: size and ETag)."""
        if self.parts:
            return hashlib.sha256(" ".join(part.sha256 for part in self.parts).encode()).hexdigest()
        digest = hashlib.sha256(fingerprint(self.rows, self.folder).encode())
        for path in dict.fromkeys(u.audio for u in self.rows if u.audio):
            digest.update(_bytes_of(path))
        return digest.hexdigest()


Fields = Sequence[tuple[str, SourceRows]]
"""Rows, each with the field that gives them."""
_hashed: dict[tuple[str, int, int], bytes] = {}


def _bytes_of(path: str) -> bytes:
    """sha256 of a recording, remembered while size and time of change stay; a missing one is for validation."""
    if streamed.is_streamed(path):
        return streamed.stamp(path) or b"missing"
    try:
        at = os.stat(path)
        key = (path, at.st_size, at.st_mtime_ns)
        if key not in _hashed:
            with open(path, "rb") as file:
                _hashed[key] = hashlib.file_digest(file, "sha256").digest()
        return _hashed[key]
    except OSError:
        return b"missing"


def together(parts: Sequence[SourceRows]) -> SourceRows:
    """Data sets as one, in their order."""
    if len(parts) == 1:
        return parts[0]
    rows = [u for part in parts for u in part.rows]
    available = sum(part.available for part in parts)
    return SourceRows(", ".join(part.ref for part in parts), rows, available, parts[0].folder, tuple(parts))


def need_text(field: str, found: SourceRows, ref: str) -> None:
    if bare := [u.id for u in found.rows if not u.text]:
        raise problem(field, f"{len(bare)} rows have no text, the first is {bare[0]}", ref, UnfitDataError)


def need_audio(field: str, found: SourceRows, ref: str) -> None:
    if mute := [u.id for u in found.rows if not u.audio]:
        raise problem(field, f"{len(mute)} rows have no recording, the first is {mute[0]}", ref, UnfitDataError)


def read_rows(field: str, ref: str, roots: Roots, default_split: str | None) -> SourceRows:
    try:
        where = locate(ref, roots)
        plain_folder = where.split is None and len(where.files) != 1
        if default_split and (plain_folder or Path(ref).name == where.folder.name):
            splits = manifests_in(where.folder)
            if default_split in splits or "manifest" in splits:
                where, ref_used = locate(f"{ref}:{default_split}", roots), f"{ref}:{default_split}"
            else:
                ref_used = ref
        else:
            ref_used = ref
        rows = load(ref_used, roots)
    except (ManifestError, OSError) as error:
        raise problem(field, str(error), ref, UnfitDataError) from None
    if not rows:
        raise problem(field, "the data set has no rows", ref, UnfitDataError)
    return SourceRows(ref_used, rows, len(rows), where.folder)


def no_leak(sources: Fields, held: SourceRows | None, kind: str) -> None:
    """No utterance of the sources, by their fields, is among those that are held out; shared texts are for `attune
    validate` to report. An id in two languages numbers a sentence: no leak, unless the words are the same too."""
    if held is None:
        return
    heard = {(u.audio, u.offset_s) for u in held.rows if u.audio}
    kept = {(part.folder, u.id): u for part in held.each() for u in part.rows}
    for field, part in ((field, part) for field, source in sources for part in source.each()):
        for row in part.rows:
            other = kept.get((part.folder, row.id))
            same = other is not None and (other.language == row.language or (row.text and other.text == row.text))
            if same or (row.audio, row.offset_s) in heard:
                message = f"utterance {row.id} is in the {kind} set too; take it out of one of them"
                raise problem(field, message, kind=UnfitDataError)
