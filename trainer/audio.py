"""Audio in: any file that libsndfile decodes, as mono float32 at one rate; silence and clipping."""

import os
from dataclasses import dataclass

import numpy as np
import soundfile
import soxr

from trainer import streamed

RATE = 16_000
"""Samples per second that every model here takes."""

FORMATS = "wav, flac, ogg (Vorbis, Opus) and mp3"

FRAME_S = 0.02
SILENCE_BELOW_PEAK_DB = 40.0
SILENCE_DBFS = -60.0
MARGIN_S = 0.1
CLIP_LEVEL, CLIP_RUN = 0.999, 3
COPIES = 5
"""Times that a copy of a recording in S3 is asked for, where others need its room as soon as it is there."""


class AudioError(ValueError):
    """A recording that cannot be used: path, reason and remedy. `code` is the reason in a word."""

    def __init__(self, path: str | os.PathLike[str], code: str, reason: str):
        super().__init__(f"{os.fspath(path)}: {reason}")
        self.code = code


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What a file's header says."""

    duration_s: float
    rate: int
    """Samples per second and channel."""
    channels: int
    format: str
    """Container and coding, e.g. `OGG/OPUS`."""


def _open(path: str | os.PathLike[str]) -> soundfile.SoundFile:
    if not streamed.is_streamed(path):
        return _opened(path, path)
    for _ in range(COPIES):
        try:
            copy = streamed.local(path)
        except streamed.GoneError as gone:
            raise AudioError(streamed.address(path), gone.code, str(gone)) from None
        try:
            return _opened(copy, streamed.address(path))
        except AudioError as error:
            if error.code != "missing":
                raise
    remedy = "its copies went as soon as they were there; give the cache more room (ATTUNE_CACHE_GB)"
    raise OSError(f"{streamed.address(path)}: {remedy}")


def _opened(file: str | os.PathLike[str], path: str | os.PathLike[str]) -> soundfile.SoundFile:
    if not os.path.isfile(file):  # also of a name that is too long for one
        raise AudioError(path, "missing", "no such file; correct the path or copy the recording there")
    try:
        return soundfile.SoundFile(file)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        code = "unreadable" if os.path.isfile(file) else "missing"
        raise AudioError(path, code, f"unreadable as audio ({error}); use {FORMATS}") from None


def info(path: str | os.PathLike[str]) -> AudioInfo:
    """Duration, rate and channels without decoding. AudioError: missing, unreadable."""
    with _open(path) as file:
        seconds = file.frames / file.samplerate
        return AudioInfo(seconds, file.samplerate, file.channels, f"{file.format}/{file.subtype}")


def read(
    path: str | os.PathLike[str], offset_s: float = 0.0, duration_s: float | None = None, rate: int = RATE
) -> np.ndarray:
    """The recording from `offset_s` for `duration_s` seconds (None: to the end), (samples,) float32 in ±1.

    Channels are averaged; another rate is converted by soxr (HQ). A duration that reaches past the end yields
    what there is: `trainer.validate` reports the difference. AudioError: missing, unreadable, empty, offset
    beyond the end, not finite.
    """
    with _open(path) as file:
        start = round(min(offset_s * file.samplerate, file.frames))
        if file.frames == 0:
            raise AudioError(path, "empty", "holds no samples; record it again or remove the row")
        if start >= file.frames:
            end = file.frames / file.samplerate
            reason = f"offset_s {offset_s:g} lies beyond the end ({end:.2f} s); correct offset_s"
            raise AudioError(path, "offset", reason)
        count = -1 if duration_s is None else max(1, round(min(duration_s * file.samplerate, file.frames)))
        try:
            file.seek(start)
            wave = file.read(count, dtype="float32", always_2d=True).mean(axis=1, dtype=np.float32)
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise AudioError(path, "unreadable", f"damaged ({error}); copy or convert it again") from None
        source_rate = file.samplerate
    if not len(wave):
        raise AudioError(path, "empty", "holds no samples; record it again or remove the row")
    if not np.isfinite(wave).all():
        raise AudioError(path, "not_finite", "holds samples that are no numbers; convert it again")
    if source_rate != rate:
        wave = soxr.resample(wave, source_rate, rate, quality="HQ").astype(np.float32, copy=False)
    return wave


def loudness_db(wave: np.ndarray, rate: int = RATE) -> np.ndarray:
    """RMS of every 20-ms frame in dB re full scale, (frames,); the last, shorter frame counts too."""
    step = max(1, round(FRAME_S * rate))
    starts = np.arange(0, len(wave), step)
    energy = np.add.reduceat(np.square(wave, dtype=np.float64), starts)
    lengths = np.diff(np.append(starts, len(wave)))
    return 10 * np.log10(energy / lengths + 1e-12)


def _loud(wave: np.ndarray, rate: int) -> np.ndarray:
    """Frames that are not silent: above -60 dBFS and above the clip's 95th percentile frame less 40 dB.

    The relative part makes a quiet microphone's speech count as speech; the percentile instead of the peak
    keeps one click from turning the rest into silence.
    """
    level = loudness_db(wave, rate)
    return level > max(SILENCE_DBFS, float(np.percentile(level, 95)) - SILENCE_BELOW_PEAK_DB)


def silence_share(wave: np.ndarray, rate: int = RATE) -> float:
    """Share of 20-ms frames that are silent, 0 to 1; 1.0 where nothing is heard at all."""
    return float(1 - _loud(wave, rate).mean()) if len(wave) else 1.0


def trim_silence(wave: np.ndarray, rate: int = RATE) -> np.ndarray:
    """The wave without the silence at its ends (0.1 s of it stays), a view; all silent: unchanged."""
    loud = np.flatnonzero(_loud(wave, rate)) if len(wave) else np.empty(0)
    if not len(loud):
        return wave
    step, margin = max(1, round(FRAME_S * rate)), round(MARGIN_S * rate)
    return wave[max(0, loud[0] * step - margin) : (loud[-1] + 1) * step + margin]


def clipping_share(wave: np.ndarray) -> float:
    """Share of samples in runs of 3 or more at full scale (|x| ≥ 0.999); a single one is only a loud peak."""
    at_top = np.abs(wave) >= CLIP_LEVEL
    if not at_top.any():
        return 0.0
    edges = np.flatnonzero(np.diff(np.concatenate(([0], at_top.view(np.int8), [0]))))
    lengths = edges[1::2] - edges[::2]
    return float(lengths[lengths >= CLIP_RUN].sum() / len(wave))
