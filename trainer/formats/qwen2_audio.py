"""Qwen2-Audio: chat template of Qwen/Qwen2-Audio-7B-Instruct, with its default system turn."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.formats.prompt import Prompt, WhisperShape, feature_extractor

PROMPT = Prompt(
    before="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
    audio_before="Audio 1: <|audio_bos|>",
    audio_token="<|AUDIO|>",
    audio_after="<|audio_eos|>\n",
    after="<|im_end|>\n<|im_start|>assistant\n",
    end="<|im_end|>",
    order="audio_first",
)
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
STOPS = ("<|endoftext|>",)
"""The stock class stops at this or at the prompt's end (its generation_config.json)."""


@dataclass(frozen=True, slots=True)
class Shape(WhisperShape):
    """The two strides of the encoder: a convolution of stride 2, then average pooling by two."""

    def audio_tokens(self, num_samples: int) -> int:
        return ((self.mel_frames(num_samples) - 1) // 2 + 1) // 2


def prompt(folder: Path) -> Prompt:
    return PROMPT


def shape(folder: Path) -> Shape:
    config = feature_extractor(folder)
    rate = int(config.get("sampling_rate", 16000))
    return Shape(rate, int(config.get("chunk_length", 30)) * rate, int(config["hop_length"]))


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of config.json."""
    return config.get("text_config", {})
