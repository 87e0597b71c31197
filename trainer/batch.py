"""Micro-batches: which examples of a step are computed together, and the pack they become.

A pack lays its examples end to end, without padding. What the prompts of one group have in common before any
recording stands once, in front of the rest of each: every rest sees that prefix and itself. Causality makes this
equal to computing each example alone (the prefix cannot see what follows it), in value and in gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from trainer.example import Clip, Example, Heard


@dataclass(frozen=True, slots=True)
class Shared:
    """Examples of a step that may share a prefix."""

    length: int
    """Leading tokens that all of them have in common; 0: nothing to share."""
    members: tuple[int, ...]
    """Indices into the step's examples, in order of length."""


def groups(examples: Sequence[Example], *, audio_id: int, share: bool = True) -> list[Shared]:
    """The examples by what they are asked (`Example.asked`), each group with its common prefix: before any recording
    and before the last token of every prompt, whose state predicts the answer. `share=False`: one group, no prefix."""
    found: dict[str, list[int]] = {}
    for i, e in enumerate(examples):
        found.setdefault(e.asked if share else "", []).append(i)
    out = []
    for indices in found.values():
        indices.sort(key=lambda i: (len(examples[i]), i))
        prompts = [examples[i].prompt for i in indices]
        out.append(Shared(_common(prompts, audio_id) if share and len(indices) > 1 else 0, tuple(indices)))
    return out


def _common(prompts: Sequence[tuple[int, ...]], audio_id: int) -> int:
    most = min(map(len, prompts)) - 1
    first = np.array(prompts[0][:most])
    same = first != audio_id
    for other in prompts[1:]:
        same &= first == np.array(other[:most])
    return most if same.all() else int(same.argmin())


def assign(
    lengths: Sequence[int],
    shared: Sequence[Shared],
    budget: int,
    world_size: int = 1,
    *,
    even: bool = False,
    unit: int = 1,
) -> list[list[list[int]]]:
    """Micro-batches per rank, as indices into the step's examples: result[rank][micro-batch] = [index, …].

    Every example of the step is in exactly one micro-batch. A micro-batch costs the tokens that are computed (a
    shared prefix once per micro-batch) and stays within `budget`, or holds a single example. Rank r takes every
    `world_size`-th example in order of group and length, so that ranks do alike work. `even`: every rank gets the same
    number of micro-batches, by cutting some in two; a rank with too few examples for that gets empty ones. `unit`:
    so many examples in a row stay together, in order, and count as one whose tokens are all computed. Pure.
    """
    if unit > 1:
        starts = range(0, len(lengths), unit)
        whole = [sum(lengths[i : i + unit]) for i in starts]
        cut = assign(whole, [Shared(0, tuple(range(len(whole))))], budget, world_size, even=even)
        return [[[i for n in b for i in range(len(lengths))[starts[n] :][:unit]] for b in rank] for rank in cut]
    order = [(i, n) for n, group in enumerate(shared) for i in group.members]
    ranks = []
    for rank in range(world_size):
        batches: list[list[int]] = []
        cost, at = 0, -1
        for i, n in order[rank::world_size]:
            prefix = shared[n].length
            alone = lengths[i]
            more = alone - prefix if n == at else alone
            if batches and cost + more <= budget:
                batches[-1].append(i)
                cost += more
            else:
                batches.append([i])
                cost = alone
            at = n
        ranks.append(batches)
    most = max(map(len, ranks))
    for batches in ranks if even else []:
        while len(batches) < most:
            largest = max(range(len(batches)), key=lambda n: len(batches[n]), default=None)
            if largest is None or len(batches[largest]) < 2:
                batches.append([])
                continue
            half = len(batches[largest]) // 2
            batches[largest : largest + 1] = [batches[largest][:half], batches[largest][half:]]
    return ranks


