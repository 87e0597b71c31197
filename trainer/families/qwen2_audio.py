"""Qwen2-Audio (arXiv 2407.10759): a Whisper-style encoder, average pooling by two, a linear projector, Qwen2.

The encoder sees L + 2 mel frames instead of 30 s, which its stock forward refuses; equal in value, tested.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import Qwen2AudioForConditionalGeneration

from trainer.adapter import Parts
from trainer.families.family import Family
from trainer.features import Mel
from trainer.formats import qwen2_audio
from trainer.formats.prompt import WhisperShape


class Qwen2Audio(Family):
    """Through the stock classes of transformers."""

    parts = Parts(
        encoder="audio_tower",
        projector="multi_modal_projector",
        lm="language_model",
        lm_targets=qwen2_audio.TARGETS,
        encoder_targets=("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    )

    @classmethod
    def read(cls, folder: Path, **options) -> Any:
        return Qwen2AudioForConditionalGeneration.from_pretrained(folder, **options)

    def prepare(self) -> None:
        assert isinstance(self.tokens.shape, WhisperShape)
        self.shape = self.tokens.shape
        self.mel = Mel(self.folder, self.shape)

    def recipe(self) -> str:
        return self.mel.recipe()

    def encode(self, waves: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """Encoder states of recordings (samples,) at the family's rate → (vectors, width) per recording.

        Keys behind the last frame of a recording are masked; a recording alone needs no mask.
        """
        tower = self.audio_tower
        mels = [self.mel(w) for w in waves]
        padded = np.zeros((len(mels), mels[0].shape[0], max(m.shape[1] for m in mels)), np.float32)
        for row, frames in zip(padded, mels, strict=True):
            row[:, : frames.shape[1]] = frames
        x = torch.from_numpy(padded).to(self.device, tower.conv1.weight.dtype)
        signal = [self.shape.mel_frames(len(w)) for w in waves]
        steps = torch.tensor([(n - 1) // 2 + 1 for n in signal], device=self.device)
        with self.autocast():
            h = F.gelu(tower.conv2(F.gelu(tower.conv1(x)))).permute(0, 2, 1)[:, : int(steps.max())]
            h = h + tower.embed_positions.weight[: h.shape[1]].to(h.dtype)
            mask = self._key_mask(steps, h) if len(mels) > 1 else None
            for layer in tower.layers:
                h = layer(h, mask)
                h = h[0] if isinstance(h, tuple) else h  # a tuple in earlier transformers 5
            h = tower.layer_norm(tower.avg_pooler(h.permute(0, 2, 1)).permute(0, 2, 1))
        return [states[: int(n) // 2] for states, n in zip(h, steps, strict=True)]

    def _key_mask(self, steps: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """(batch, 1, queries, keys): True where a key is signal."""
        keep = (torch.arange(h.shape[1], device=h.device) < steps[:, None])[:, None, None, :]
        return keep.expand(-1, 1, h.shape[1], -1)

    def project(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        return self.projector(torch.cat(list(states)).to(next(self.projector.parameters()).dtype))
