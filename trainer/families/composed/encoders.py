"""What each audio encoder makes of recordings, each as if it were alone: padding and neighbours change nothing.

Encoders are the stock classes of transformers. Their own batched forward is not used where it lets padding in: Whisper
attends to it, the group norm of wav2vec 2.0's and HuBERT's first convolution averages over it, Mimi's convolutions
start their last frame in it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import HubertModel, Wav2Vec2Model, WavLMModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from trainer.families.whisper import blocks
from trainer.formats.composed import frames


def _whisper(encoder: Any, mels: torch.Tensor, samples: Sequence[int], counts: Sequence[int], whole: bool):
    """mels: (recordings, bins, mel frames)."""
    return encoder.layer_norm(blocks(encoder, mels, counts, whole=whole))


def _wav2vec2(encoder: Any, waves: torch.Tensor, samples: Sequence[int], counts: Sequence[int], whole: bool):
    """waves: (recordings, samples). Convolutions one recording after the other, the Transformer over all of them."""
    heard = [encoder.feature_extractor(w[None, :n])[0].T for w, n in zip(waves, samples, strict=True)]
    h = encoder.feature_projection(pad_sequence(heard, batch_first=True))
    h = h[0] if isinstance(h, tuple) else h
    mask = None
    if min(counts) < h.shape[1]:
        mask = torch.arange(h.shape[1], device=h.device) < torch.tensor(counts, device=h.device)[:, None]
    return encoder.encoder(h, attention_mask=mask)[0]


def _mimi(encoder: Any, waves: torch.Tensor, samples: Sequence[int], counts: Sequence[int], whole: bool):
    """waves: (recordings, samples). The latents before they are quantised, 12.5 Hz; one recording after the other."""
    latents = [encoder(w[None, None, :n]).latents[0].T for w, n in zip(waves, samples, strict=True)]
    return pad_sequence(latents, batch_first=True)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of audio encoder."""

    model: Any
    """Its stock class, without decoder or head."""
    run: Callable[[Any, torch.Tensor, Sequence[int], Sequence[int], bool], torch.Tensor]
    """(encoder, padded features, samples and frames per recording, whether what is behind a recording is computed too)
    → (recordings, time, width)."""
    targets: tuple[str, ...]
    """Linear layers that get adapters under `encoder: lora`."""


MIMI = getattr(transformers, "MimiEncoderModel", None)
"""Mimi's encoder without its decoder: not a class of its own in earlier transformers 5 (5.17)."""
_ATTENTION, _MLP = ("q_proj", "k_proj", "v_proj", "out_proj"), ("intermediate_dense", "output_dense")
KINDS = {
    "whisper": Kind(WhisperEncoder, _whisper, (*_ATTENTION, "fc1", "fc2")),
    "hubert": Kind(HubertModel, _wav2vec2, (*_ATTENTION, *_MLP)),
    "wav2vec2": Kind(Wav2Vec2Model, _wav2vec2, (*_ATTENTION, *_MLP)),
    # Its attention reads the weights of its projections itself, so an adapter on them would do nothing.
    "wavlm": Kind(WavLMModel, _wav2vec2, _MLP),
    "mimi_encoder": Kind(MIMI, _mimi, ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2")),
}
"""By `model_type` of the encoder's own config."""


class AudioTower(nn.Module):
    """One encoder or two; of two, the second's frames stand beside the first's, taken at the same time.

    With two of 50 Hz this is SALMONN's fusion (arXiv 2310.13289, §3.1), but that a second encoder that ends earlier
    repeats its last frame there, where SALMONN pads by zeros.
    """

    def __init__(self, config: Any):
        super().__init__()
        found = [c for c in (config.audio_config, config.second_audio_config) if c is not None]
        self.encoders: Any = nn.ModuleList(KINDS[c.model_type].model._from_config(c) for c in found)
        self.frames = [frames(c.to_dict(), e, config.window_s) for c, e in zip(found, config.extractors, strict=True)]

    @property
    def width(self) -> int:
        """Of a state: both encoders' hidden units."""
        return sum(e.config.hidden_size for e in self.encoders)

    def forward(
        self, features: Sequence[torch.Tensor], samples: Sequence[int], *, whole: bool = False
    ) -> list[torch.Tensor]:
        """features: one padded tensor per encoder (recordings, …); samples: of each recording → its states
        (frames, width). whole: what an encoder could leave out behind a recording is computed too."""
        found = []
        for encoder, shape, x in zip(self.encoders, self.frames, features, strict=True):
            counts = [shape.audio_tokens(n) for n in samples]
            run = KINDS[encoder.config.model_type].run
            states = run(encoder, x.to(next(encoder.parameters()).dtype), samples, counts, whole)
            found.append([s[:n] for s, n in zip(states, counts, strict=True)])
        if len(found) == 1:
            return found[0]
        hops = [shape.hop for shape in self.frames]
        return [beside(a, b, *hops) for a, b in zip(*found, strict=True)]


def beside(states: torch.Tensor, others: torch.Tensor, hop: int, other_hop: int) -> torch.Tensor:
    """(frames, width) of either encoder, a frame every `hop` samples → (frames, both widths): beside each state the
    other one that begins last before it or with it, the last one to the end."""
    at = torch.arange(len(states), device=states.device) * hop // other_hop
    return torch.cat([states, others[at.clamp(max=len(others) - 1)]], 1)
