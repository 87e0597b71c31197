"""Composed: one or two audio encoders, a projector and a causal language model, put together by `trainer compose`.

Whisper was trained on windows padded to 30 s, and its encoder attends to the padding. A composed base is trained here,
so it is defined without: the encoder sees the signal and the two mel frames behind it. All of this follows from
config.json, which also holds the feature extractors' settings.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.bases import BaseError, read_json
from trainer.formats.prompt import AudioShape, Prompt, WhisperShape

TARGETS = (
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",  # Llama, Mistral, Qwen
    "qkv_proj", "gate_up_proj",  # Phi-3
)  # fmt: skip
"""Of the language models in use here; what `auto` stands for is read from the model itself."""
STOPS = ()
"""None but the prompt's own: each language model has others."""


@dataclass(frozen=True, slots=True)
class WhisperFrames(WhisperShape):
    """Whisper (arXiv 2212.04356): a convolution of stride two over mel frames."""

    @property
    def hop(self) -> int:
        """Samples from one frame to the next; so for the classes below."""
        return 2 * self.hop_length

    def audio_tokens(self, num_samples: int) -> int:
        """Frames that enter the projector; so for the classes below."""
        return (self.mel_frames(num_samples) - 1) // 2 + 1


@dataclass(frozen=True, slots=True)
class ConvolutionFrames(AudioShape):
    """wav2vec 2.0 (arXiv 2006.11477), HuBERT, WavLM: convolutions over the wave, without padding."""

    layers: tuple[tuple[int, int], ...]
    """(kernel, stride), both in units of the layer's input."""

    @property
    def hop(self) -> int:
        return math.prod(stride for _, stride in self.layers)

    def audio_tokens(self, num_samples: int) -> int:
        for kernel, stride in self.layers:
            num_samples = max(0, (num_samples - kernel) // stride + 1)
        return num_samples


@dataclass(frozen=True, slots=True)
class MimiFrames(AudioShape):
    """Mimi (arXiv 2410.00037): causal convolutions, the last frame filled up."""

    hop: int

    def audio_tokens(self, num_samples: int) -> int:
        return -(-num_samples // self.hop)


@dataclass(frozen=True, slots=True)
class Shape(AudioShape):
    """The encoders' frames, side by side in time; every `stride` of them become `queries` vectors."""

    encoders: tuple[WhisperFrames | ConvolutionFrames | MimiFrames, ...]
    stride: int
    queries: int

    def frames(self, num_samples: int) -> int:
        """Frames of the first encoder; none where the second has nothing to say."""
        counts = [encoder.audio_tokens(num_samples) for encoder in self.encoders]
        return counts[0] if min(counts) > 0 else 0

    def audio_tokens(self, num_samples: int) -> int:
        return -(-self.frames(num_samples) // self.stride) * self.queries


def prompt(folder: Path) -> Prompt:
    pieces = read_json(folder / "config.json")["prompt"]
    return Prompt(**{**pieces, "stops": tuple(pieces["stops"])})


def shape(folder: Path) -> Shape:
    config = read_json(folder / "config.json")
    audio = [config[key] for key in ("audio_config", "second_audio_config") if config.get(key)]
    encoders = tuple(frames(*one, config["window_s"]) for one in zip(audio, config["extractors"], strict=True))
    rates = {encoder.sampling_rate for encoder in encoders}
    if len(rates) > 1:
        raise BaseError(f"{folder}: the encoders hear at {' and '.join(map(str, sorted(rates)))} Hz; they must agree")
    window = min(encoder.window_samples for encoder in encoders)
    projector = config["projector"]
    return Shape(rates.pop(), window, encoders, projector["stride"], projector["queries"])


def frames(
    config: dict[str, Any], extractor: dict[str, Any], window_s: float
) -> WhisperFrames | ConvolutionFrames | MimiFrames:
    """An encoder's frames from its settings and those of its feature extractor. `window_s`: longest recording;
    Whisper's learnt positions may allow less."""
    kind, rate = config["model_type"], int(extractor["sampling_rate"])
    window = round(window_s * rate)
    if kind == "whisper":
        hop = int(extractor["hop_length"])
        return WhisperFrames(rate, min(window, 2 * hop * config["max_source_positions"]), hop)
    if kind in ("hubert", "wav2vec2", "wavlm"):
        return ConvolutionFrames(rate, window, tuple(zip(config["conv_kernel"], config["conv_stride"], strict=True)))
    if kind.startswith("mimi"):
        hop = math.prod(config["upsampling_ratios"])
        given = config.get("frame_rate") or config.get("_frame_rate")  # frames per second
        return MimiFrames(rate, window, hop * (int(math.ceil(rate / hop) / given) if given else 2))
    raise BaseError(f"audio encoder {kind!r} is not supported; supported: whisper, hubert, wav2vec2, wavlm, mimi")


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of config.json. Where layers see a sliding window, packs hold no more than it: within
    it they see everything, as packs do."""
    text = dict(config.get("text_config", {}))
    window = text.get("sliding_window") if text.get("use_sliding_window", True) else None
    if window and "sliding_attention" in text.get("layer_types", ["sliding_attention"]):
        text["max_position_embeddings"] = min(window, text.get("max_position_embeddings", window))
    return text
