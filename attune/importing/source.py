"""What every reader hands over: raw rows with their line, bad rows with a reason, notes on what was assumed."""

import gzip
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from trainer.spec import Language

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3")
_LANGUAGE = TypeAdapter(Language)


def is_language(tag: str) -> bool:
    """Whether a spec would accept this language: a BCP-47 tag such as `it` or `fr-FR`."""
    try:
        _LANGUAGE.validate_python(tag)
    except ValidationError:
        return False
    return True


class SourceError(ValueError):
    """A source that cannot be imported as it is; the message says where and what to do."""


@dataclass(frozen=True)
class BadRow:
    """A row that was left out, and why. `line` is None where the reason is about no single line."""

    line: int | None
    reason: str
    file: str = ""
    """Which file of the source; empty where there is one only."""

    def __str__(self) -> str:
        at = f"{self.file}:{self.line}" if self.file else f"line {self.line}"
        return f"{at if self.line is not None else self.file}: {self.reason}".removeprefix(": ")


@dataclass(frozen=True)
class RawRow:
    """One row before its columns have a meaning. `line` counts from 1 in the source file (rows in a sheet)."""

    line: int
    cells: dict[str, Any]
    file: str = ""


@dataclass
class Source:
    """Everything that was read from a source."""

    rows: list[RawRow]
    format: str
    """What the source turned out to be, e.g. `csv`, `bio`, `folder`."""
    audio_root: Path
    """Folder that relative audio paths start from."""
    bad: list[BadRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    names: dict[str, list[str]] = field(default_factory=dict)
    """Class names by column, where the source stores labels as numbers (Hugging Face ClassLabel)."""
    instruction: str | None = None
    """The question that the source asks in every row, where it has one."""


def walk(root: Path) -> Iterator[Path]:
    """All files below a folder, sorted folder by folder; linked folders too (each once), hidden ones not."""
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen:
            yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))
        seen.add(real)


def read_text(path: Path, encoding: str | None = None) -> str:
    """The file, unpacked if named .gz, as text: UTF-8 with or without BOM, UTF-16 with BOM.

    SourceError: it cannot be opened, is no gzip file, or a line (named) is in another encoding.
    """
    try:
        data = path.read_bytes()
        if path.name.lower().endswith(".gz"):
            data = gzip.decompress(data)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SourceError(
            f"{path}: no whole gzip file ({error}); copy it again, or drop .gz from the name if it is plain text"
        ) from None
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    if encoding is None:
        encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SourceError(
            f"{path.name}:{line}: not {encoding.removesuffix('-sig').upper()} "
            f"(byte 0x{data[error.start]:02x}); save the file as UTF-8 or say its encoding, e.g. --encoding cp1252"
        ) from None
    except LookupError:
        raise SourceError(f"--encoding {encoding!r} is unknown; try utf-8, cp1252 or utf-16") from None
