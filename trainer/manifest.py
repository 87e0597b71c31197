"""Manifests: reading and writing rows, where a data set lies, and its fingerprint.

A manifest is UTF-8 JSON lines (`.jsonl` or `.jsonl.gz`), one utterance a line, fields as in `Utterance`. A
data set is a folder with `manifest.jsonl` (rows of every split) or with `train.jsonl`, `dev.jsonl`,
`test.jsonl`; other manifests beside them are named by their stem. A reference is `folder`, `folder:split` or
`folder/file.jsonl`; the folder may be `s3://bucket/prefix`.
"""

import difflib
import gc
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from trainer import streamed
from trainer.utterance import Label, ManifestError, Utterance, relative_audio, to_json, utterance

__all__ = [
    "DatasetRef",
    "Label",
    "ManifestError",
    "Utterance",
    "fingerprint",
    "load",
    "locate",
    "manifests_in",
    "read_manifest",
    "read_numbered",
    "relative_audio",
    "shared_speakers",
    "speakers_disjoint",
    "to_json",
    "utterance",
    "write_manifest",
]  # fmt: skip

SPLITS = ("train", "dev", "test")
SUFFIXES = (".jsonl", ".jsonl.gz")
PUBLISHED = (
    "slurp", "massive", "speech-massive", "italic", "slue-voxceleb", "slue-hvb", "slue-voxpopuli", "must-c",
    "spoken-squad", "mega-ssum", "librispeech", "libriheavy", "common-voice",
)  # fmt: skip
"""Corpora that `attune import` reads by these names; a data set that is not here and is called so is made by it."""
CHUNK = 1000
"""Lines that are parsed in one call of the JSON scanner: 3 times faster than one call a line."""

Path_ = str | os.PathLike[str]


def read_numbered(path: Path_, folder: Path_ = "") -> Iterator[tuple[int, Utterance | ManifestError]]:
    """Every line of a manifest with its number from 1; a bad one as the error that names it, blanks pass.

    With `folder`, audio paths are made absolute against it.
    """
    path = Path(path)
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            first = 1
            while lines := list(islice(file, CHUNK)):
                if first == 1:
                    lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")  # the BOM that spreadsheets write
                yield from _parse(path, first, lines, os.fspath(folder))
                first += len(lines)
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such manifest") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ManifestError(f"{path}: damaged gzip file ({error}); copy it again") from None


def _parse(
    path: Path, first: int, lines: list[bytes], folder: str
) -> Iterator[tuple[int, Utterance | ManifestError]]:
    """Lines numbered from `first`: all at once, and one by one where that fails, to name the bad line."""
    rows: list[object] | None = None
    if all(line.startswith(b"{") for line in lines):
        with suppress(ValueError, RecursionError):
            rows = json.loads(b"[" + b",".join(lines) + b"]")
        if rows is not None and len(rows) != len(lines):
            rows = None  # two objects on a line
    for n, line in enumerate(lines):
        try:
            yield first + n, utterance(json.loads(line) if rows is None else rows[n], folder)
            continue
        except ManifestError as error:
            message, field = str(error), error.field
        except UnicodeDecodeError as error:
            message = f"not UTF-8 ({error.reason} at byte {error.start} of the line); save the file as UTF-8"
            field = None
        except ValueError as error:
            if not line.strip():
                continue
            message, field = f"not a JSON object: {error}", None
        except RecursionError:
            message, field = "nested too deeply; a row is an object of a few levels", None
        except OverflowError:
            message, field = "holds a number that is too large; offset_s and duration_s are seconds", None
        yield first + n, ManifestError(f"{path}:{first + n}: {message}", line=first + n, field=field)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A million new objects make the cyclic collector walk all of them again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def read_manifest(path: Path_, folder: Path_ = "") -> list[Utterance]:
    """All rows of one manifest file, audio paths as written, or made absolute against `folder`.

    ManifestError names file, line and field.
    """
    rows: list[Utterance] = []
    with _no_garbage_collection():
        for _, row in read_numbered(path, folder):
            if isinstance(row, ManifestError):
                raise row
            rows.append(row)
    return rows


def write_manifest(rows: Iterable[Utterance], path: Path_, root: Path_ | None = None) -> None:
    """Write canonical lines, gzip if named .gz; a plain file's sha256 is `fingerprint(rows, root)`."""
    path = Path(path)
    with gzip.open(path, "wb") if path.suffix == ".gz" else path.open("wb") as file:
        for row in rows:
            file.write(to_json(row, root).encode() + b"\n")


def fingerprint(rows: Iterable[Utterance], root: Path_ | None = None, *, audio_bytes: bool = False) -> str:
    """sha256 (hex) of the canonical manifest; with `audio_bytes` also of every recording, in row order.

    Give the data set's folder as `root` for rows that came through `load`, or the result names this machine.
    """
    digest, files = hashlib.sha256(), {}
    for row in rows:
        digest.update(to_json(row, root).encode() + b"\n")
        if audio_bytes and row.audio:
            path = os.path.join(root or "", row.audio)
            if path not in files:
                with open(path, "rb") as file:
                    files[path] = hashlib.file_digest(file, "sha256").digest()
            digest.update(files[path])
    return digest.hexdigest()


@dataclass(frozen=True)
class DatasetRef:
    """Where a reference points: the folder that audio paths are relative to, the manifests, the split."""

    folder: Path
    files: tuple[Path, ...]
    split: str | None
    """Keep rows of this split only; None where `files` already say it."""
    name: str
    """The reference as the user wrote it."""
    words: str
    """The folder in the words of the reference, which mean the same on a machine that has it elsewhere."""


