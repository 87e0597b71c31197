"""A stock decoder over one pack, computing only what the loss reads. Equal to the stock forward, tested.

Every layer runs through its stock class, adapters included. Where the layers are of the common pre-norm form, the last
one makes keys and values everywhere but queries, MLP and norm only where a supervised token is predicted.
"""

import sys
from collections.abc import Collection

import torch
from torch import nn

from trainer.batch import Batch
from trainer.families.attention import NAME, Layout

COMMON = (
    "LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen2_5OmniDecoderLayer", "Qwen3DecoderLayer",
    "Qwen3OmniMoeThinkerTextDecoderLayer",
)  # fmt: skip
"""Layers of the form x + attention(norm(x)), x + mlp(norm(x)), with projections q, k, v, o."""


def supervised_states(decoder, inputs: torch.Tensor, batch: Batch, kind: str) -> torch.Tensor:
    """Final states at the supervised places, (supervised, width), in the order of `batch.at`.

    inputs: (1, time, width) embeddings of the pack. kind: of `trainer.families.attention`.
    """
    assert decoder.config._attn_implementation == NAME, "the decoder was loaded with another attention"
    if type(decoder.layers[-1]).__name__ not in COMMON:
        return final_states(decoder, inputs, batch, kind)[batch.at]
    layout, positions = Layout(batch, kind), batch.positions[None]
    # Time, height and width, which are one for text and sound; later transformers 5 would spread them itself.
    spread = "mrope_section" in (decoder.config.rope_parameters or {})
    rope = decoder.rotary_emb(inputs, positions.expand(3, -1, -1) if spread else positions)
    x = inputs
    for layer in decoder.layers[:-1]:
        x = layer(x, position_embeddings=rope, position_ids=positions, use_cache=False, layout=layout)
    return decoder.norm(_last(decoder.layers[-1], x, rope, layout.last()))[0]


def layer_states(
    decoder, inputs: torch.Tensor, batch: Batch, kind: str, depths: Collection[int]
) -> dict[int, torch.Tensor]:
    """States of the whole pack after each of the layers `depths`, (time, width); 0: the inputs, before a decoder may
    scale them. The last layer's are those after the final norm."""
    last, found = len(decoder.layers), {0: inputs[0]}
    if max(depths) == 0:
        return found

    def keep(depth: int):
        def hook(layer, given, made) -> None:
            found[depth] = (made[0] if isinstance(made, tuple) else made)[0]

        return hook

    hooks = [decoder.layers[d - 1].register_forward_hook(keep(d)) for d in depths if 0 < d < last]
    try:
        found[last] = final_states(decoder, inputs, batch, kind)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def final_states(decoder, inputs: torch.Tensor, batch: Batch, kind: str) -> torch.Tensor:
    """Final states of the whole pack by the stock forward, (time, width)."""
    layout = Layout(batch, kind)
    # A mask of four dimensions is taken as made; the layout is the one that counts.
    made = inputs.new_zeros((1, 1, 1, 1))
    out = decoder(
        inputs_embeds=inputs, position_ids=batch.positions[None], attention_mask=made, use_cache=False, layout=layout
    )
    return out.last_hidden_state[0]


def _last(layer, x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor], layout: Layout) -> torch.Tensor:
    """The last layer at the layout's queries alone: (1, queries, width)."""
    at, attention = layout.queries, layer.self_attn
    turn = sys.modules[type(attention).__module__].apply_rotary_pos_emb
    normed = layer.input_layernorm(x)
    query = _heads(attention, "q", normed[:, at])
    key, value = (_heads(attention, name, normed) for name in "kv")
    query, _ = turn(query, query, rope[0][:, at], rope[1][:, at])
    key, _ = turn(key, key, *rope)
    attended = layout.attend(query, key, value, attention.scaling)
    x = x[:, at] + attention.o_proj(attended.transpose(1, 2).flatten(2))
    return x + layer.mlp(layer.post_attention_layernorm(x))


def _heads(attention: nn.Module, name: str, x: torch.Tensor) -> torch.Tensor:
    """(1, time, width) → (1, heads, time, width of a head), normalised where the class does so."""
    made = getattr(attention, f"{name}_proj")(x).unflatten(-1, (-1, attention.head_dim))
    norm = getattr(attention, f"{name}_norm", None)
    return (made if norm is None else norm(made)).transpose(1, 2)
