"""Splits by speaker, by hash: the same rows and seed give the same split on every machine."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

_NAMES = {
    "train": "train", "training": "train", "trn": "train",
    "dev": "dev", "valid": "dev", "validation": "dev", "val": "dev", "develop": "dev", "devel": "dev",
    "test": "test", "testing": "test", "tst": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip

SPLITS = ("train", "dev", "test")
MANY_GROUPS = 50
SHARES: Mapping[str, float] = {"train": 0.8, "dev": 0.1, "test": 0.1}


def split_name(name: str) -> str | None:
    """`train`, `dev` or `test` for the names in use; None for anything else."""
    return _NAMES.get(name.strip().lower())


def split_groups(groups: Sequence[str], shares: Mapping[str, float] = SHARES, seed: int = 0) -> list[str]:
    """The split of every row, where `groups[i]` (a speaker, a text) must not be divided.

    With 50 groups or more each follows its own hash, so new data never moves old rows. With fewer, that would
    leave a split empty now and then: held-out splits are filled in order of hash up to their share, and each gets
    at least one group while there is one to spare for train.
    """
    sizes = Counter(groups)
    order = sorted(sizes, key=lambda group: (_hash(seed, group), group))
    if len(sizes) >= MANY_GROUPS:
        chosen = {group: _by_hash(_hash(seed, group), shares) for group in order}
    else:
        chosen = _by_size(order, sizes, shares)
    return [chosen[group] for group in groups]


def _hash(seed: int, group: str) -> float:
    """A number in [0, 1) that depends on seed and name alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{group}".encode()).digest()[:7], "big") / 2**56


def _by_hash(at: float, shares: Mapping[str, float]) -> str:
    total, upto = sum(shares.values()), 0.0
    for split, share in shares.items():
        upto += share / total
        if at < upto:
            return split
    return list(shares)[-1]


def _by_size(order: list[str], sizes: Mapping[str, int], shares: Mapping[str, float]) -> dict[str, str]:
    main = max(shares, key=lambda split: shares[split])
    chosen: dict[str, str] = {}
    rows = sum(sizes.values())
    for split in sorted((s for s in shares if s != main and shares[s] > 0), key=lambda s: s != "test"):
        target, taken = rows * shares[split] / sum(shares.values()), 0
        left = [group for group in order if group not in chosen]
        for group in left[:-1]:  # one group stays for train
            if taken + sizes[group] <= target * 1.25:
                chosen[group] = split
                taken += sizes[group]
        if not taken and len(left) > 1:
            chosen[min(left, key=lambda group: (sizes[group], order.index(group)))] = split
    return {group: chosen.get(group, main) for group in order}
