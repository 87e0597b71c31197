"""Recordings of an export: copied once each below the new folder, or named where they are."""

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from trainer import audio
from trainer.manifest import Utterance


class Recordings:
    """Files that rows name by absolute path; those outside of the data set's folder are always named where they are."""

    def __init__(self, rows: Sequence[Utterance], folder: Path, out: Path, *, link: bool):
        self.folder, self.out, self.link = folder, out, link
        self.users = Counter(row.audio for row in rows if row.audio)
        """How many rows use a file."""
        self._info: dict[str, audio.AudioInfo] = {}

    def path(self, row: Utterance) -> str:
        """Where the row's recording is, relative to the new folder (copied there) or absolute."""
        assert row.audio is not None, "only rows with a recording have a path"
        relative = os.path.relpath(row.audio, self.folder)
        if self.link or relative.startswith(".."):
            return row.audio
        target = self.out / relative
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(row.audio, target)
        return Path(relative).as_posix()

    def info(self, row: Utterance) -> audio.AudioInfo:
        """What the recording's header says."""
        assert row.audio is not None, "only rows with a recording have a header"
        if row.audio not in self._info:
            self._info[row.audio] = audio.info(row.audio)
        return self._info[row.audio]

    def seconds(self, row: Utterance) -> float:
        """Seconds that the row uses."""
        return row.duration_s or round(self.info(row).duration_s - row.offset_s, 6)
