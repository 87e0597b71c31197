"""What a reader of a published layout fills: records with file and line, what was left out and why, the task."""

import fnmatch
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attune.importing.records import AudioFinder, Record, check_storable
from attune.importing.source import BadRow, SourceError, walk
from attune.importing.split import split_name
from trainer.spec import Task, builtin_tasks

TRANSCRIBE = builtin_tasks()["transcribe"]


@dataclass
class Corpus:
    """A corpus being read from the folder `root`; `finder` looks for its recordings, `work` is a folder to write in."""

    root: Path
    finder: AudioFinder
    work: Path
    only: Path | None = None
    """The one file that was given instead of a folder."""
    records: list[Record] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    task: Task | None = None
    """None: inferred from the labels, as for a table."""
    _names: dict[Path, str] = field(default_factory=dict)

    def files(self, *patterns: str) -> list[Path]:
        """Files below the folder that fit one of the patterns, sorted; of a single file that was given, this one."""
        if self.only is not None:
            return [self.only] if any(self.only.match(pattern) for pattern in patterns) else []
        return files(self.root, *patterns)

    def name(self, path: Path) -> str:
        """A file's name below the corpus."""
        if path not in self._names:
            inside = path.is_relative_to(self.root)
            self._names[path] = path.relative_to(self.root).as_posix() if inside else path.name
        return self._names[path]

    def skip(self, path: Path, line: int | None, reason: str) -> None:
        """Leave a row out. What is quoted in `reason` differs from row to row; rows are counted by the rest."""
        self.bad.append(BadRow(line, reason, self.name(path)))

    def add(self, path: Path, line: int, *, audio: str | Path | None = None, **said: Any) -> None:
        """One row of `path`. ValueError where its recording is missing or a value cannot be stored."""
        record = Record(line, file=self.name(path), **said)
        record.text = " ".join(record.text.split()) if record.text else None
        record.meta = {key: value for key, value in record.meta.items() if value not in (None, "", [])}
        if isinstance(audio, Path):
            record.audio = audio
        elif audio is not None:
            record.audio = self.finder.find(audio)
        if record.audio is None and not record.text:
            raise ValueError("neither text nor recording")
        check_storable(record)
        self.records.append(record)

    @contextmanager
    def row(self, path: Path, line: int) -> Iterator[None]:
        """The block reads one row; what is wrong with that row leaves it out."""
        try:
            yield
        except KeyError as error:
            self.skip(path, line, f"field {error} is missing; it is part of the published layout")
        except ValueError as error:
            self.skip(path, line, str(error))
        except (TypeError, IndexError, AttributeError) as error:
            self.skip(path, line, f"not as published ({type(error).__name__}: {str(error)!r}); correct it")

    def lines(self, path: Path) -> Iterator[str]:
        """Lines of a UTF-8 file, read as they are asked for; only a line feed ends one (transcripts hold other
        separators). SourceError names the line that cannot be read."""
        number = 0
        try:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    text = (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).decode()
                    yield text.removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise SourceError(f"{path}:{number}: not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8") from None
        except (OSError, EOFError, zlib.error) as error:
            raise SourceError(f"{path}:{number + 1}: cannot be read ({error}); copy it again") from None

    def json_lines(self, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        """(line, object) of a file with one JSON object a line; other lines are left out."""
        for line, text in enumerate(self.lines(path), 1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except ValueError as error:
                self.skip(path, line, f"not JSON ({str(error)!r}); one object a line is expected")
                continue
            if isinstance(row, dict):
                yield line, row
            else:
                self.skip(path, line, f"must be an object, not {type(row).__name__}")

    def with_keys(self, paths: list[Path], *keys: str) -> list[Path]:
        """The files that speak of these keys at their beginning; the others are no rows, and said in a note."""
        found = [path for path in paths if all(f'"{key}"' in _beginning(path) for key in keys)]
        if passed := [self.name(path) for path in paths if path not in found]:
            self.notes.append(f"not read: {', '.join(passed[:10])}; no {' and '.join(keys)} in there")
        return found

    def tsv(self, path: Path) -> Iterator[tuple[int, dict[str, str]]]:
        """(line, cells by column) of a tab-separated file with a header; quotes are part of the text."""
        rows = (line.split("\t") for line in self.lines(path))
        header = next(rows, [])
        for line, cells in enumerate(rows, 2):
            if len(cells) == len(header):
                yield line, dict(zip(header, cells, strict=True))
            elif any(cells):
                self.skip(path, line, f"has {str(len(cells))!r} cells, the header {len(header)}; correct the line")


def _beginning(path: Path) -> str:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read(1 << 16).decode(errors="replace")
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{path}: cannot be read ({error}); copy it again") from None


def files(root: Path, *patterns: str) -> list[Path]:
    """Files below `root` that fit one of the patterns, sorted by path; hidden ones are passed over."""
    named = re.compile("|".join(fnmatch.translate(pattern.rpartition("/")[2]) for pattern in patterns))
    found = (path for path in walk(root) if named.match(path.name))  # the quick look first: there may be a million
    return sorted(path for path in found if any(path.match(pattern) for pattern in patterns))


def need(found: list[Path], root: Path, kind: str, layout: str) -> list[Path]:
    """The files, or SourceError that says what the layout looks like."""
    if not found:
        raise SourceError(f"{kind}: nothing of it in {root}; expected {layout}")
    return found


def split_in(name: str) -> str | None:
    """train, dev or test where one part of a file's name says so: `cuts_train.jsonl`, `en.dev.tsv`."""
    for mark in "_-.":
        name = name.replace(mark, " ")
    said = {split for word in name.split() if (split := split_name(word))}
    return said.pop() if len(said) == 1 else None


def known(value: object) -> str | None:
    """A cell about a speaker or the like, or None for the ways in which published files say that there is nothing."""
    return None if str(value).strip() in ("", "None", "nan", "NaN") else str(value).strip()
