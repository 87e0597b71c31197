"""The composed family (`trainer.formats.composed`) to the loop and the evaluation."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import EncodecFeatureExtractor, Wav2Vec2FeatureExtractor

from trainer.adapter import Parts
from trainer.example import Heard
from trainer.families.composed.encoders import KINDS
from trainer.families.composed.model import ComposedForConditionalGeneration
from trainer.families.family import Family
from trainer.families.whisper import padded
from trainer.features import Mel
from trainer.formats.composed import Shape, WhisperFrames

WAVE = {"Wav2Vec2FeatureExtractor": Wav2Vec2FeatureExtractor, "EncodecFeatureExtractor": EncodecFeatureExtractor}
"""Feature extractors that give a wave again."""


class Composed(Family):
    """Encoder(s), projector and language model of any supported kinds; `parts` are those of the base at hand."""

    @classmethod
    def read(cls, folder: Path, **options) -> Any:
        return ComposedForConditionalGeneration.from_pretrained(folder, use_safetensors=True, **options)

    def prepare(self) -> None:
        shape = self.tokens.shape
        assert isinstance(shape, Shape)
        settings = self.stock.config.extractors
        self._extractors = [_extractor(*pair) for pair in zip(settings, shape.encoders, strict=True)]
        encoders = enumerate(self.audio_tower.encoders)
        self.parts = Parts(  # type: ignore[misc]
            encoder="audio_tower",
            projector="multi_modal_projector",
            lm="language_model",
            lm_targets=_linear(self.language_model.layers),
            encoder_targets=tuple(
                rf"encoders\.{n}\..*\b{layer}" for n, e in encoders for layer in KINDS[e.config.model_type].targets
            ),
        )

    @property
    def language_model(self) -> Any:
        return self.stock.language_model.get_decoder()

    @property
    def lm_head(self) -> Any:
        return self.stock.language_model.get_output_embeddings()

    @property
    def audio_tower(self) -> Any:
        return self.stock.audio_tower

    @property
    def projector(self) -> Any:
        return self.stock.multi_modal_projector

    def recipe(self) -> str:
        return json.dumps(self.stock.config.extractors, sort_keys=True)

    def frames(self, wave: np.ndarray) -> list[np.ndarray]:
        """Of each encoder: mel frames, or a wave again."""
        whole = not self.execution.trimming
        return [e.whole(wave) if whole and isinstance(e, Mel) else e(wave) for e in self._extractors]

    def features(self, heard: Sequence[Heard]) -> list[torch.Tensor]:
        """What each encoder gets of recordings, padded by zeros: (recordings, …, time) per encoder."""
        encoders = zip(*(h.frames for h in heard), strict=True)
        return [padded([torch.from_numpy(x) for x in one]).to(self.device) for one in encoders]

    def states_of(self, heard: Sequence[Heard]) -> list[torch.Tensor]:
        with self.autocast():
            samples = [h.samples for h in heard]
            return self.audio_tower(self.features(heard), samples, whole=not self.execution.trimming)

    def project(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        dtype = next(self.projector.parameters()).dtype
        return self.projector([s.to(dtype) for s in states])


def _extractor(settings: dict[str, Any], shape):
    """A function from a wave (samples,) to what the encoder gets."""
    if isinstance(shape, WhisperFrames):
        return Mel(settings, shape)
    made: Any = WAVE[settings["feature_extractor_type"]].from_dict(settings)

    def read(wave: np.ndarray) -> np.ndarray:
        return made(wave, sampling_rate=shape.sampling_rate, return_tensors="np")["input_values"].reshape(-1)

    return read


def _linear(layers: nn.Module) -> tuple[str, ...]:
    """Names of all linear layers below."""
    return tuple(sorted({name.split(".")[-1] for name, m in layers.named_modules() if isinstance(m, nn.Linear)}))
