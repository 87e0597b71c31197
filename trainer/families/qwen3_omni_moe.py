"""Qwen3-Omni's thinker (arXiv 2509.17765): an encoder over windows of 8 s, two layers, a Qwen3 with experts.

Talker and picture encoder are not loaded; adapters go back into the whole model as those of Qwen2.5-Omni do. LoRA's
default targets are the attention alone, and the router's load-balancing loss is no part of the training loss.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen3OmniMoeThinkerForConditionalGeneration

from trainer.adapter import Parts
from trainer.example import Heard
from trainer.families.attention import Chunks
from trainer.families.qwen2_5_omni import LAYERS, Thinker, blind
from trainer.families.whisper import ENCODER_TARGETS
from trainer.formats import qwen3_omni_moe


class Qwen3Omni(Thinker):
    """The stock encoder's result for a chunk depends on the longest chunk beside it, and its mel on the longest
    recording: here both are what the stock classes give a recording alone."""

    parts = Parts(
        encoder="audio_tower",
        projector=r"audio_tower\.proj[12]",
        lm=LAYERS,
        lm_targets=qwen3_omni_moe.TARGETS,
        encoder_targets=ENCODER_TARGETS,
        listed=True,
    )

    @classmethod
    def read(cls, folder: Path, **options) -> Any:
        if options["dtype"] == torch.float64:  # the grouped product knows fp32, bf16 and fp16
            options["experts_implementation"] = "eager"
        return blind(Qwen3OmniMoeThinkerForConditionalGeneration.from_pretrained(folder, **options))

    @property
    def projector(self) -> Any:
        return nn.Sequential(self.audio_tower.proj1, self.audio_tower.act, self.audio_tower.proj2)

    def frames(self, wave: np.ndarray) -> list[np.ndarray]:
        rate = self.shape.sampling_rate
        made = self.mel.extractor(wave, sampling_rate=rate, padding="longest", truncation=False, return_tensors="np")
        return [made["input_features"][0].T]

    def states_of(self, heard: Sequence[Heard]) -> list[torch.Tensor]:
        """Convolutions per recording, blocks for all of them."""
        tower = self.audio_tower
        with self.autocast():
            rows, windows = [], []
            for h in heard:
                states, longest = self._convolved(h.frames[0])
                size = longest * (tower.n_window_infer // (2 * tower.n_window))
                windows += [min(size, len(states) - start) for start in range(0, len(states), size)]
                rows.append(states)
            x, layout = torch.cat(rows), Chunks(windows, self.device)
            whole = torch.tensor([0, len(x)], device=self.device)
            for layer in tower.layers:
                x = layer(x, whole, layout=layout)[0]
            return list(tower.ln_post(x).split([len(states) for states in rows]))

    def _convolved(self, frames: np.ndarray) -> tuple[torch.Tensor, int]:
        """(steps, width) of a recording's frames (frames, bins), and the steps of its longest chunk."""
        tower, shape = self.audio_tower, self.shape
        assert isinstance(shape, qwen3_omni_moe.Shape)
        chunks = torch.from_numpy(frames).to(self.device, tower.conv2d1.weight.dtype).split(shape.chunk_frames)
        h = pad_sequence(list(chunks), batch_first=True).transpose(1, 2)[:, None]
        for convolution in (tower.conv2d1, tower.conv2d2, tower.conv2d3):
            h = F.gelu(convolution(h))
        h = tower.conv_out(h.permute(0, 3, 1, 2).flatten(2))
        h = h + tower.positional_embedding.positional_embedding[: h.shape[1]].to(h.dtype)
        return torch.cat([row[: shape.steps(len(c))] for row, c in zip(h, chunks, strict=True)]), h.shape[1]
