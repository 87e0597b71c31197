"""A prepared split: log-mel features, transcripts, and which audio vector carries which word piece."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.recipe.augment import vary
from models.recipe.model import audio_vectors
from models.recipe.speech import BANDS


class Clip(NamedTuple):
    mel: np.ndarray  # (frames, 80)
    phones: np.ndarray  # 25 Hz
    starts: np.ndarray  # of the words, and the end of speech, in audio vectors (12.5 Hz, fractional)


class Corpus:
    def __init__(self, work: Path, split: str) -> None:
        z = np.load(work / f"{split}.npz")
        self.language, self.text, self.frames = z["language"].tolist(), z["text"].tolist(), z["frames"]
        self._mel = np.memmap(work / f"{split}.mel", np.float16, "r").reshape(-1, BANDS)
        self._phone, self._word_ms = z["phone"], z["word_ms"]
        self._row = np.r_[0, np.cumsum(self.frames)]
        self._phone_row = np.r_[0, np.cumsum((self.frames + 1) // 2)]
        self._word_row = np.r_[0, np.cumsum([len(t.split()) for t in self.text])]

    def __len__(self) -> int:
        return len(self.text)

    def clarity(self) -> np.ndarray:
        """(rows,) how far the quietest frames lie below the loudest one (log-mel units, 0.5 = 20 dB): a guess at
        the noise, to begin with clips that are easy to hear."""
        level = np.concatenate([b.astype(np.float32).mean(1) for b in np.array_split(self._mel, 64)])
        rows = [level[a:b] for a, b in zip(self._row[:-1], self._row[1:], strict=True)]
        return np.array([row.max() - np.quantile(row, 0.05) for row in rows])

    def clip(self, k: int, silence: int, rng: np.random.Generator | None = None) -> Clip:
        """Row k; with a generator, varied anew (`silence`: id of the phone "_", to find the end of speech)."""
        mel = self._mel[self._row[k] : self._row[k + 1]].astype(np.float32)
        phones = self._phone[self._phone_row[k] : self._phone_row[k + 1]]
        heard = np.flatnonzero(phones != silence)
        end = (heard[-1] + 1) * 40.0 if len(heard) else len(mel) * 20.0
        ms = np.r_[self._word_ms[self._word_row[k] : self._word_row[k + 1]], end]
        if rng is not None:
            mel, old = vary(mel, rng)
            ms = np.interp(ms, old * 20, np.arange(len(old)) * 20.0)
            at = (old[::2] / 2).astype(np.int64)
            phones = phones[np.minimum(at, len(phones) - 1)]
        return Clip(mel, phones, ms / 80)


def collate(clips: list[Clip]) -> tuple[Tensor, Tensor, Tensor]:
    """-> mel (batch, 80, time), frames (batch,), phones (batch, time / 2) with -100 as padding."""
    frames = np.array([len(c.mel) for c in clips])
    length = min(-(-(frames.max() + 2) // 4) * 4, 600)
    mel = np.empty((len(clips), BANDS, length), np.float32)
    phones = np.full((len(clips), length // 2), -100, np.int64)
    for i, c in enumerate(clips):
        # silence after the clip: what the feature extractor's padding looks like
        mel[i, :, : len(c.mel)], mel[i, :, len(c.mel) :] = c.mel.T, c.mel.max() - 2
        phones[i, : len(c.phones)] = c.phones[: length // 2]
    return torch.from_numpy(mel), torch.from_numpy(frames), torch.from_numpy(phones)


def place(clip: Clip, words: list[list[int]]) -> list[int]:
    """The audio vector of every word piece: pieces spread evenly over their word, one vector each."""
    count, last, out = int(audio_vectors(len(clip.mel))), -1, []
    for pieces, start, end in zip(words, clip.starts[:-1], clip.starts[1:], strict=True):
        for j in range(len(pieces)):
            last = max(last + 1, int(start + (j + 0.5) * (end - start) / len(pieces)))
            out.append(last)
    return [p if p < count else -1 for p in out]


def frame_targets(clip: Clip, words: list[list[int]], blank: int) -> list[int]:
    """For every audio vector the word piece it carries, or blank."""
    out = [blank] * int(audio_vectors(len(clip.mel)))
    for piece, position in zip((p for w in words for p in w), place(clip, words), strict=True):
        if position >= 0:
            out[position] = piece
    return out


def interleave(clip: Clip, words: list[list[int]], written: list[bool], audio: int):
    """Speech with some words written out -> ids, kept audio vectors, (piece number, position in ids) pairs."""
    count = int(audio_vectors(len(clip.mel)))
    at = place(clip, words)
    bounds = [0, *(round(float(s)) for s in clip.starts[1:-1]), count]
    bounds = np.minimum(np.maximum.accumulate(bounds), count).tolist()
    ids, kept, pairs, where, piece = [], [], [], {}, 0
    spoken_pieces = []
    for i, pieces in enumerate(words):
        numbers = range(piece, piece + len(pieces))
        piece += len(pieces)
        if written[i]:
            pairs += [(number, len(ids) + j) for j, number in enumerate(numbers)]
            ids += pieces
        else:
            where.update({f: len(ids) + f - bounds[i] for f in range(bounds[i], bounds[i + 1])})
            kept += range(bounds[i], bounds[i + 1])
            ids += [audio] * (bounds[i + 1] - bounds[i])
            spoken_pieces += numbers
    return ids, kept, pairs + [(n, where[at[n]]) for n in spoken_pieces if at[n] in where]
