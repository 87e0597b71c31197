"""Voxtral (arXiv 2507.13264): a Whisper encoder over windows of 30 s, four steps to a vector, a projector, Llama."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import VoxtralForConditionalGeneration

from trainer.adapter import Parts
from trainer.example import Heard
from trainer.families.whisper import ENCODER_TARGETS, WhisperFamily
from trainer.formats import voxtral


class Voxtral(WhisperFamily):
    """Whole windows, as published, unless the job says `encoder_window: trimmed`: then a recording's last window ends
    with the vector in which its signal ends."""

    parts = Parts(
        encoder="audio_tower",
        projector="multi_modal_projector",
        lm="language_model",
        lm_targets=voxtral.TARGETS,
        encoder_targets=ENCODER_TARGETS,
    )

    @classmethod
    def read(cls, folder: Path, **options) -> Any:
        return VoxtralForConditionalGeneration.from_pretrained(folder, **options)

    def recipe(self) -> str:
        return f"{self.mel.recipe()} {self.shape}"

    def frames(self, wave: np.ndarray) -> list[np.ndarray]:
        """Of each window."""
        assert isinstance(self.shape, voxtral.Shape)
        whole = self.mel.filled(wave) if self.execution.trimming else self.mel.whole(wave)
        size = self.shape.chunk_frames
        return [whole[:, n * size :][:, :length] for n, length in enumerate(self.shape.chunks(len(wave)))]

    def states_of(self, heard: Sequence[Heard]) -> list[torch.Tensor]:
        """Steps of a vector side by side: (vectors, 4 · width)."""
        assert isinstance(self.shape, voxtral.Shape)
        mels = [mel for h in heard for mel in h.frames]
        steps = [m.shape[1] // 2 for m in mels]
        with self.autocast():
            h = self.audio_tower.layer_norm(self.blocks(mels, steps))
        side = self.shape.vector_frames // 2
        rows = [states[:n].reshape(n // side, -1) for states, n in zip(h, steps, strict=True)]
        vectors = [sum(self.shape.chunks(h.samples)) // self.shape.vector_frames for h in heard]
        return list(torch.cat(rows).split(vectors))