@dataclass(frozen=True, slots=True)
class Group:
    """One prefix in a pack and the rests that see it."""

    prefix: tuple[int, int]
    """First place and length of the prefix; length 0: none."""
    rests: tuple[tuple[int, int], ...]
    """First place and length of each example's own tokens."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch as a pack."""

    ids: torch.Tensor
    """(time,) int64: all prefixes and rests end to end."""
    positions: torch.Tensor
    """(time,) int64: each token's place in its own prompt and answer."""
    segments: torch.Tensor
    """(time,) int64: number of the prefix or rest that a token belongs to."""
    sees: torch.Tensor
    """(time,) int64: number of the prefix that a token sees besides its own segment; its own where there is none."""
    groups: tuple[Group, ...]
    """The same layout in words of places."""
    waves: list[np.ndarray | Clip | Heard]
    """Recordings, or segments of them, in the order of their placeholders; as far as they were made ahead."""
    rows: torch.Tensor
    """(supervised,) example of each supervised token, counted as given to `collate`."""
    at: torch.Tensor
    """(supervised,) the place whose state predicts it, rising."""
    targets: torch.Tensor
    """(supervised,) the token to predict: the answer and its end, nothing else."""
    examples: tuple[Example, ...]
    """What it is made of, as given to `collate`."""
    given: int
    """Tokens of the examples, each counted whole: `given` / `time` is the sharing factor."""

    def __len__(self) -> int:
        return len(self.examples)

    def visible(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Whether the token at place `query` sees the one at place `key`: the one source of every attention mask."""
        near = (self.segments[key] == self.segments[query]) | (self.segments[key] == self.sees[query])
        return (key <= query) & near


def collate(
    examples: Sequence[Example],
    *,
    pad: int,
    audio_id: int,
    device: str | torch.device = "cpu",
    share: bool = True,
    multiple: int = 1,
) -> Batch:
    """The pack of a micro-batch; only answers are supervised, less what is context in them. `share=False` lays out
    every prompt whole. The pack's time is filled up to a `multiple` by `pad` tokens that nothing sees (for kernels with
    static shapes)."""
    ids: list[int] = []
    positions: list[int] = []
    segments: list[int] = []
    sees: list[int] = []
    laid, waves, rows, at, targets = [], [], [], [], []
    number = 0

    def lay(tokens: Sequence[int], first: int, seen: int | None) -> tuple[int, int]:
        nonlocal number
        start = len(ids)
        ids.extend(tokens)
        positions.extend(range(first, first + len(tokens)))
        segments.extend([number] * len(tokens))
        sees.extend([number if seen is None else seen] * len(tokens))
        number += 1
        return start, len(tokens)

    for group in groups(examples, audio_id=audio_id, share=share):
        n, seen = group.length, None
        prefix = (len(ids), 0)
        if n:
            seen = number
            prefix = lay(examples[group.members[0]].prompt[:n], 0, None)
        rests = []
        for i in group.members:
            e = examples[i]
            start, length = lay((*e.prompt[n:], *e.answer), n, seen)
            rests.append((start, length))
            first, predicted = start + length - len(e.answer), e.supervised
            taught = [e.answer[k] for k in predicted]
            assert audio_id not in taught, f"{e.name}: a placeholder among what is predicted"
            rows += [i] * len(taught)
            at += [first + k - 1 for k in predicted]
            targets += taught
            waves += e.heard or e.waves
        laid.append(Group(prefix, tuple(rests)))
    if filler := -len(ids) % multiple:
        laid.append(Group((len(ids), 0), (lay([pad] * filler, 0, None),)))
    # Two transfers instead of seven: each waits for the device.
    tokens = torch.tensor([ids, positions, segments, sees], device=device)
    supervised = torch.tensor([rows, at, targets], dtype=torch.long, device=device)
    return Batch(
        ids=tokens[0], positions=tokens[1], segments=tokens[2], sees=tokens[3], groups=tuple(laid), waves=waves,
        rows=supervised[0], at=supervised[1], targets=supervised[2], examples=tuple(examples),
        given=sum(map(len, examples)),
    )  # fmt: skip
