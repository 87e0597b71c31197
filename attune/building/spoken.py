"""Rows get recordings: voices by split, one clip a row, and what is said of it in manifest and card."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attune.building.clips import Clips, Saying, told
from attune.building.engine import Engine
from attune.building.voices import voice_of, voices_of
from attune.importing import BadRow, SourceError
from attune.importing.found import Found
from attune.importing.records import Record
from attune.importing.split import SHARES, split_groups
from trainer import audio

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Speech:
    """How texts are to be spoken."""

    engine: Engine
    voices: tuple[str, ...] = ()
    """Names that the command knows, put in the place of {voice}."""
    held_out: tuple[str, ...] = ()
    """Voices of dev and test; without them `voices` are divided."""
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    seed: int = 0
    """Of the splits and voices that are chosen by hash."""
    skip_failed: bool = False
    """Leave out the rows that the command fails on, instead of ending before the data set is written."""
    engine_licence: str | None = None
    """Licence of engine and voices, as the card is to name it."""

    def check(self) -> None:
        """SourceError where template and voices do not belong together."""
        if self.engine.names("voice") and not self.voices:
            raise SourceError("--tts names {voice}, and no voice is given; name some with --voices")
        if self.voices and not self.engine.names("voice"):
            raise SourceError(f"--voices {','.join(self.voices)}: --tts has no {{voice}} to put them in; add it")
        if self.held_out and not self.voices:
            raise SourceError(f"--voices-test {','.join(self.held_out)}: give those of train with --voices")


def speak(
    found: Found,
    folder: Path,
    speech: Speech,
    language: str | None,
    progress: Progress | None = None,
    *,
    seconds: float | None = None,
) -> None:
    """Give every record of `found`, all with a split, a clip in `folder`; with `seconds` only the first ones, until
    their clips are that long together. Records that cannot be spoken end the build, or are left out where that is
    wanted."""
    speech.check()
    voices = voices_of((str(r.split) for r in found.records), speech.voices, speech.held_out, speech.seed, found.notes)
    sayings = [_saying(r, voices[str(r.split)], speech.seed, language) for r in found.records]
    clips = Clips(folder, speech.engine, speech.workers)
    failed = clips.speak(sayings, progress) if seconds is None else _until(clips, sayings, seconds)
    if failed and not speech.skip_failed:
        remedy = "the other clips are kept: run again to try these again, or leave their rows out with --skip-failed"
        raise SourceError(
            f"{len(failed)} of {len(sayings)} texts could not be spoken: {told(sayings, failed)}; {remedy}"
        )
    kept = []
    for n, (record, saying) in enumerate(zip(found.records, sayings, strict=False)):
        if n in failed:
            found.bad.append(BadRow(record.line, failed[n], record.file))
            continue
        heard_as(record, clips.path(saying), speech.engine.program, saying.voice)
        kept.append(record)
    found.records = kept
    found.provenance |= provenance(speech)


def _until(clips: Clips, sayings: list[Saying], seconds: float) -> dict[int, str]:
    """Speak from the first on until clips of so many seconds are there; `sayings` loses the rest. SourceError where
    all of them are too short for it."""
    failed: dict[int, str] = {}
    so_far, size = 0.0, 8 * clips.workers
    for start in range(0, len(sayings), size):
        part = sayings[start : start + size]
        missed = clips.speak(part)
        for n, saying in enumerate(part):
            if n in missed:
                failed[start + n] = missed[n]
                continue
            so_far += audio.info(clips.path(saying)).duration_s
            if so_far >= seconds - 1e-9:
                del sayings[start + n + 1 :]
                return {n: reason for n, reason in failed.items() if n < len(sayings)}
    raise SourceError(f"--budget: {seconds:.0f} s of speech are wanted, and all {len(sayings)} texts make {so_far:.0f}")


def heard_as(record: Record, clip: Path, engine: str, voice: str) -> None:
    """The record with a synthetic recording in place of what it had."""
    record.audio, record.offset_s, record.duration_s, record.words = clip, 0.0, None, None
    record.speaker = f"{engine}/{voice}" if voice else engine
    record.meta = record.meta | {"synthetic": {"engine": engine} | ({"voice": voice} if voice else {})}


def provenance(speech: Speech) -> dict[str, Any]:
    """What the card says of the recordings."""
    return {
        "recordings": "synthetic, not of people",
        "engine": speech.engine.program,
        "command": speech.engine.shown,
        "voices": ", ".join([*speech.voices, *speech.held_out]) or "the engine's own",
        "licence of engine and voices": speech.engine_licence or "not stated",
    }


def split_by_text(found: Found, seed: int) -> None:
    """A split for every record without one, by hash of its text, so that more rows never move it."""
    left = [record for record in found.records if not record.split]
    texts = [" ".join((record.text or "").casefold().split()) for record in left]
    for record, split in zip(left, split_groups(texts, SHARES, seed), strict=True):
        record.split = split
    if left:
        found.notes.append(f"split: {len(left)} rows by hash of their text (seed {seed})")


def _saying(record: Record, voices: list[str], seed: int, language: str | None) -> Saying:
    name = record.id or f"{record.line:06d}"
    where = f"{record.file}:{record.line}" if record.file else f"row {record.id or record.line}"
    said = record.language or language
    if not said:
        raise SourceError(f"{where}: the language is unknown; say it, e.g. --language ar")
    return Saying(where, name, record.text or "", voice_of(name, voices, seed), said)
