"""Recordings to mel frames, and the cache of what a frozen encoder makes of them.

Mel: what WhisperFeatureExtractor makes of the wave in its padded window, bit for bit, but only the L signal frames
and the two after them. Those two carry the floor that the encoder's two convolutions (receptive field 2t ± 2) see
behind the signal in a 30-s padded window; with them, trimmed and padded encoders agree.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.feature_store import FeatureStore
from trainer.folder_store import FolderStore
from trainer.formats.prompt import WhisperShape

RIGHT_FRAMES = 2
"""Mel frames kept after the signal."""
FEWEST_FRAMES = 32
"""The transform is made over at least this many frames: narrower matrix products take another BLAS path and
differ in the last bit."""
BAND = 32
"""Mel filters per matrix product. A filter covers few frequencies, so a band of them reads a part of the spectrum; the
rest would add zeros."""

LIMIT = 4 << 30
"""Bytes of encoder states kept in memory unless told otherwise."""


class Mel:
    """The family's own feature extractor, trimmed: the same operations on the frames that are kept, no others."""

    def __init__(self, settings: str | Path | dict, shape: WhisperShape):
        """settings: of the extractor, or the folder that holds them."""
        from transformers import WhisperFeatureExtractor

        self.shape = shape
        of = WhisperFeatureExtractor
        self.extractor: Any = of.from_dict(settings) if isinstance(settings, dict) else of.from_pretrained(settings)
        if self.extractor.dither:
            raise ValueError(
                f"dither: {self.extractor.dither:g} makes the feature extractor's frames random; use 0 in its settings"
            )
        self._window = torch.hann_window(self.extractor.n_fft)
        filters = torch.from_numpy(self.extractor.mel_filters).float()
        self._bands = []
        for part in filters.split(BAND, 1):
            used = part.any(1).nonzero()
            low, high = int(used.min()), int(used.max()) + 1
            self._bands.append((low, high, part[low:high].contiguous()))

    def __call__(self, wave: np.ndarray) -> np.ndarray:
        """Log-mel of one mono wave (samples,) float32 → (bins, L + 2) float32, fewer at the end of the
        window."""
        return self._log_mel(wave, self.shape.mel_frames(len(wave)) + RIGHT_FRAMES)

    def filled(self, wave: np.ndarray) -> np.ndarray:
        """(bins, frames) of the wave filled up with zeros as the family does (`WhisperShape.padded`): what is behind
        the last frame that touches the signal is one value, so it is not computed."""
        made = self._log_mel(wave, self.shape.mel_frames(len(wave)) + RIGHT_FRAMES + 1)
        missing = self.shape.padded(len(wave)) // self.shape.hop_length - made.shape[1]
        return np.pad(made, ((0, 0), (0, missing)), mode="edge")

    def whole(self, wave: np.ndarray) -> np.ndarray:
        """(bins, frames) of the wave filled up likewise, all of them computed by the stock extractor."""
        filled = np.pad(wave, (0, max(0, self.shape.padded(len(wave)) - len(wave))))
        made = self.extractor(
            filled, sampling_rate=self.shape.sampling_rate, padding="longest", truncation=False, return_tensors="np"
        )
        return made["input_features"][0]

    @torch.inference_mode()
    @torch.autocast("cpu", enabled=False)  # where a CPU computes in bf16, frames do not
    def _log_mel(self, wave: np.ndarray, frames: int) -> np.ndarray:
        """(bins, frames) float32: the first frames of the wave in its window."""
        kept = min(frames, self.shape.padded(len(wave)) // self.shape.hop_length)
        spectrum = torch.fft.rfft(self._cut(wave, max(kept, FEWEST_FRAMES)) * self._window)
        # |x|² by way of the root, as the stock extractor takes it: re² + im² has other bits. Contiguous is faster.
        power = torch.hypot(spectrum.real.contiguous(), spectrum.imag.contiguous()).square_()
        mel = torch.cat([power[:, low:high] @ filters for low, high, filters in self._bands], 1)
        log = mel.clamp_(min=1e-10).log10_()
        log = log.clamp_(min=log.max() - 8.0).add_(4.0).div_(4.0)
        return log[:kept].T.numpy()

    def _cut(self, wave: np.ndarray, count: int) -> torch.Tensor:
        """(count, n_fft) samples of the first frames of the wave in its window of zeros, mirrored at the window's
        ends."""
        hop, window, size = self.shape.hop_length, self.shape.padded(len(wave)), self.extractor.n_fft
        edge = size // 2
        padded = np.zeros((count - 1) * hop + size, np.float32)
        within = wave[: min(window, len(padded) - edge)]
        padded[edge : edge + len(within)] = within
        padded[:edge] = padded[2 * edge : edge : -1]
        behind = len(padded) - edge - window
        if behind > 0:
            end = edge + window
            padded[end:] = padded[end - 2 : end - 2 - behind : -1]
        return torch.from_numpy(padded).unfold(0, size, hop)

    def recipe(self) -> str:
        """What the frames depend on besides the wave."""
        return self.extractor.to_json_string()


def alike(lengths: Sequence[int], most: int = 480 * 16_000, waste: float = 1.25) -> list[list[int]]:
    """Recordings of so many samples that are encoded together: indices in order of length, cut where padding would
    make a batch more than `waste` times what it holds, or more than `most` samples."""
    batches: list[list[int]] = []
    held = 0
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        computed = lengths[i] * (len(batches[-1]) + 1) if batches else 0
        if batches and computed <= min(most, waste * (held + lengths[i])):
            batches[-1].append(i)
            held += lengths[i]
        else:
            batches.append([i])
            held = lengths[i]
    return batches


class FeatureCache:
    """Encoder states by (encoder key, wave key): the latest in memory, and all of them in a store, if there is one.

    `limit` bytes are kept in memory; beyond them what was used longest ago goes, and is read from the store or made
    again when it is asked for: the same bits either way. `kept`: the store, or a folder that is one.

    A value is used as stored, also right after it was made: so what the model sees does not depend on whether the
    cache was warm; nor, where it was made from one clip alone, on who else was in the batch. Threads may share it: who
    looks ahead in the store keeps nobody waiting who finds in memory, or puts.
    """

    def __init__(self, kept: FeatureStore | str | Path | None = None, *, limit: int = LIMIT):
        self.kept = FeatureStore(FolderStore(kept)) if isinstance(kept, str | Path) else kept
        self.limit, self.bytes = limit, 0
        self._values: OrderedDict[tuple[str, str], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, encoder: str, wave: str) -> np.ndarray | None:
        """The stored states (vectors, width), or None."""
        with self._lock:
            found = self._values.get((encoder, wave))
            if found is not None:
                self._values.move_to_end((encoder, wave))
        if found is None and self.kept is not None and (found := self.kept.get(encoder, wave)) is not None:
            self._hold((encoder, wave), found)
        return found

    def put(self, encoder: str, wave: str, states: np.ndarray) -> np.ndarray:
        """Stores the states of one clip, in their own dtype, and returns what is stored."""
        self._hold((encoder, wave), states)
        if self.kept is not None:
            self.kept.put(encoder, wave, states)
        return states

    def flush(self) -> None:
        """What was put is in the store."""
        if self.kept is not None:
            self.kept.flush()

    def _hold(self, key: tuple[str, str], states: np.ndarray) -> None:
        with self._lock:
            before = self._values.pop(key, None)
            self.bytes += states.nbytes - (0 if before is None else before.nbytes)
            self._values[key] = states
            while self.bytes > self.limit:
                _, gone = self._values.popitem(last=False)
                self.bytes -= gone.nbytes
