"""What validation needs to know about one recording, measured in one decoding."""

import hashlib
from dataclasses import dataclass

from trainer import audio
from trainer.manifest import Utterance


@dataclass(frozen=True, slots=True)
class Recording:
    """Facts about the part of a file that an utterance uses."""

    seconds: float
    """What is heard: from the offset for the stated duration, or to the end."""
    seconds_to_end: float
    """What the file holds from the offset on."""
    silence: float
    """Share of silent 20-ms frames."""
    clipping: float
    """Share of clipped samples."""
    sha256: str
    """Hash of the decoded samples (16 kHz mono): a renamed or losslessly converted copy is the same."""
    rate: int | None = None
    """Samples per second of the file; None where it was examined before this was kept."""


def examine(row: Utterance) -> Recording | audio.AudioError | None:
    """Decode an utterance's recording once; what is wrong with it as a value; None for a text."""
    if row.audio is None:
        return None
    try:
        wave = audio.read(row.audio, row.offset_s, row.duration_s)
        file = audio.info(row.audio)
    except audio.AudioError as error:
        return error
    return Recording(
        seconds=len(wave) / audio.RATE,
        seconds_to_end=file.duration_s - row.offset_s,
        silence=audio.silence_share(wave),
        clipping=audio.clipping_share(wave),
        sha256=hashlib.sha256(wave.tobytes()).hexdigest(),
        rate=file.rate,
    )
