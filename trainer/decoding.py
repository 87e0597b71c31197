"""Batched generation with the family's own embeddings: greedy and beam search over a left-padded batch."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import DynamicCache

from trainer.views import Example


@torch.inference_mode()
def generate(model, examples: Sequence[Example], *, beams: int = 1, max_new_tokens: int = 64) -> list[list[int]]:
    """Answer ids per example, without the end token. Left padding and positions that count real tokens only:
    an example answers alike whoever else is in the batch (to rounding of the logits)."""
    search = _greedy if beams == 1 else _beam
    model.train(False)
    return search(_Decoder(model, examples), beams, max_new_tokens)


class _Decoder:
    """The batch after its prompts: hands out next-token log-probabilities, one position after the other."""

    def __init__(self, model, examples: Sequence[Example]):
        self.model, self.rows = model, len(examples)
        self.stops = model.tokens.stops
        time = max(len(e.prompt) for e in examples)
        ids = np.full((len(examples), time), model.tokens.end, dtype=np.int64)
        real = np.zeros((len(examples), time), dtype=np.int64)
        for r, e in enumerate(examples):
            ids[r, time - len(e.prompt) :] = e.prompt
            real[r, time - len(e.prompt) :] = 1
        self.mask = torch.from_numpy(real).to(model.device)
        self.cache = DynamicCache(config=model.language_model.config)
        self.position = model.positions(self.mask)
        self._inputs = model.embed(
            torch.from_numpy(ids).to(model.device), [e.wave for e in examples if e.wave is not None]
        )

    def next(self) -> torch.Tensor:
        """(rows, vocabulary) fp32 log-probabilities of the next token."""
        out = self.model.states(
            self._inputs,
            attention_mask=self.mask,
            position_ids=self.position,
            past_key_values=self.cache,
            use_cache=True,
        )
        return self.model.logits(out.last_hidden_state[:, -1]).log_softmax(-1)

    def feed(self, tokens: torch.Tensor) -> None:
        """Appends one token per row (rows,)."""
        self._inputs = self.model.embed(tokens[:, None], [])
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], 1)
        self.position = self.position[:, -1:] + 1

    def select(self, rows: torch.Tensor) -> None:
        """Goes on with these rows, in this order (repeats allowed)."""
        self.cache.batch_select_indices(rows)
        self.mask, self.position = self.mask[rows], self.position[rows]


def _greedy(decoder: _Decoder, beams: int, max_new_tokens: int) -> list[list[int]]:
    out: list[list[int]] = [[] for _ in range(decoder.rows)]
    going = list(range(decoder.rows))
    for _ in range(max_new_tokens):
        tokens = decoder.next().argmax(-1)
        keep = []
        for n, token in enumerate(tokens.tolist()):
            if token not in decoder.stops:
                out[going[n]].append(token)
                keep.append(n)
        if not keep:
            break
        if len(keep) < len(going):
            rows = torch.tensor(keep, device=tokens.device)
            decoder.select(rows)
            tokens, going = tokens[rows], [going[n] for n in keep]
        decoder.feed(tokens)
    return out


def _beam(decoder: _Decoder, beams: int, max_new_tokens: int) -> list[list[int]]:
    """Score of a hypothesis: mean log-probability per generated token, the end token counted. A row is done
    when it has `beams` finished hypotheses and no open one scores better than the worst of them."""
    device = decoder.mask.device
    finished: list[list[tuple[float, list[int]]]] = [[] for _ in range(decoder.rows)]
    words: list[list[list[int]]] = [[[] for _ in range(beams)] for _ in range(decoder.rows)]
    done = [False] * decoder.rows
    first = decoder.next()
    decoder.select(torch.arange(decoder.rows, device=device).repeat_interleave(beams))
    scores = torch.full((decoder.rows, beams), -torch.inf, device=device)
    scores[:, 0] = 0  # all beams are the same prompt: let only one of them speak
    step_scores = first.repeat_interleave(beams, 0)
    for length in range(1, max_new_tokens + 1):
        vocabulary = step_scores.shape[-1]
        total = (scores[..., None] + step_scores.view(decoder.rows, beams, vocabulary)).flatten(1)
        best, index = total.topk(beams * (len(decoder.stops) + 1), dim=-1)
        parents = torch.zeros(decoder.rows, beams, dtype=torch.long)
        tokens = torch.zeros(decoder.rows, beams, dtype=torch.long)
        kept = torch.full((decoder.rows, beams), -torch.inf)
        for r, (row_scores, row_index) in enumerate(zip(best.tolist(), index.tolist(), strict=True)):
            said, n = words[r], 0
            following: list[list[int]] = []
            for rank, (score, at) in enumerate(zip(row_scores, row_index, strict=True)):
                parent, token = divmod(at, vocabulary)
                if token in decoder.stops:
                    if rank < beams and not done[r]:
                        finished[r].append((score / length, said[parent]))
                elif n < beams:
                    parents[r, n], tokens[r, n], kept[r, n] = parent, token, score
                    following.append([*said[parent], token])
                    n += 1
            words[r] = following
            finished[r] = sorted(finished[r], key=lambda f: -f[0])[:beams]
            done[r] |= len(finished[r]) == beams and float(kept[r].max()) / length <= finished[r][-1][0]
        scores = kept.to(device)
        if all(done) or length == max_new_tokens:
            break
        rows = torch.arange(decoder.rows)[:, None] * beams + parents
        decoder.select(rows.flatten().to(device))
        decoder.feed(tokens.flatten().to(device))
        step_scores = decoder.next()
    out = []
    for r in range(decoder.rows):
        if not done[r]:  # cut by max_new_tokens: the open hypotheses compete as they are
            finished[r] += [(s / max(1, len(w)), w) for s, w in zip(scores[r].tolist(), words[r], strict=True)]
        out.append(max(finished[r], key=lambda f: f[0])[1])
    return out
