"""Makes synthetic voices sound recorded: on the waveform once, on the log-mel anew at every presentation."""
# scipy types its transforms and filters by their dispatch machinery, not by their arrays.
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportReturnType=false, reportAssignmentType=false

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft
from scipy.signal import lfilter

from models.recipe.speech import BANDS, RATE


def _equaliser(rng: np.random.Generator, bins: int) -> np.ndarray:
    """Amplitude response: a smooth random curve, often with a band limit (telephone, 4 kHz, cheap microphone)."""
    hz = np.linspace(0, RATE / 2, bins)
    knots = np.array([0, 150, 400, 1000, 2500, 5000, 8000])
    gain = np.interp(hz, knots, rng.normal(0, rng.choice([1.0, 5.0]), len(knots)))  # dB
    if rng.random() < 0.45:
        low, high = ((300, 3400), (100, 3900), (rng.uniform(50, 350), rng.uniform(2800, 7000)))[rng.integers(3)]
        gain -= np.clip((low - hz) / low * 30, 0, 40) + np.clip((hz - high) / high * 120, 0, 50)
    return (10 ** (gain / 20)).astype(np.float32)


def _room(rng: np.random.Generator) -> np.ndarray:
    """Impulse response: the direct sound and an exponentially decaying noise tail (60 dB in 0.1 to 0.7 s)."""
    decay = rng.uniform(0.1, 0.7)
    t = np.arange(int(decay * 0.8 * RATE)) / RATE
    tail = rng.standard_normal(len(t)) * 10 ** (-3 * t / decay)
    tail[: int(rng.uniform(0.001, 0.01) * RATE)] = 0
    tail *= rng.uniform(0.2, 1.0) / (np.sqrt((tail**2).sum()) + 1e-9)
    tail[0] = 1
    return tail.astype(np.float32)


def _noise(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Stationary noise of random colour (white to nearly brown), of unit power."""
    pole = rng.choice([0.0, 0.6, 0.9, 0.98])
    noise = lfilter([1.0], [1.0, -pole], rng.standard_normal(samples, np.float32)).astype(np.float32)
    return noise / (noise.std() + 1e-9)


def record(wave: np.ndarray, rng: np.random.Generator, babble: np.ndarray | None = None) -> tuple[np.ndarray, float]:
    """A 16 kHz voice as a microphone might give it -> wave, seconds of silence put before it.

    In order: silence around (to 2 s), reverb, equaliser and band limit, noise or a second voice (`babble`) at
    5 to 40 dB, overdrive, gain. One clip in eight is left as it is.
    """
    before, after = (rng.uniform(0, 2) if rng.random() < 0.12 else rng.uniform(0, 0.35) for _ in range(2))
    level = np.sqrt((wave**2).mean()) + 1e-6
    wave = np.pad(wave, (int(before * RATE), int(after * RATE)))
    if rng.random() < 0.125:
        return wave, before
    samples = len(wave)
    room = _room(rng) if rng.random() < 0.5 else np.ones(1, np.float32)
    size = next_fast_len(samples + len(room), real=True)
    spectrum = rfft(wave, size) * _equaliser(rng, size // 2 + 1)
    wave = irfft(spectrum * rfft(room, size), size)[:samples]
    if rng.random() < 0.85:
        wave = wave + _noise(rng, samples) * level * 10 ** (-rng.uniform(5, 40) / 20)
    if babble is not None and rng.random() < 0.15:
        other = np.resize(babble, samples)
        wave = wave + other * (level / (other.std() + 1e-6)) * 10 ** (-rng.uniform(8, 25) / 20)
    wave = wave / (np.abs(wave).max() + 1e-6)
    if rng.random() < 0.15:
        drive = rng.uniform(1.5, 5)
        wave = np.tanh(drive * wave)
    return (wave * rng.uniform(0.05, 0.95)).astype(np.float32), before


def vary(mel: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(frames, 80) log-mel -> another reading of it, and the old position of every new frame.

    Local speed (0.75 to 1.35, changing along the clip), vocal-tract warp of the frequency axis (+-15 %), a smooth
    random channel, a noise floor, breath noise in place of harmonics, and masks (SpecAugment).
    """
    frames = len(mel)
    knots = max(2, frames // 40 + 1)
    pace = np.exp(rng.uniform(-0.28, 0.28) + rng.normal(0, 0.12, knots))
    speed = np.interp(np.arange(frames), np.linspace(0, frames, knots), pace)
    passed = np.cumsum(1 / np.clip(speed, 0.65, 1.5))
    count = min(max(int(passed[-1]), 12), 600)
    old = np.interp(np.linspace(0, passed[-1], count), np.r_[0, passed], np.arange(frames + 1)).clip(0, frames - 1)
    low = old.astype(np.int64)
    share = (old - low)[:, None].astype(np.float32)
    out = mel[low] * (1 - share) + mel[np.minimum(low + 1, frames - 1)] * share

    bend = np.exp(rng.uniform(-0.15, 0.15))
    band = np.minimum(np.arange(BANDS) * bend, BANDS - 1)
    low = band.astype(np.int64)
    share = (band - low).astype(np.float32)
    out = out[:, low] * (1 - share) + out[:, np.minimum(low + 1, BANDS - 1)] * share

    channel = np.interp(np.arange(BANDS), np.linspace(0, BANDS, 6), rng.normal(0, rng.choice([0.03, 0.12]), 6))
    out = out + channel.astype(np.float32)
    if rng.random() < 0.4:
        out = out + rng.standard_normal(out.shape, np.float32) * np.float32(rng.uniform(0.03, 0.12))
    top = out.max()
    if rng.random() < 0.3:  # floor between 20 and 60 dB below the loudest band (0.5 per 20 dB)
        out = np.maximum(out, top - rng.uniform(0.5, 1.5) + rng.standard_normal(out.shape, np.float32) * 0.05)
    for _ in range(rng.integers(0, 3)):
        start, width = rng.integers(0, BANDS - 10), rng.integers(1, 11)
        out[:, start : start + width] = out.mean()
    for _ in range(rng.integers(0, 1 + count // 60)):
        start, width = rng.integers(0, count), rng.integers(1, 9)
        out[start : start + width] = out.mean()
    return np.maximum(out, out.max() - 2), old
