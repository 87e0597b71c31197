"""Phi-4-Multimodal (arXiv 2503.01743): a conformer over whole recordings, two layers, Phi-4-mini.

Everything for pictures is not loaded. The encoder stays as in inference also in training: its stock class draws its
attention mask from numpy's random state there.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import Phi4MultimodalFeatureExtractor, Phi4MultimodalForCausalLM

from trainer.adapter import Parts
from trainer.example import Heard
from trainer.families.family import Family
from trainer.formats import phi4_multimodal


class Phi4Multimodal(Family):
    """The stock encoder does not keep what recordings are padded with out of its attention, so each is encoded
    alone."""

    parts = Parts(
        encoder="audio_embed.encoder",
        projector=r"audio_embed\.(?:up|down)_proj_for_speech",
        lm="model.layers",
        lm_targets=phi4_multimodal.TARGETS,
        encoder_targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"),
    )

    @classmethod
    def read(cls, folder: Path, **options) -> Any:
        stock: Any = Phi4MultimodalForCausalLM.from_pretrained(folder, **options)
        inputs = stock.model.embed_tokens_extend
        inputs.image_embed = None
        inputs.audio_embed.up_proj_for_vision_speech = inputs.audio_embed.down_proj_for_vision_speech = None
        return stock

    def prepare(self) -> None:
        self.extractor: Any = Phi4MultimodalFeatureExtractor.from_dict(phi4_multimodal.settings(self.folder))

    def recipe(self) -> str:
        return str(sorted(phi4_multimodal.settings(self.folder).items()))

    @property
    def language_model(self) -> Any:
        return self.stock.model

    @property
    def audio_tower(self) -> Any:
        return self.stock.model.embed_tokens_extend.audio_embed.encoder

    @property
    def projector(self) -> Any:
        inputs = self.stock.model.embed_tokens_extend.audio_embed
        return nn.Sequential(inputs.up_proj_for_speech, nn.GELU(), inputs.down_proj_for_speech)

    def still(self) -> list[nn.Module]:
        return [self.audio_tower]

    def frames(self, wave: np.ndarray) -> list[np.ndarray]:
        made = self.extractor(wave, sampling_rate=self.tokens.shape.sampling_rate)
        return [made["audio_input_features"].numpy()]

    def states_of(self, heard: Sequence[Heard]) -> list[torch.Tensor]:
        dtype = self.audio_tower.embed.out.weight.dtype
        made = [torch.from_numpy(h.frames[0]).to(self.device, dtype) for h in heard]
        with self.autocast():
            return [self.audio_tower(m, None)[0] for m in made]
