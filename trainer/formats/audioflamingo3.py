"""Audio Flamingo 3: chat template of nvidia/audio-flamingo-3-hf, with its default system turn.

The template puts the recording first whatever the order of the content.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.bases import read_json
from trainer.formats import qwen2_audio
from trainer.formats.prompt import Prompt, feature_extractor

PROMPT = Prompt(
    before="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
    audio_before="",
    audio_token="<sound>",
    audio_after="",
    after="<|im_end|>\n<|im_start|>assistant\n",
    end="<|im_end|>",
    order="audio_first",
)
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
STOPS = ("<|endoftext|>",)


@dataclass(frozen=True, slots=True)
class Shape(qwen2_audio.Shape):
    """Windows of 30 s, each heard by itself as Qwen2-Audio hears a recording."""

    chunk_samples: int
    """Samples of one window."""

    def padded(self, num_samples: int) -> int:
        return self.chunk_samples

    def chunks(self, num_samples: int) -> list[int]:
        """Samples of each window that gives a vector."""
        cut = range(0, num_samples, self.chunk_samples)
        sizes = [min(self.chunk_samples, num_samples - start) for start in cut]
        return [n for n in sizes if qwen2_audio.Shape.audio_tokens(self, n)]

    def audio_tokens(self, num_samples: int) -> int:
        return sum(qwen2_audio.Shape.audio_tokens(self, n) for n in self.chunks(num_samples))


def prompt(folder: Path) -> Prompt:
    return PROMPT


def shape(folder: Path) -> Shape:
    config = feature_extractor(folder)
    rate = int(config.get("sampling_rate", 16000))
    processor = folder / "processor_config.json"
    longest = int(read_json(processor).get("max_audio_len", 600)) if processor.exists() else 600
    return Shape(rate, longest * rate, int(config["hop_length"]), int(config.get("chunk_length", 30)) * rate)


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of config.json."""
    return config.get("text_config", {})
