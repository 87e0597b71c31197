"""Beam search over the rows of a batch. Rows that are done leave it."""

from typing import NamedTuple

import torch

from trainer.decoding.constrain import Constraint, State
from trainer.decoding.prompts import Prompts


class Beam(NamedTuple):
    """A hypothesis that may go on."""

    words: list[int]
    state: State
    """Of the constraint."""


class Row:
    """The hypotheses of one prompt."""

    def __init__(self, start: State, beams: int):
        self.open = [Beam([], start)] * beams
        self.finished: list[tuple[float, list[int]]] = []
        """(score, words), the best first."""

    def best(self) -> list[int]:
        return max(self.finished, key=lambda f: f[0])[1]


def beam(prompts: Prompts, beams: int, max_new_tokens: int, constraint: Constraint | None = None) -> list[list[int]]:
    """Answer ids per row, without the end token. Score of a hypothesis: mean log-probability per generated token,
    the end token counted. A row is done when it has `beams` finished hypotheses and no open one scores better than
    the worst of them; where `max_new_tokens` cut it, the open hypotheses compete as they are."""
    device, width = prompts.mask.device, len(prompts.stops) + 1
    starts = constraint.starts(prompts.rows) if constraint else [(0, 0)] * prompts.rows
    rows = [Row(start, beams) for start in starts]
    going = rows
    step_scores = prompts.next().repeat_interleave(beams, 0)
    prompts.select(torch.arange(prompts.rows, device=device).repeat_interleave(beams))
    scores = torch.full((prompts.rows, beams), -torch.inf)
    scores[:, 0] = 0  # all beams are the same prompt: let only one of them speak
    for length in range(1, max_new_tokens + 1):
        if constraint is not None:
            states = [beam.state for row in going for beam in row.open]
            step_scores = constraint.restrict(step_scores, states, max_new_tokens + 1 - length)
        vocabulary = step_scores.shape[-1]
        total = (scores.to(device)[..., None] + step_scores.view(len(going), beams, vocabulary)).flatten(1)
        best, index = total.topk(beams * width, dim=-1)
        parents, tokens = (torch.zeros(len(going), beams, dtype=torch.long) for _ in range(2))
        scores = torch.full((len(going), beams), -torch.inf)
        keep = []
        for n, (row, row_scores, row_index) in enumerate(zip(going, best.tolist(), index.tolist(), strict=True)):
            following: list[Beam] = []
            for rank, (score, at) in enumerate(zip(row_scores, row_index, strict=True)):
                parent, token = divmod(at, vocabulary)
                if score == -torch.inf:  # nothing else is allowed
                    break
                if token in prompts.stops:
                    if rank < beams:
                        row.finished.append((score / length, row.open[parent].words))
                elif (k := len(following)) < beams:
                    parents[n, k], tokens[n, k], scores[n, k] = parent, token, score
                    words, state = row.open[parent]
                    following.append(Beam([*words, token], constraint.after(state, token) if constraint else state))
            row.finished = sorted(row.finished, key=lambda f: -f[0])[:beams]
            most = float(scores[n].max())  # -inf where none is open
            if length == max_new_tokens:
                row.finished += [(s / length, b.words) for s, b in zip(scores[n].tolist(), following, strict=False)]
            elif most > -torch.inf and (len(row.finished) < beams or most / length > row.finished[-1][0]):
                row.open = following + row.open[:1] * (beams - len(following))
                keep.append(n)
        if not keep or length == max_new_tokens:
            break
        chosen = torch.tensor(keep)
        going, scores, tokens = [going[n] for n in keep], scores[chosen], tokens[chosen]
        prompts.select((chosen[:, None] * beams + parents[chosen]).flatten().to(device))
        prompts.feed(tokens.flatten().to(device))
        step_scores = prompts.next()
    return [row.best() for row in rows]
