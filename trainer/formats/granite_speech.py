"""Granite Speech: chat templates of ibm-granite/granite-speech-3.3 (with its model card's system turn, whose date is
fixed so that a job stays the same) and of the later ones that write USER and ASSISTANT.

The 3.3 models carry a LoRA adapter of their own, switched on where there is a recording. Adapters on adapters would not
go back into stock PEFT, so such a folder is refused until it is merged.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.bases import BaseError, read_json
from trainer.formats.prompt import AudioShape, Prompt, feature_extractor

PROMPT = Prompt(
    before="<|start_of_role|>system<|end_of_role|>Knowledge Cutoff Date: April 2024.\nToday's Date: April 9, 2025.\n"
    "You are Granite, developed by IBM. You are a helpful AI assistant<|end_of_text|>\n"
    "<|start_of_role|>user<|end_of_role|>",
    audio_before="",
    audio_token="<|audio|>",
    audio_after="",
    after="<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
    end="<|end_of_text|>",
    order="audio_first",
)
PLAIN = replace(PROMPT, before="USER: ", after="\n ASSISTANT:")
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
STOPS = ()
LONGEST_S = 30 * 60
"""The encoder hears blocks, so nothing but the context window bounds a recording; this is a bound for sanity."""


@dataclass(frozen=True, slots=True)
class Shape(AudioShape):
    """Two mel frames to an encoder step, a window of steps to a few queries."""

    hop_length: int
    """Samples per mel frame."""
    transform: int
    """Samples of a frame's transform, of which a recording must hold more than half."""
    window: int
    """Encoder steps of one window of the projector."""
    queries: int
    """Vectors per window."""

    def steps(self, num_samples: int) -> int:
        """Encoder steps."""
        return (num_samples // self.hop_length + 1) // 2 if num_samples > self.transform // 2 else 0

    def audio_tokens(self, num_samples: int) -> int:
        return -(-self.steps(num_samples) // self.window) * self.queries


def prompt(folder: Path) -> Prompt:
    if (folder / "adapter_config.json").exists():
        raise BaseError(
            f"{folder}: the base has an adapter of its own (adapter_config.json); merge it once: read the model from a "
            "copy of the folder without adapter_config.json, then PeftModel.from_pretrained(model, folder)"
            ".merge_and_unload().save_pretrained(copy), and use the copy"
        )
    return PLAIN if "USER:" in _template(folder) else PROMPT


def _template(folder: Path) -> str:
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).exists() and (found := read_json(folder / name).get("chat_template")):
            return str(found)
    return ""


def shape(folder: Path) -> Shape:
    kind = text_config(read_json(folder / "config.json")).get("model_type", "granite")
    if kind != "granite":
        raise BaseError(f"{folder}: a Granite Speech whose language model is {kind!r} is not supported; 'granite' is")
    config = feature_extractor(folder)
    window, rate = int(config["projector_window_size"]), int(config.get("sampling_rate", 16000))
    queries = window // int(config["projector_downsample_rate"])
    return Shape(rate, LONGEST_S * rate, int(config["hop_length"]), int(config["n_fft"]), window, queries)


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of config.json."""
    return config.get("text_config", {})
