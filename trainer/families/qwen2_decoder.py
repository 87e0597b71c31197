"""A Qwen2 decoder over one micro-batch, computing only what the loss reads. Equal to the stock forward, tested.

Two things are left out that change no number but rounding: what all rows have in common before their audio is
computed once (the prompt's prefix), and the last layer makes keys and values everywhere but queries, MLP and
norm only where a supervised token is predicted. Everything goes through the stock modules, adapters included.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

Pair = tuple[torch.Tensor, torch.Tensor]


def fits(decoder) -> bool:
    """Whether this forward can stand in for the stock one: plain causal attention by sdpa."""
    config = decoder.config
    full = all(kind == "full_attention" for kind in config.layer_types or [])
    return full and config._attn_implementation == "sdpa" and not config.attention_dropout


def supervised_states(
    decoder, inputs: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, shared: int
) -> torch.Tensor:
    """Final states at the supervised positions, (supervised, width), in the order of `rows` and `columns`
    (row by row, columns rising).

    inputs: (batch, time, width) embeddings, padded on the right. shared: leading positions that are the same in
    all rows, before every supervised one.
    """
    batch, time, _ = inputs.shape
    positions = torch.arange(time, device=inputs.device)[None]
    cos, sin = decoder.rotary_emb(inputs, positions)
    last = len(decoder.layers) - 1
    prefix = _prefix(decoder, inputs[:1, :shared], (cos[:, :shared], sin[:, :shared])) if shared else None
    x, rope = inputs[:, shared:], (cos[:, shared:], sin[:, shared:])
    # Keys that each query may see: all of the prefix, and itself and what precedes it.
    queries = torch.arange(time - shared, device=x.device)
    sees = torch.arange(time, device=x.device)[None] <= (queries + shared)[:, None]
    chosen, real = _padded(rows, columns - shared, batch)
    for n, layer in enumerate(decoder.layers):
        normed = layer.input_layernorm(x)
        key, value = _keys_values(layer.self_attn, normed, rope)
        if prefix is not None:
            key, value = (
                torch.cat([a.expand(batch, -1, -1, -1), b], 2) for a, b in zip(prefix[n], (key, value), strict=True)
            )
        if n < last:
            query = _queries(layer.self_attn, normed, rope)
            mask = sees if shared else None
            x = _finish(layer, x, F.scaled_dot_product_attention(query, key, value, mask, is_causal=not shared))
            continue
        at = chosen[..., None].expand(-1, -1, x.shape[-1])
        turn = (rope[0][0][chosen], rope[1][0][chosen])
        query = _queries(layer.self_attn, normed.gather(1, at), turn)
        attended = F.scaled_dot_product_attention(query, key, value, sees[chosen][:, None])
        x = _finish(layer, x.gather(1, at), attended)
    return decoder.norm(x[real])


def _prefix(decoder, x: torch.Tensor, rope: Pair) -> list[Pair]:
    """Keys and values of the common prefix, per layer (1, heads, shared, width of a head)."""
    found = []
    for n, layer in enumerate(decoder.layers):
        normed = layer.input_layernorm(x)
        key, value = _keys_values(layer.self_attn, normed, rope)
        found.append((key, value))
        if n < len(decoder.layers) - 1:
            query = _queries(layer.self_attn, normed, rope)
            x = _finish(layer, x, F.scaled_dot_product_attention(query, key, value, is_causal=True))
    return found


def _keys_values(attention: nn.Module, normed: torch.Tensor, rope: Pair) -> Pair:
    """(batch, heads, time, width of a head) each, keys turned, repeated for the queries' groups."""
    key, value = (_heads(p(normed), attention.head_dim) for p in (attention.k_proj, attention.v_proj))  # type: ignore[operator]
    key, _ = apply_rotary_pos_emb(key, key, *rope)
    groups = attention.num_key_value_groups
    return key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)  # type: ignore[arg-type]


def _queries(attention: nn.Module, normed: torch.Tensor, rope: Pair) -> torch.Tensor:
    query = _heads(attention.q_proj(normed), attention.head_dim)  # type: ignore[operator]
    return apply_rotary_pos_emb(query, query, *rope)[0]


def _heads(x: torch.Tensor, width) -> torch.Tensor:
    return x.unflatten(-1, (-1, width)).transpose(1, 2)


def _finish(layer: nn.Module, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """Output projection, residuals and MLP of a layer."""
    x = x + layer.self_attn.o_proj(attended.transpose(1, 2).flatten(2))  # type: ignore[operator, union-attr]
    return x + layer.mlp(layer.post_attention_layernorm(x))  # type: ignore[operator]


def _padded(rows: torch.Tensor, columns: torch.Tensor, batch: int) -> Pair:
    """(batch, most) columns per row, and which of them are real; row-major order is that of the input."""
    counts = torch.bincount(rows, minlength=batch)
    real = torch.arange(int(counts.max()), device=rows.device)[None] < counts[:, None]
    chosen = torch.zeros(real.shape, dtype=torch.long, device=rows.device)
    chosen[real] = columns
    return chosen, real
