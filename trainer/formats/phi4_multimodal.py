"""Phi-4-Multimodal in the layout of transformers: chat template of microsoft/Phi-4-multimodal-instruct.

The published folder keeps what makes it hear in an adapter of its own (speech-lora/); it is refused until that is
merged, as for Granite Speech. An example beyond the short rotary factors would change the positions of every example
beside it, so the context window is the one that those serve (4,096 tokens).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.bases import BaseError, read_json
from trainer.formats.prompt import AudioShape, Prompt, feature_extractor

TARGETS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
STOPS = ("<|endoftext|>",)
LONGEST_S = 30 * 60
"""The longest recording that the published model is meant for."""


@dataclass(frozen=True, slots=True)
class Shape(AudioShape):
    """Whole transforms, several of them to a vector."""

    hop_length: int
    """Samples per mel frame."""
    transform: int
    """Samples of a frame's transform."""
    compression: int
    """Mel frames per vector."""

    def audio_tokens(self, num_samples: int) -> int:
        frames = (num_samples - self.transform) // self.hop_length + 1 if num_samples >= self.transform else 0
        return -(-frames // self.compression)


def prompt(folder: Path) -> Prompt:
    if (folder / "speech-lora").exists():
        raise BaseError(
            f"{folder}: what makes this base hear is an adapter beside it (speech-lora); merge it once: "
            "PeftModel.from_pretrained(model, 'speech-lora').merge_and_unload().save_pretrained(new folder), copy "
            "tokenizer and processor files there, and use the new folder"
        )
    placeholder = read_json(folder / "config.json").get("audio_config", {}).get("audio_token_id", 200011)
    added = read_json(folder / "tokenizer.json").get("added_tokens", [])
    found = next((t["content"] for t in added if t["id"] == placeholder), None)
    if found is None:
        raise BaseError(f"{folder}: tokenizer.json has no token {placeholder}, which config.json names for audio")
    return Prompt(
        before="<|user|>",
        audio_before="",
        audio_token=found,
        audio_after="",
        after="<|end|><|assistant|>",
        end="<|end|>",
        order="audio_first",
    )


def settings(folder: Path) -> dict[str, Any]:
    """The audio side of the processor."""
    return feature_extractor(folder, "audio_compression_rate")


def shape(folder: Path) -> Shape:
    config = settings(folder)
    if int(config.get("audio_downsample_rate", 1)) != 1:
        raise BaseError(f"{folder}: audio_downsample_rate {config['audio_downsample_rate']} is not supported; 1 is")
    rate, hop = int(config.get("sampling_rate", 16000)), int(config.get("hop_length", 160))
    compression = int(config["audio_compression_rate"])
    return Shape(rate, LONGEST_S * rate, hop, int(config.get("win_length", 400)), compression)


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of config.json, with the positions that short rotary factors serve."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    most = config.get("max_position_embeddings", 131072)
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        most = config.get("original_max_position_embeddings", 4096)
    return {**config, "max_position_embeddings": most}
