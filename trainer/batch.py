"""Micro-batches: which examples of a step are computed together, and the tensors they become."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from trainer.views import Example


def assign(token_lengths: Sequence[int], budget: int, world_size: int = 1) -> list[list[list[int]]]:
    """Micro-batches per rank, as indices into the step's examples: result[rank][micro-batch] = [index, …].

    Every example of the step is in exactly one micro-batch. A micro-batch of n examples costs n × its longest
    (padding counts) and stays within `budget` tokens, or holds a single example. Rank r takes every
    `world_size`-th example in order of length, so that ranks do alike work. Pure.
    """
    order = sorted(range(len(token_lengths)), key=lambda i: (token_lengths[i], i))
    ranks = []
    for rank in range(world_size):
        batches: list[list[int]] = []
        for i in order[rank::world_size]:  # rising lengths: the newcomer is the longest
            if batches and (len(batches[-1]) + 1) * token_lengths[i] <= budget:
                batches[-1].append(i)
            else:
                batches.append([i])
        ranks.append(batches)
    return ranks


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch, padded on the right."""

    ids: torch.Tensor
    """(batch, time) int64."""
    waves: list[np.ndarray]
    """Recordings of the rows that have one, in row order."""
    rows: torch.Tensor
    """(supervised,) row of each supervised token."""
    columns: torch.Tensor
    """(supervised,) the position whose state predicts it: one before its own."""
    targets: torch.Tensor
    """(supervised,) the token to predict: the answer and its end, nothing else."""
    shared: int
    """Leading positions whose ids are the same in all rows, before any recording and any supervised position."""

    def __len__(self) -> int:
        return len(self.ids)


def collate(examples: Sequence[Example], *, pad: int, audio_id: int, device: str | torch.device = "cpu") -> Batch:
    """Tensors of a micro-batch; only answers are supervised."""
    time = max(len(e) for e in examples)
    ids = np.full((len(examples), time), pad, dtype=np.int64)
    rows, columns, targets = [], [], []
    for r, e in enumerate(examples):
        assert audio_id not in e.answer, f"{e.name}: a placeholder in the answer"
        ids[r, : len(e)] = (*e.prompt, *e.answer)
        rows += [r] * len(e.answer)
        columns += range(len(e.prompt) - 1, len(e) - 1)
        targets += e.answer
    return Batch(
        ids=torch.from_numpy(ids).to(device),
        waves=[e.wave for e in examples if e.wave is not None],
        rows=torch.tensor(rows, device=device),
        columns=torch.tensor(columns, device=device),
        targets=torch.tensor(targets, device=device),
        shared=_shared(ids, min(len(e.prompt) for e in examples) - 1, audio_id),
    )


def _shared(ids: np.ndarray, most: int, audio_id: int) -> int:
    differs = ((ids != ids[:1]) | (ids == audio_id)).any(0)[:most]
    return int(differs.argmax()) if differs.any() else most
