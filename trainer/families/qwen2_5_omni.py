"""Qwen2.5-Omni's thinker (arXiv 2503.20215): a Whisper-style encoder over chunks of 2 s, pooling by two, Qwen2.

Talker and picture encoder are not loaded. An adapter has the stock PEFT layout of the thinker, so the whole model is
put together again by `PeftModel.from_pretrained(omni.thinker, adapter_folder)`; what `method: full` writes goes into
`omni.thinker` by `load_state_dict(…, strict=False)`. Tested.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen2_5OmniThinkerForConditionalGeneration

from trainer.adapter import Parts
from trainer.example import Heard
from trainer.families.attention import Chunks
from trainer.families.whisper import ENCODER_TARGETS, WhisperFamily
from trainer.formats import qwen2_5_omni

LAYERS = r"model\.(?:language_model\.)?layers"
"""The language model's layers, in either layout of `Thinker`."""


class Thinker(WhisperFamily):
    """What the thinkers of Qwen's Omni models have in common: where their parts are. Earlier transformers 5 keep the
    parts beside the language model instead of around it."""

    @property
    def inner(self) -> Any:
        """The module that holds the parts."""
        return self.stock.model if hasattr(self.stock.model, "audio_tower") else self.stock

    @property
    def language_model(self) -> Any:
        return self.stock.model if self.inner is self.stock else self.inner.language_model

    @property
    def audio_tower(self) -> Any:
        return self.inner.audio_tower


def blind(stock: Any) -> Any:
    """The thinker without its picture encoder."""
    inner = stock.model if hasattr(stock.model, "visual") else stock
    inner.visual = None
    return stock


class Qwen25Omni(Thinker):
    """Its own encoder runs as it is, all recordings at once."""

    parts = Parts(
        encoder="audio_tower",
        projector=r"audio_tower\.proj",
        lm=LAYERS,
        lm_targets=qwen2_5_omni.TARGETS,
        encoder_targets=ENCODER_TARGETS,
    )

    @classmethod
    def read(cls, folder: Path, **options) -> Any:
        return blind(Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(folder, **options))

    @property
    def projector(self) -> Any:
        return self.audio_tower.proj

    def frames(self, wave: np.ndarray) -> list[np.ndarray]:
        """Those that hold signal: behind a recording's last chunk the encoder sees zeros, not frames of silence."""
        return [self.log_mel(wave)[:, : self.shape.mel_frames(len(wave))]]

    def states_of(self, heard: Sequence[Heard]) -> list[torch.Tensor]:
        """The stock encoder up to its projector."""
        tower, shape = self.audio_tower, self.shape
        frames = [shape.mel_frames(h.samples) for h in heard]
        x = torch.from_numpy(np.concatenate([h.frames[0] for h in heard], 1)).to(self.device, tower.conv1.weight.dtype)
        window = 2 * tower.n_window
        steps = [(min(window, n - start) - 1) // 2 + 1 for n in frames for start in range(0, n, window)]
        states: list[torch.Tensor] = []
        hook = tower.ln_post.register_forward_hook(lambda module, inputs, output: states.append(output))
        try:
            with self.autocast():
                tower(
                    x, feature_lens=torch.tensor(frames, device=self.device), layout=Chunks(steps, self.device),
                    cu_seqlens=torch.tensor([0, sum(steps)], device=self.device),
                )  # fmt: skip
        finally:
            hook.remove()
        return list(states[0].split([shape.audio_tokens(h.samples) for h in heard]))
