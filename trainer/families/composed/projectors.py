"""From encoder states to vectors of the language model: every `stride` frames of a recording become `queries` vectors.

Each takes the states of several recordings, (frames, width) each, and gives their vectors end to end, (vectors, out).
A last group of fewer than `stride` frames counts whole, so that no audio is lost. What a recording gives does not
depend on the others.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import Blip2QFormerConfig, Blip2QFormerModel, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding


class Linear(nn.Module):
    """`stride` frames side by side, then two linear layers (SLAM-ASR, arXiv 2402.08846: stride 5, width 2048)."""

    def __init__(self, states: int, out: int, *, stride: int, width: int):
        super().__init__()
        self.stride = stride
        self.fc1, self.fc2 = nn.Linear(states * stride, width), nn.Linear(width, out)

    def forward(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        return self.fc2(F.relu(self.fc1(torch.cat(_stacked(states, self.stride)))))


class Convolutions(nn.Module):
    """Convolutions of stride two (or another prime factor of `stride`), then a linear layer."""

    def __init__(self, states: int, out: int, *, stride: int, width: int):
        super().__init__()
        self.convs, self.stride = nn.ModuleList(), stride
        for factor in _factors(stride) or [1]:
            reach = max(1, factor // 2)
            self.convs.append(nn.Conv1d(states, width, 2 * reach + 1, factor, padding=reach))
            states = width
        self.fc = nn.Linear(states, out)

    def forward(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        counts = torch.tensor([len(s) for s in states], device=states[0].device)
        x = pad_sequence(list(states), batch_first=True).mT
        for conv in self.convs:
            assert isinstance(conv, nn.Conv1d)
            x = F.gelu(conv(x))
            counts = (counts - 1) // conv.stride[0] + 1
            behind = torch.arange(x.shape[-1], device=x.device) >= counts[:, None]
            x = x.masked_fill(behind[:, None], 0)  # as a recording alone is followed by zeros
        return self.fc(_unpadded(x.mT, counts.tolist()))


class CausalTransformer(nn.Module):
    """A causal Transformer over the frames (SALAD, arXiv 2510.13632: 12 layers of width 960, 15 heads over 5 of keys,
    MLP 2560), in the form of Llama's layers."""

    def __init__(
        self, states: int, out: int, *, stride: int, width: int, layers: int, heads: int, key_heads: int, mlp: int
    ):  # fmt: skip
        super().__init__()
        config = LlamaConfig(
            vocab_size=1, hidden_size=width, intermediate_size=mlp, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=key_heads,
        )  # fmt: skip
        config._attn_implementation = "sdpa"
        self.stride = stride
        self.enter, self.leave = nn.Linear(states * stride, width), nn.Linear(width, out)
        self.layers = nn.ModuleList(LlamaDecoderLayer(config, n) for n in range(layers))
        self.norm, self.rope = LlamaRMSNorm(width), LlamaRotaryEmbedding(config)

    def forward(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        rows = _stacked(states, self.stride)
        x = self.enter(pad_sequence(rows, batch_first=True))  # padding stands behind, where a causal layer sees nothing
        rope = self.rope(x, torch.arange(x.shape[1], device=x.device)[None])
        for layer in self.layers:
            x = layer(x, position_embeddings=rope)
        return self.leave(self.norm(_unpadded(x, [len(row) for row in rows])))


class QFormer(nn.Module):
    """Each window of `stride` frames through a Q-Former of `queries` learnt queries (arXiv 2301.12597), its vectors in
    order. SALMONN (arXiv 2310.13289, §3.1): windows of 1/3 s, one query, two layers, the first sees the audio.
    Contrastive pre-training (arXiv 2412.15712, §4): four queries, four layers, all see it."""

    def __init__(
        self, states: int, out: int, *, stride: int, queries: int, width: int, layers: int, heads: int, mlp: int,
        cross_every: int,
    ):  # fmt: skip
        super().__init__()
        config = Blip2QFormerConfig(
            hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=mlp,
            encoder_hidden_size=states, cross_attention_frequency=cross_every, use_qformer_text_input=False,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        self.stride = stride
        self.norm, self.fc = nn.LayerNorm(states), nn.Linear(width, out)
        self.queries = nn.Parameter(torch.empty(queries, width).normal_(0, config.initializer_range))
        self.qformer = Blip2QFormerModel(config)

    def forward(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        windows = [window for s in states for window in self.norm(s).split(self.stride)]
        filled = torch.tensor([len(window) for window in windows], device=states[0].device)
        x = pad_sequence(windows, batch_first=True)
        seen = torch.arange(x.shape[1], device=x.device) < filled[:, None]
        queries = self.queries.expand(len(x), -1, -1)
        out = self.qformer(query_embeds=queries, encoder_hidden_states=x, encoder_attention_mask=seen)
        return self.fc(out.last_hidden_state.flatten(0, 1))


KINDS = {"linear": Linear, "conv": Convolutions, "transformer": CausalTransformer, "qformer": QFormer}
"""By `kind` of the composed base's `projector`; its other settings are the class's own."""


def projector(settings: dict[str, Any], states: int, out: int) -> nn.Module:
    """The projector of a composed base. states: width of an encoder state; out: of the language model."""
    rest = {k: v for k, v in settings.items() if k != "kind" and (k != "queries" or settings["kind"] == "qformer")}
    return KINDS[settings["kind"]](states, out, **rest)


def _stacked(states: Sequence[torch.Tensor], stride: int) -> list[torch.Tensor]:
    """(frames, width) → (frames / stride, stride · width) per recording, the last group filled up by zeros."""
    return [F.pad(s, (0, 0, 0, -len(s) % stride)).unflatten(0, (-1, stride)).flatten(1) for s in states]


def _unpadded(x: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """(recordings, time, width) → the first `counts` of each, end to end."""
    return torch.cat([row[:n] for row, n in zip(x, counts, strict=True)])


def _factors(number: int) -> list[int]:
    """Prime factors, rising: 12 → [2, 2, 3]."""
    for factor in range(2, math.isqrt(number) + 1):
        if number % factor == 0:
            return [factor, *_factors(number // factor)]
    return [number] if number > 1 else []
