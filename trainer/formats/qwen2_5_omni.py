"""Qwen2.5-Omni: chat template of Qwen/Qwen2.5-Omni-7B, with its default system turn.

The base is the whole model's folder or its thinker's alone.
"""

from pathlib import Path
from typing import Any

from trainer.formats.prompt import Prompt, feature_extractor
from trainer.formats.qwen2_audio import Shape

PROMPT = Prompt(
    before="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
    audio_before="<|audio_bos|>",
    audio_token="<|AUDIO|>",
    audio_after="<|audio_eos|>",
    after="<|im_end|>\n<|im_start|>assistant\n",
    end="<|im_end|>",
    order="audio_first",
)
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
STOPS = ("<|endoftext|>",)


def prompt(folder: Path) -> Prompt:
    return PROMPT


def shape(folder: Path) -> Shape:
    """Counts as Qwen2-Audio's; the published window is 300 s, for the encoder hears chunks of 2 s."""
    config = feature_extractor(folder)
    rate = int(config.get("sampling_rate", 16000))
    return Shape(rate, int(config.get("chunk_length", 300)) * rate, int(config["hop_length"]))


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of config.json."""
    return config.get("thinker_config", config).get("text_config", {})
