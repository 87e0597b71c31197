"""What families with Whisper's front end share: mel frames, and a Whisper-style encoder over as many as are asked for.

The encoder's stock forward takes 30 s of frames and nothing else; here it sees the frames that decide its output,
equal in value, tested. `execution.trimming: false` gives it all of them.
"""

from abc import ABC
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from trainer.families.family import Family
from trainer.features import Mel
from trainer.formats.prompt import WhisperShape

ENCODER_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
"""Linear layers of a Whisper encoder's block."""


class WhisperFamily(Family, ABC):
    """Through the stock classes of transformers."""

    def prepare(self) -> None:
        assert isinstance(self.tokens.shape, WhisperShape)
        self.shape = self.tokens.shape
        self.mel = Mel(self.folder, self.shape)

    def recipe(self) -> str:
        return self.mel.recipe()

    def log_mel(self, wave: np.ndarray) -> np.ndarray:
        """Mel frames that decide the encoder's output, or all of its window, (bins, frames)."""
        return self.mel(wave) if self.execution.trimming else self.mel.whole(wave)

    def frames(self, wave: np.ndarray) -> list[np.ndarray]:
        return [self.log_mel(wave)]

    def blocks(self, mels: Sequence[np.ndarray], steps: Sequence[int]) -> torch.Tensor:
        """`blocks` of this encoder, from frames (bins, frames) per recording."""
        x = padded([torch.from_numpy(m) for m in mels]).to(self.device, self.audio_tower.conv1.weight.dtype)
        return blocks(self.audio_tower, x, steps, whole=not self.execution.trimming)

    def trimmed(self, mels: Sequence[np.ndarray], samples: Sequence[int]) -> list[torch.Tensor]:
        """States of an encoder that masks what is behind the signal, pools by two and norms, from the frames of
        recordings of so many samples: (vectors, width) per recording."""
        tower = self.audio_tower
        steps = [(self.shape.mel_frames(n) - 1) // 2 + 1 for n in samples]
        with self.autocast():
            h = self.blocks(mels, steps)
            h = tower.layer_norm(tower.avg_pooler(h.permute(0, 2, 1)).permute(0, 2, 1))
        return [states[: n // 2] for states, n in zip(h, steps, strict=True)]


def blocks(tower: Any, mels: torch.Tensor, steps: Sequence[int], *, whole: bool = False) -> torch.Tensor:
    """Convolutions and blocks of a Whisper encoder: mels (recordings, bins, frames), anything from the third frame
    behind a recording's signal → (recordings, most steps, width). A recording's first `steps` (two frames each) see
    each other and nothing behind them; a recording alone, or among others of its length, needs no mask. `whole`: what
    is behind is computed too, and dropped by who asks."""
    h = F.gelu(tower.conv2(F.gelu(tower.conv1(mels)))).permute(0, 2, 1)
    most = h.shape[1] if whole else max(steps)
    h = h[:, :most] + tower.embed_positions.weight[:most].to(h.dtype)
    mask = None
    if min(steps) < most:
        seen = torch.arange(most, device=h.device) < torch.tensor(steps, device=h.device)[:, None]
        mask = seen[:, None, None, :].expand(-1, 1, most, -1)
    for layer in tower.layers:
        h = layer(h, mask)
        h = h[0] if isinstance(h, tuple) else h  # a tuple in earlier transformers 5
    return h


def padded(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """One tensor of rows that differ in their last dimension, zeros behind the shorter ones."""
    longest = max(row.shape[-1] for row in rows)
    return torch.stack([F.pad(row, (0, longest - row.shape[-1])) for row in rows])
