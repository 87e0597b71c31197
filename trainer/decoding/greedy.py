"""Greedy search: the most probable token, one after the other. Rows that have ended leave the batch."""

import torch

from trainer.decoding.constrain import Constraint
from trainer.decoding.prompts import Prompts


def greedy(prompts: Prompts, max_new_tokens: int, constraint: Constraint | None = None) -> list[list[int]]:
    """Answer ids per row, without the end token."""
    out: list[list[int]] = [[] for _ in range(prompts.rows)]
    going = list(range(prompts.rows))
    states = constraint.starts(prompts.rows) if constraint else [(0, 0)] * prompts.rows
    for left in range(max_new_tokens, 0, -1):
        scores = prompts.next()
        if constraint is not None:
            scores = constraint.restrict(scores, states, left)
        tokens = scores.argmax(-1)
        keep = []
        for n, token in enumerate(tokens.tolist()):
            if token not in prompts.stops:
                out[going[n]].append(token)
                keep.append(n)
        if not keep:
            break
        if len(keep) < len(going):
            rows = torch.tensor(keep, device=tokens.device)
            prompts.select(rows)
            tokens, going = tokens[rows], [going[n] for n in keep]
            states = [states[n] for n in keep]
        if constraint is not None:
            states = [constraint.after(s, token) for s, token in zip(states, tokens.tolist(), strict=True)]
        prompts.feed(tokens)
    return out
