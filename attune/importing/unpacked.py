"""Archives as sources: unpacked safely into a folder that goes away again."""

import shutil
from pathlib import Path

from attune.importing.source import SourceError
from trainer.archive import ArchiveError, unpack

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
MOST_FILES = 10_000_000


def unpacked(path: Path, work: Path) -> Path:
    """What an archive holds (a folder, or its only file), unpacked below `work`; any other path as it is.

    Never more than the disk has room for. SourceError: not an archive, or one that must not be unpacked.
    """
    if not (path.is_file() and path.name.lower().endswith(SUFFIXES)):
        return path
    folder = work / "archive"
    folder.mkdir()
    try:
        unpack(path, folder, most_bytes=shutil.disk_usage(work).free, most_files=MOST_FILES)
    except ArchiveError as error:
        raise SourceError(f"{path}: {error}") from None
    inside = list(folder.iterdir())
    return inside[0] if len(inside) == 1 else folder
