"""Voxtral: the instruct turn of mistral-common's tekken v7 for mistralai/Voxtral-Mini-3B-2507 and -Small-24B-2507.

The encoder hears whole windows of 30 s: silence behind the signal is attended and gives vectors of its own, so leaving
it out (`encoder_window: trimmed`) is another input for the language model, and only done where the job says so.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.bases import read_json
from trainer.formats.prompt import Prompt, WhisperShape, feature_extractor

PROMPT = Prompt(
    before="<s>[INST]",
    audio_before="[BEGIN_AUDIO]",
    audio_token="[AUDIO]",
    audio_after="",
    after="[/INST]",
    end="</s>",
    order="audio_first",
)
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
STOPS = ()
LONGEST_S = 40 * 60
"""The longest recording that the published models are meant for."""


@dataclass(frozen=True, slots=True)
class Shape(WhisperShape):
    """Windows end to end, several steps of the encoder to a vector."""

    chunk_frames: int
    """Mel frames of one window."""
    vector_frames: int
    """Mel frames that become one vector."""
    trimmed: bool = False
    """Whether the last window ends with its signal."""

    def padded(self, num_samples: int) -> int:
        chunk = self.chunk_frames * self.hop_length
        return max(1, -(-num_samples // chunk)) * chunk

    def chunks(self, num_samples: int) -> list[int]:
        """Mel frames of each window that the encoder hears."""
        full = self.padded(num_samples) // self.hop_length
        heard = -(-self.mel_frames(num_samples) // self.vector_frames) * self.vector_frames if self.trimmed else full
        return [min(self.chunk_frames, heard - start) for start in range(0, heard, self.chunk_frames)]

    def audio_tokens(self, num_samples: int) -> int:
        return sum(self.chunks(num_samples)) // self.vector_frames if num_samples else 0


def prompt(folder: Path) -> Prompt:
    return PROMPT


def shape(folder: Path) -> Shape:
    config = feature_extractor(folder)
    audio = read_json(folder / "config.json").get("audio_config", {})
    rate, hop = int(config.get("sampling_rate", 16000)), int(config["hop_length"])
    steps = int(audio.get("intermediate_size", 5120)) // int(audio.get("hidden_size", 1280))
    return Shape(rate, LONGEST_S * rate, hop, 2 * int(audio.get("max_source_positions", 1500)), 2 * steps)


def trimmed(shape: Shape) -> Shape:
    """The shape under `encoder_window: trimmed`."""
    return replace(shape, trimmed=True)


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of config.json."""
    return config.get("text_config", {})
