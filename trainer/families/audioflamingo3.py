"""Audio Flamingo 3 (arXiv 2507.08128): a Whisper-style encoder per 30-s window, pooling by two, two layers, Qwen2."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AudioFlamingo3ForConditionalGeneration

from trainer.adapter import Parts
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

    def encode(self, waves: Sequence[np.ndarray]) -> list[torch.Tensor]:
        assert isinstance(self.shape, audioflamingo3.Shape)
        cut, size = [self.shape.chunks(len(w)) for w in waves], self.shape.chunk_samples
        states = self.trimmed([w[n * size :][:m] for w, c in zip(waves, cut, strict=True) for n, m in enumerate(c)])
        return list(torch.cat(states).split([self.shape.audio_tokens(len(w)) for w in waves]))
