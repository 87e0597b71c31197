"""Granite Speech (arXiv 2505.08699): a conformer over blocks, a Q-Former per window of 15 steps, Granite.

Logits are divided by `logits_scaling` as the language model's own class does; the stock speech class of transformers
leaves that out, so its loss is another one (its greedy answers are the same). Dropout and batch norm of encoder and
projector stay as in inference also in training: otherwise a step would depend on how it is cut into micro-batches.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import GraniteSpeechForConditionalGeneration
from transformers.audio_utils import mel_filter_bank

from trainer.adapter import Parts
from trainer.example import Heard
from trainer.families.family import Family
from trainer.formats import granite_speech
from trainer.formats.prompt import feature_extractor


class GraniteSpeech(Family):
    """The stock encoder lets the last block of a recording see what it is padded with, so each is encoded alone."""

    parts = Parts(
        encoder="model.encoder",
        projector="model.projector",
        lm="language_model",
        lm_targets=granite_speech.TARGETS,
        encoder_targets=("to_q", "to_kv", "to_out", "up_proj", "down_proj"),
    )

    @classmethod
    def read(cls, folder: Path, **options) -> Any:
        return GraniteSpeechForConditionalGeneration.from_pretrained(folder, **options)

    def prepare(self) -> None:
        self.settings = feature_extractor(self.folder)
        bins, rate = self.settings["n_fft"] // 2 + 1, self.settings["sampling_rate"]
        filters = mel_filter_bank(bins, self.settings["n_mels"], 0.0, rate / 2, rate, norm=None, mel_scale="htk")
        self.filters = torch.from_numpy(filters).float()
        self.window = torch.hann_window(self.settings["win_length"])

    def recipe(self) -> str:
        return str(sorted(self.settings.items()))

    @property
    def audio_tower(self) -> Any:
        return self.stock.model.encoder

    @property
    def projector(self) -> Any:
        return self.stock.model.projector

    def still(self) -> list[nn.Module]:
        return [self.audio_tower, self.projector]

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        return super().logits(states) / self.stock.config.text_config.logits_scaling

    def frames(self, wave: np.ndarray) -> list[np.ndarray]:
        """Mel frames (steps, 2 · bins): the stock extractor without torchaudio."""
        transformed = torch.stft(
            torch.from_numpy(wave), self.settings["n_fft"], self.settings["hop_length"], self.settings["win_length"],
            self.window, return_complex=True,
        )  # fmt: skip
        mel = (transformed.abs().square().T @ self.filters).clip(min=1e-10).log10()
        mel = torch.maximum(mel, mel.max() - 8.0) / 4 + 1
        return [mel[: len(mel) // 2 * 2].reshape(len(mel) // 2, -1).numpy()]

    def states_of(self, heard: Sequence[Heard]) -> list[torch.Tensor]:
        tower = self.audio_tower
        mels = [torch.from_numpy(h.frames[0]).to(self.device, tower.input_linear.weight.dtype) for h in heard]
        with self.autocast():
            return [tower(m[None]).last_hidden_state[0] for m in mels]

    def project(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """Each recording is filled up to whole windows, which the Q-Former reads one by one."""
        whole = [F.pad(s, (0, 0, 0, -len(s) % self.projector.window_size)) for s in states]
        return self.projector(torch.cat(whole)[None].to(self.projector.linear.weight.dtype))[0]
