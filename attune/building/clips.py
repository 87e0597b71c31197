"""Many texts spoken: in parallel, each clip kept as soon as it is whole, so that a build goes on where it was ended."""

import contextlib
import fcntl
import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from attune.building.engine import Engine, SpeechError
from attune.importing import SourceError

PART = 1000
"""Texts that are handed to the workers at a time."""
FEW, ONE_IN = 3, 10
"""A build ends early where more than FEW texts and more than one in ONE_IN of those tried failed: the command is wrong,
not the texts."""
SOURCE = "source"
"""Folder beside the clips that a source is unpacked into, anew by every build."""
LONGEST_TEXT = 100_000
"""Characters of one text."""


@dataclass(frozen=True)
class Saying:
    """One text to be spoken."""

    where: str
    """The row as messages name it."""
    id: str
    text: str
    voice: str
    language: str


class Clips:
    """A folder of clips, each named by its row and by all that it was made of."""

    def __init__(self, folder: Path, engine: Engine, workers: int):
        self.folder, self.engine, self.workers = folder, engine, workers

    def path(self, saying: Saying) -> Path:
        """Where the clip of a text lies, whether it is there or not."""
        made_of = "\0".join([*self.engine.arguments, saying.text, saying.voice, saying.language])
        stem = re.sub(r"[^\w.-]+", "_", saying.id).strip("._")[:60] or "clip"
        return self.folder / f"{stem}-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.wav"

    def speak(self, sayings: Sequence[Saying], progress: Callable[[int, int], None] | None = None) -> dict[int, str]:
        """Make the clips that are not there yet. Returns the reasons of those that cannot be made, by their place in
        `sayings`; SourceError where the command cannot be started, or fails on too many."""
        failed: dict[int, str] = {}
        missing = [n for n, saying in enumerate(sayings) if not self.path(saying).is_file()]
        done = len(sayings) - len(missing)
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                for start in range(0, len(missing), PART):
                    part = missing[start : start + PART]
                    for tried, (n, reason) in enumerate(
                        pool.map(lambda n: (n, self._one(sayings[n])), part), start + 1
                    ):
                        done += 1
                        if reason:
                            failed[n] = reason
                            _refuse_hopeless(sayings, failed, tried)
                        if progress:
                            progress(done, len(sayings))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self.engine.stop()
                raise
        return failed

    def _one(self, saying: Saying) -> str | None:
        if len(saying.text) > LONGEST_TEXT:
            return f"its text has {len(saying.text)} characters, at most {LONGEST_TEXT} are spoken; shorten it"
        try:
            self.engine.speak(saying.text, self.path(saying), voice=saying.voice, language=saying.language)
        except SpeechError as error:
            return str(error)
        return None


def _refuse_hopeless(sayings: Sequence[Saying], failed: dict[int, str], tried: int) -> None:
    if len(failed) > FEW and len(failed) * ONE_IN > tried:
        raise SourceError(f"{len(failed)} of {tried} texts could not be spoken; {told(sayings, failed)}")


def told(sayings: Sequence[Saying], failed: dict[int, str]) -> str:
    """The first failures, row by row."""
    first = [f"{sayings[n].where}: {reason}" for n, reason in list(failed.items())[:3]]
    return "; ".join(first)


@contextlib.contextmanager
def kept(out: Path) -> Iterator[Path]:
    """The folder beside `out` that clips are kept in until the data set is written: it goes when the block ends well,
    and stays otherwise. SourceError where another build is writing into it."""
    folder = out.absolute().with_name(f".{out.name}-building")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a")
    except OSError as error:
        raise SourceError(f"{folder}: cannot be made ({error.strerror}); choose another folder for --out") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SourceError(f"{out}: another build is writing it; wait for it, or choose another folder") from None
        for left in folder.glob("**/.saying-*"):  # of a build that was killed
            shutil.rmtree(left, ignore_errors=True)
        try:
            yield folder
        except BaseException:
            if {path.name for path in folder.iterdir()} <= {"lock", SOURCE}:  # nothing that took time
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
