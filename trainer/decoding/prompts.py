"""A batch of prompts in the model's cache, and the tokens that follow them.

What all prompts of a batch begin with (system turn, instruction, menu, demonstrations, up to the first placeholder
of a recording) is computed once, and every row attends to the same keys and values: exact but for rounding.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from trainer.views import Example


class Prompts:
    """Hands out next-token log-probabilities of the rows, one position after the other.

    A row lies in the cache as [shared prefix, padding, rest of the prompt, answer]; padding is masked, and positions
    count real tokens only. Attributes: `rows` (their number), `stops` (ids that end an answer), `shared` (leading
    tokens that were computed once), `mask` (rows, time), 1 for a real token, `whole` (the cache forgets nothing).
    """

    def __init__(self, model, examples: Sequence[Example]):
        self.model, self.rows = model, len(examples)
        self.stops = model.tokens.stops
        self.cache = DynamicCache(config=model.language_model.config)
        prompts = [e.prompt for e in examples]
        # A cache that forgets counts the padding between prefix and rest as distance: there nothing is shared.
        self.whole = all(type(layer) is DynamicLayer for layer in self.cache.layers)
        shares = model.execution.share_prefix and self.whole
        self.shared = common_prefix(prompts, model.tokens.audio_id) if shares else 0
        rests = [p[self.shared :] for p in prompts]
        time = max(len(rest) for rest in rests)
        ids = np.full((self.rows, time), model.tokens.end, dtype=np.int64)
        real = np.zeros((self.rows, time), dtype=np.int64)
        for r, rest in enumerate(rests):
            ids[r, time - len(rest) :] = rest
            real[r, time - len(rest) :] = 1
        if self.shared:
            self._prefill(prompts[0][: self.shared])
        rest = torch.from_numpy(real).to(model.device)
        self.mask = torch.cat([rest.new_ones(self.rows, self.shared), rest], 1)
        self.position = model.positions(self.mask)[..., self.shared :]
        waves = [e.wave for e in examples if e.wave is not None]
        self._inputs = model.embed(torch.from_numpy(ids).to(model.device), waves)

    def _prefill(self, prefix: tuple[int, ...]) -> None:
        """Keys and values of the shared prefix, seen by all rows: a view, not a copy."""
        ids = torch.tensor([prefix], device=self.model.device)
        mask = torch.ones_like(ids)
        self._forward(self.model.embed(ids, []), mask, self.model.positions(mask))
        layers: list[Any] = self.cache.layers
        for layer in layers:
            layer.keys = layer.keys.expand(self.rows, -1, -1, -1)
            layer.values = layer.values.expand(self.rows, -1, -1, -1)

    def _forward(self, inputs: torch.Tensor, mask: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """(rows, new, width) states of new tokens, whose keys and values join the cache."""
        return self.model.states(
            inputs, attention_mask=mask, position_ids=position, past_key_values=self.cache, use_cache=True
        ).last_hidden_state

    def next(self) -> torch.Tensor:
        """(rows, vocabulary) fp32 log-probabilities of the next token."""
        states = self._forward(self._inputs, self.mask, self.position)
        return self.model.logits(states[:, -1]).log_softmax(-1)

    def branch(self, tokens: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
        """(rows, nodes, width) states of a tree of tokens after each row, `next` having been asked. tokens, parents:
        (rows, nodes). Node n of a row follows its node parents[n] < n, or the prompt where that is -1: it sees what
        lies on its path and nothing else."""
        count, each = tokens.shape[1], torch.arange(self.rows)
        path = torch.eye(count, dtype=torch.bool).repeat(self.rows, 1, 1)
        for n in range(count):
            path[:, n] |= path[each, parents[:, n]] & (parents[:, n] >= 0)[:, None]
        path = path.to(self.mask.device)
        sees = torch.cat([self.mask.bool()[:, None].expand(-1, count, -1), path], -1)
        position = self.position[..., -1:] + path.sum(-1)
        return self._forward(self.model.embed(tokens.to(self.mask.device), []), sees[:, None], position)

    def feed(self, tokens: torch.Tensor) -> None:
        """Appends one token per row (rows,)."""
        self._inputs = self.model.embed(tokens[:, None], [])
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], 1)
        self.position = self.position[..., -1:] + 1

    def select(self, rows: torch.Tensor) -> None:
        """Goes on with these rows, in this order (repeats allowed)."""
        self.cache.batch_select_indices(rows)
        self.mask, self.position = self.mask[rows], self.position[..., rows, :]


def common_prefix(prompts: Sequence[tuple[int, ...]], audio_id: int) -> int:
    """How many leading ids all prompts have in common, before any recording and before the last id of the
    shortest (which is left to predict from); 0 for a prompt alone."""
    if len(prompts) == 1:
        return 0
    low, high = min(prompts), max(prompts)  # what the first and the last in order share, all share
    most = min(map(len, prompts)) - 1
    return next((n for n in range(most) if low[n] != high[n] or low[n] == audio_id), most)
