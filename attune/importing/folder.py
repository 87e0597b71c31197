"""A folder of clips: the label is the sub-folder's name, the transcript a .txt beside the clip."""

import re
from pathlib import Path

from attune.importing.source import AUDIO_SUFFIXES, RawRow, Source, SourceError
from attune.importing.split import split_name

_NOHASH = re.compile(r"(.+)_nohash_\d+")
"""Names of Speech Commands clips: speaker, then the number of the repetition."""


def read_folder(root: Path) -> Source:
    """Clips below `root`: [split/]label/clip.wav. Hidden folders and those that begin with `_` are passed over."""
    source = Source([], "folder", root)
    clips = [path for path in sorted(root.rglob("*")) if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file()]
    if not clips:
        raise SourceError(f"{root.name}: no clips ({', '.join(AUDIO_SUFFIXES)}) in this folder or below it")
    in_split = sum(split_name(clip.relative_to(root).parts[0]) is not None for clip in clips)
    in_splits = in_split * 2 >= len(clips)
    if in_split and not in_splits:
        source.notes.append(f"split: only {in_split} of {len(clips)} clips lie in train, dev or test: taken as labels")
    passed: set[str] = set()
    for number, clip in enumerate(clips, 1):
        folders = list(clip.relative_to(root).parts[:-1])
        if skipped := next((f for f in [*folders, clip.name] if f.startswith((".", "_"))), None):
            passed.add(skipped)
            continue
        cells = {"audio": clip.relative_to(root).as_posix()}
        if in_splits and folders and (split := split_name(folders[0])):
            cells["split"], folders = split, folders[1:]
        if folders:
            cells["label"] = folders[-1]
        if (transcript := clip.with_suffix(".txt")).is_file():
            cells["text"] = " ".join(transcript.read_text(encoding="utf-8-sig").split())
        if match := _NOHASH.fullmatch(clip.stem):
            cells["speaker"] = match[1]
        source.rows.append(RawRow(number, cells))
    if passed:
        source.notes.append(f"passed over: {', '.join(sorted(passed)[:5])}")
    if any("speaker" in row.cells for row in source.rows):
        source.notes.append("speakers are taken from the names (…_nohash_…), as in Speech Commands")
    if not any(row.cells.keys() & {"label", "text"} for row in source.rows):
        raise SourceError(
            f"{root.name}: clips without labels; put them into one folder per label, or a .txt beside each clip"
        )
    return source
