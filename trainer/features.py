"""Recordings to mel frames, and the cache of what a frozen encoder makes of them.
 Mel: WhisperFeatureExtractor on the wave followed by zeros, cut to the L signal frames and the two after
them. Those two carry the floor that the encoder's two convolutions (receptive field 2t ± 2) see behind the
signal in a 30-s padded window; with them, trimmed and padded encoders agree.
"""

import hashlib
import os
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from trainer.tokens import AudioShape

RIGHT_FRAMES = 2
"""Mel frames kept after the signal."""
FEWEST_FRAMES = 32
"""The transform is made over at least this many frames: narrower matrix products take another BLAS path and
differ in the last bit."""


class Mel:
    """The family's own feature extractor, trimmed."""

    def __init__(self, folder: str | Path, shape: AudioShape):
        from transformers import WhisperFeatureExtractor

        self.shape = shape
        self.extractor = WhisperFeatureExtractor.from_pretrained(folder)

    def __call__(self, wave: np.ndarray) -> np.ndarray:
        """Log-mel of one mono wave (samples,) float32 → (bins, L + 2) float32, fewer at the end of the
        window."""
        hop, window = self.shape.hop_length, self.shape.window_samples
        frames = self.shape.mel_frames(len(wave))
        # Two frames more than are kept, so that the reflection at the end of the transform stays out of them.
        length = min(max(frames + RIGHT_FRAMES + 2, FEWEST_FRAMES) * hop, window)
        out = self.extractor(
            wave, sampling_rate=self.shape.sampling_rate, padding="max_length", max_length=length, return_tensors="np"
        )
        return out["input_features"][0][:, : frames + RIGHT_FRAMES]

    def recipe(self) -> str:
        """What the frames depend on besides the wave."""
        return self.extractor.to_json_string()


def wave_key(wave: np.ndarray) -> str:
    """sha256 of the samples as the encoder gets them: after decoding, resampling, cutting, trimming."""
    return hashlib.sha256(np.ascontiguousarray(wave, dtype=np.float32).tobytes()).hexdigest()


class FeatureCache:
    """Encoder states by (encoder key, wave key), in memory and, with `folder`, on disk.

    A value is always made from one clip alone and is used as stored, also right after it was made: so what
    the model sees does not depend on who else was in the batch, nor on whether the cache was warm.
    """

    def __init__(self, folder: str | Path | None = None):
        self._folder = Path(folder) if folder else None
        self._values: dict[tuple[str, str], np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._values)

    def get(self, encoder: str, wave: str) -> np.ndarray | None:
        """The stored states (vectors, width), or None."""
        found = self._values.get((encoder, wave))
        if found is None and self._folder is not None:
            path = self._path(encoder, wave)
            if path.exists():
                found = self._values[encoder, wave] = load_file(path)["states"]
        return found

    def put(self, encoder: str, wave: str, states: np.ndarray) -> np.ndarray:
        """Stores the states of one clip and returns what is stored."""
        self._values[encoder, wave] = states
        if self._folder is not None:
            path = self._path(encoder, wave)
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".part{os.getpid()}")
            save_file({"states": states}, part)
            part.replace(path)
        return states

    def _path(self, encoder: str, wave: str) -> Path:
        assert self._folder is not None
        return self._folder / encoder[:16] / wave[:2] / f"{wave}.safetensors"