def manifests_in(folder: Path) -> dict[str, Path]:
    """Manifest files of a folder by stem: {'train': …/train.jsonl, 'text_train': …}."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        for suffix in SUFFIXES:
            if path.name.endswith(suffix) and path.is_file():
                found.setdefault(path.name.removesuffix(suffix), path)
    return found


def locate(ref: str, roots: Sequence[Path_] = (".",)) -> DatasetRef:
    """Find the data set that `ref` names, tried under each root in turn (an absolute path needs none).

    ManifestError lists the splits that exist, or near names where the folder does not.
    """
    head, colon, tail = ref.rpartition(":")
    names: list[tuple[str, str | None]] = [(ref, None)]  # as a whole first: a path may hold a colon (C:\…)
    if colon and head and "/" not in tail and "\\" not in tail:
        names.append((head, tail))
    if ref.startswith(streamed.SCHEME):
        return _in_s3(*names[-1], ref)
    for name, split in names:
        for root in roots:
            path = (Path(root) / name).absolute()
            if path.is_file() and path.name.endswith(SUFFIXES):
                return DatasetRef(path.parent, (path,), split, ref, _folder_words(name, path.parent, roots))
            if path.is_dir():
                return _in_folder(path, split, ref, name)
    raise ManifestError(_not_found(ref, names[-1][0], roots))


def _folder_words(name: str, folder: Path, roots: Sequence[Path_]) -> str:
    """The folder of a manifest as its reference says it, unless that means another folder under these roots."""
    words = os.path.dirname(name)
    meant = (path for root in roots if (path := (Path(root) / words).absolute()).is_dir())
    return words if words and next(meant, None) == folder else str(folder)


def _in_s3(name: str, split: str | None, ref: str) -> DatasetRef:
    if not name.endswith(SUFFIXES):
        return _in_folder(streamed.mirror(name), split, ref, name.rstrip("/"))
    words, _, file = name.rpartition("/")
    path = streamed.mirror(words) / file
    if not path.is_file():
        raise ManifestError(f"{ref}: no such manifest; {words} has: {', '.join(manifests_in(path.parent)) or 'none'}")
    return DatasetRef(path.parent, (path,), split, ref, words)


def _in_folder(folder: Path, split: str | None, ref: str, words: str) -> DatasetRef:
    found = manifests_in(folder)
    if split and split in found:
        return DatasetRef(folder, (found[split],), None, ref, words)
    if "manifest" in found:
        return DatasetRef(folder, (found["manifest"],), split, ref, words)
    if split is None and (files := tuple(found[s] for s in SPLITS if s in found)):
        return DatasetRef(folder, files, None, ref, words)
    where = words if words.startswith(streamed.SCHEME) else folder
    if not found:
        deeper = [p.name for p in sorted(folder.iterdir()) if p.is_dir() and manifests_in(p)]
        hint = f"data sets in it: {', '.join(deeper[:12])}" if deeper else "`attune import` makes one"
        raise ManifestError(f"{ref}: no manifest.jsonl or train/dev/test.jsonl in {where}; {hint}")
    what = f"no split {split!r}{_near(split, found)}" if split else "no train, dev or test split"
    raise ManifestError(f"{ref}: {what}; {where} has: {', '.join(found)}")


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean {near[0]!r}?" if near else ""


def _not_found(ref: str, name: str, roots: Sequence[Path_]) -> str:
    known, start = [], name.rpartition("/")[0]
    for root in roots:
        parent = (Path(root) / name).parent
        folders = sorted(p.name for p in parent.iterdir() if p.is_dir()) if parent.is_dir() else []
        known += [f"{start}/{folder}" if start else folder for folder in folders]
    remedy, kind = _near(name, known), name.split("/")[0]
    if not remedy and kind in PUBLISHED:
        remedy = f"; `attune import {kind} SOURCE --out {name}` makes it of the published corpus (docs/corpora.md)"
    return f"no data set {ref!r} under {', '.join(str(Path(root)) for root in roots)}{remedy}"


def load(ref: str, roots: Sequence[Path_] = (".",)) -> list[Utterance]:
    """The rows that `ref` names, in file order, audio paths absolute. ManifestError also on a repeated id."""
    place = locate(ref, roots)
    rows: list[Utterance] = []
    splits: set[str] = set()
    for file in place.files:
        read = read_manifest(file, place.folder)
        splits.update(row.split for row in read)
        rows += read if place.split is None else [row for row in read if row.split == place.split]
    if not rows:
        has = ", ".join(sorted(splits)) or "none"
        raise ManifestError(f"{ref}: no rows{_near(place.split or '', splits)}; splits with rows: {has}")
    if len({row.id for row in rows}) != len(rows):
        seen: set[str] = set()
        for row in rows:
            if row.id in seen:
                raise ManifestError(f"{ref}: id {row.id!r} appears twice; ids must be unique", field="id")
            seen.add(row.id)
    return rows


def shared_speakers(a: Iterable[Utterance], b: Iterable[Utterance]) -> list[str]:
    """Known speakers that appear on both sides, sorted."""
    return sorted({r.speaker for r in a if r.speaker} & {r.speaker for r in b if r.speaker})


def speakers_disjoint(a: Iterable[Utterance], b: Iterable[Utterance]) -> bool:
    """True when no known speaker is on both sides; utterances without a speaker prove nothing either way."""
    return not shared_speakers(a, b)
