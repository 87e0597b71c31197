"""Audio Flamingo 3 (arXiv 2507.08128): a Whisper-style encoder per 30-s window, pooling by two, two layers, Qwen2."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AudioFlamingo3ForConditionalGeneration

from trainer.adapter import Parts
from trainer.example import Heard
from trainer.families.whisper import ENCODER_TARGETS, WhisperFamily
from trainer.formats import audioflamingo3


class AudioFlamingo3(WhisperFamily):
    """The encoder sees L + 2 mel frames of the last window; no window sees another."""

    parts = Parts(
        encoder="audio_tower",
        projector="multi_modal_projector",
        lm="language_model",
        lm_targets=audioflamingo3.TARGETS,
        encoder_targets=ENCODER_TARGETS,
    )

    @classmethod
    def read(cls, folder: Path, **options) -> Any:
        return AudioFlamingo3ForConditionalGeneration.from_pretrained(folder, **options)

    def frames(self, wave: np.ndarray) -> list[np.ndarray]:
        """Of each window."""
        assert isinstance(self.shape, audioflamingo3.Shape)
        size = self.shape.chunk_samples
        return [self.log_mel(wave[n * size :][:m]) for n, m in enumerate(self.shape.chunks(len(wave)))]

    def states_of(self, heard: Sequence[Heard]) -> list[torch.Tensor]:
        assert isinstance(self.shape, audioflamingo3.Shape)
        windows = [n for h in heard for n in self.shape.chunks(h.samples)]
        states = self.trimmed([mel for h in heard for mel in h.frames], windows)
        return list(torch.cat(states).split([self.shape.audio_tokens(h.samples) for h in heard]))
