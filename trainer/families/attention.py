"""Attention over a pack (`trainer.batch`), three ways that agree to rounding; all of them read one layout.

`segments`: each group's rests as a small padded batch for the product of queries and keys alone; everything else in
the decoder runs on the pack. `flex`: one block-sparse kernel from the mask function (CUDA). `dense`: the whole mask,
written out; slow and plain, what the other two are tested against.

The stock classes reach it through the attention interface of transformers: a decoder whose implementation is named
`attune` gets the pack as a keyword of its forward, and without one computes as `sdpa` does (generation). So do encoders
that attend within chunks (`Chunks`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from trainer.batch import Batch

NAME = "attune"
"""Name of this attention in a model's config."""
BLOCK = 128
"""Queries and keys of one block of `flex`; packs and supervised tokens are filled up to it."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """Queries that see the same prefix: one call of the product."""

    queries: torch.Tensor
    """(rows, most) queries by number; those behind a row's last repeat it and are dropped."""
    keys: torch.Tensor
    """(rows, longest) places of the rows' own keys."""
    prefix: torch.Tensor | None
    """(prefix,) places of the shared keys."""
    mask: torch.Tensor | None
    """(rows or 1, 1, most, prefix + longest) True where seen; None: causal."""


class Layout:
    """A pack made ready for attention, once per micro-batch; `kind`: `segments`, `flex` or `dense`.

    `last` is the same for the last layer, whose queries are only the places that predict a supervised token.
    """

    def __init__(self, batch: Batch, kind: str, *, only: torch.Tensor | None = None):
        self.batch, self.kind = batch, kind
        places = torch.arange(len(batch.ids), device=batch.ids.device)
        self.queries = places if only is None else only
        if kind == "segments":
            self._pieces, self._back = _pieces(batch, self.queries)
        elif kind == "dense":
            self._mask = batch.visible(self.queries[:, None], places[None])
        else:
            self._block_mask = _block_mask(batch, self.queries)

    def last(self) -> "Layout":
        return Layout(self.batch, self.kind, only=self.batch.at)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None) -> torch.Tensor:
        """query (1, heads, queries, width), key and value (1, key heads, time, width) → as query. Query heads in a
        row share a key head."""
        if self.kind == "flex":
            return _flex(query, key, value, self._block_mask, scale)
        repeat = query.shape[1] // key.shape[1]
        if repeat > 1:
            key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
        if self.kind == "dense":
            return F.scaled_dot_product_attention(query, key, value, self._mask, scale=scale)
        out = []
        for piece in self._pieces:
            q = query[0][:, piece.queries].transpose(0, 1)
            k, v = (_keys(x[0], piece) for x in (key, value))
            causal = piece.mask is None
            got = F.scaled_dot_product_attention(q, k, v, piece.mask, is_causal=causal, scale=scale)
            out.append(got.transpose(1, 2).flatten(0, 1))
        return torch.cat(out)[self._back].transpose(0, 1)[None]


class Chunks:
    """The layout of encoders whose attention stays within windows: chunks laid end to end, each seeing all of itself
    and nothing else. One padded product instead of the stock classes' loop over chunks."""

    def __init__(self, lengths: Sequence[int], device: torch.device):
        size = torch.tensor(lengths, device=device)[:, None]
        columns = torch.arange(max(lengths), device=device)
        real = columns < size
        self._places = size.cumsum(0) - size + torch.minimum(columns, size - 1)
        self._back = real.flatten().nonzero()[:, 0]
        self._mask = None if min(lengths) == max(lengths) else real[:, None, None]

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None) -> torch.Tensor:
        """(1, heads, time, width) each → as query."""
        q, k, v = (x[0][:, self._places].transpose(0, 1) for x in (query, key, value))
        got = F.scaled_dot_product_attention(q, k, v, self._mask, scale=scale)
        return got.transpose(1, 2).flatten(0, 1)[self._back].transpose(0, 1)[None]


def _keys(x: torch.Tensor, piece: _Piece) -> torch.Tensor:
    """x (heads, time, width) → (rows, heads, prefix + longest, width)."""
    own = x[:, piece.keys].transpose(0, 1)
    if piece.prefix is None:
        return own
    return torch.cat([x[:, piece.prefix][None].expand(len(own), -1, -1, -1), own], 2)


def _pieces(batch: Batch, queries: torch.Tensor) -> tuple[list[_Piece], torch.Tensor]:
    """The pieces, and where each query's result stands in their padded results, laid end to end.

    queries: places, rising."""
    device, asked = batch.ids.device, {}
    for index, number in enumerate(batch.segments[queries].tolist()):
        asked.setdefault(number, []).append(index)
    pieces, order, back, before, number = [], [], [], 0, 0
    for group in batch.groups:
        prefix = [([group.prefix], (0, 0))] if group.prefix[1] else []
        for segments, (start, length) in [*prefix, (group.rests, group.prefix)]:
            rows = [(asked.get(number + i, []), *segment) for i, segment in enumerate(segments)]
            rows = [row for row in rows if row[0]]
            number += len(segments)
            if not rows:
                continue
            most, longest = max(len(q) for q, _, _ in rows), max(n for _, _, n in rows)
            index = torch.tensor([q + [q[-1]] * (most - len(q)) for q, _, _ in rows], device=device)
            first = torch.tensor([[s] for _, s, _ in rows], device=device)
            last = torch.tensor([[n - 1] for _, _, n in rows], device=device)
            columns = torch.arange(longest, device=device)
            mask = None
            if length or most < longest:
                # A column of padding repeats a row's last key: no real query stands so far right.
                seen = columns <= (queries[index] - first)[..., None]
                mask = torch.cat([seen.new_ones((*seen.shape[:2], length)), seen], 2)[:, None]
            keys = torch.arange(start, start + length, device=device) if length else None
            pieces.append(_Piece(index, first + torch.minimum(columns, last), keys, mask))
            for row, (q, _, _) in enumerate(rows):
                order += q
                back += range(before + row * most, before + row * most + len(q))
            before += len(rows) * most
    return pieces, torch.tensor(back, device=device)[torch.tensor(order, device=device).argsort()]


def _block_mask(batch: Batch, queries: torch.Tensor):
    """Queries are filled up to a block with the first place; the kernel wants whole blocks."""
    filled = F.pad(queries, (0, -len(queries) % BLOCK))

    def seen(b, h, q, k):
        return batch.visible(filled[q], k)

    return create_block_mask(
        seen, None, None, len(filled), len(batch.ids), device=str(queries.device), BLOCK_SIZE=BLOCK
    )


def _flex(query, key, value, mask, scale: float | None) -> torch.Tensor:
    count = query.shape[2]
    query = F.pad(query, (0, 0, 0, -count % BLOCK))
    kernel = _compiled() if query.device.type == "cuda" else flex_attention
    return kernel(query, key, value, block_mask=mask, scale=scale, enable_gqa=True)[:, :, :count]  # type: ignore[index]


@lru_cache(1)
def _compiled():
    # A program per length of pack and number of supervised tokens; the default gives up after 8.
    torch._dynamo.config.recompile_limit = 256
    return torch.compile(flex_attention, dynamic=False)


def _interface(module, query, key, value, attention_mask, scaling=None, dropout=0.0, layout=None, **options):
    if layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **options
        )
    assert not dropout, "attention dropout is not built into packs"
    return layout.attend(query, key, value, scaling).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _interface)
AttentionMaskInterface.register(NAME, sdpa_mask)
