"""Qwen3-Omni: chat template of Qwen/Qwen3-Omni-30B-A3B-Instruct, which has no default system turn.

The base is the whole model's folder or its thinker's alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.bases import read_json
from trainer.formats.prompt import Prompt, WhisperShape, feature_extractor

PROMPT = Prompt(
    before="<|im_start|>user\n",
    audio_before="<|audio_start|>",
    audio_token="<|audio_pad|>",
    audio_after="<|audio_end|>",
    after="<|im_end|>\n<|im_start|>assistant\n",
    end="<|im_end|>",
    order="audio_first",
)
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
"""Attention alone: the experts of a block are one fused parameter, not linear layers."""
STOPS = ("<|endoftext|>",)
LONGEST_S = 40 * 60
"""The longest recording that the published models are meant for."""


@dataclass(frozen=True, slots=True)
class Shape(WhisperShape):
    """Chunks of frames, each through three strides of two."""

    chunk_frames: int
    """Mel frames of one chunk."""
    transform: int
    """Samples of a frame's transform, of which a recording must hold more than half."""

    def mel_frames(self, num_samples: int) -> int:
        """Mel frames: whole hops, for the extractor fills nothing up."""
        return num_samples // self.hop_length if num_samples > self.transform // 2 else 0

    def steps(self, frames: int) -> int:
        """Vectors of a chunk."""
        for _ in range(3):
            frames = (frames + 1) // 2
        return frames

    def audio_tokens(self, num_samples: int) -> int:
        chunks, rest = divmod(self.mel_frames(num_samples), self.chunk_frames)
        return chunks * self.steps(self.chunk_frames) + self.steps(rest)


def prompt(folder: Path) -> Prompt:
    return PROMPT


def shape(folder: Path) -> Shape:
    config, whole = feature_extractor(folder), read_json(folder / "config.json")
    audio = whole.get("thinker_config", whole).get("audio_config", {})
    rate, hop = int(config.get("sampling_rate", 16000)), int(config["hop_length"])
    return Shape(rate, LONGEST_S * rate, hop, 2 * int(audio.get("n_window", 50)), int(config.get("n_fft", 400)))


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of config.json."""
    return config.get("thinker_config", config).get("text_config", {})
