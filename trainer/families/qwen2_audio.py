"""Qwen2-Audio (arXiv 2407.10759): a Whisper-style encoder, average pooling by two, a linear projector, Qwen2."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2AudioForConditionalGeneration

from trainer.adapter import Parts
from trainer.example import Heard
from trainer.families.whisper import ENCODER_TARGETS, WhisperFamily
from trainer.formats import qwen2_audio


class Qwen2Audio(WhisperFamily):
    """The encoder sees L + 2 mel frames instead of 30 s."""

    parts = Parts(
        encoder="audio_tower",
        projector="multi_modal_projector",
        lm="language_model",
        lm_targets=qwen2_audio.TARGETS,
        encoder_targets=ENCODER_TARGETS,
    )

    @classmethod
    def read(cls, folder: Path, **options) -> Any:
        return Qwen2AudioForConditionalGeneration.from_pretrained(folder, **options)

    def states_of(self, heard: Sequence[Heard]) -> list[torch.Tensor]:
        return self.trimmed([h.frames[0] for h in heard], [h.samples for h in heard])
