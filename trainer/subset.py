"""Which rows of a data set may be used: nested subsets by seed, so that 2 % is part of 5 % (light)."""

import math
from collections import defaultdict

from trainer.fields import problem
from trainer.manifest import Utterance
from trainer.rng import permutation
from trainer.spec import Data


def subset(rows: list[Utterance], data: Data, field: str) -> list[Utterance]:
    """The recordings that may be used: a prefix of one seeded order, so that 2 % is part of 5 %.

    The order depends on ids and `subset_seed` alone, not on the order of the manifest.
    """
    if data.speech_rows is not None:
        return first(rows, data.speech_rows, data.subset_seed, "data.speech_rows", "recordings")
    if data.speech_per_label is None:
        return first(rows, math.ceil(data.speech_fraction * len(rows) - 1e-9), data.subset_seed, field, "recordings")
    kept, seen = set(), defaultdict(int)
    for row in _in_order(rows, data.subset_seed):
        if not isinstance(row.label, str) or row.choices:
            what = "chooses among answers of its own" if row.choices else "has no single label"
            raise problem(
                "data.speech_per_label",
                f"row {row.id} of {field} {what}; use speech_fraction",
                data.speech_per_label,
            )
        if seen[row.label] < data.speech_per_label:
            seen[row.label] += 1
            kept.add(row.id)
    short = {k: n for k, n in seen.items() if n < data.speech_per_label}
    if short:
        label, n = min(short.items(), key=lambda kv: kv[1])
        raise problem(
            "data.speech_per_label",
            f"label '{label}' has {n} recordings; ask for at most {n}",
            data.speech_per_label,
        )
    return [u for u in rows if u.id in kept]


def first(rows: list[Utterance], count: int, seed: int, field: str, what: str) -> list[Utterance]:
    """The first `count` of the seeded order, as the manifest has them."""
    if count > len(rows):
        raise problem(field, f"there are {len(rows)} {what}; ask for at most {len(rows)}", count)
    if count == len(rows):
        return rows
    kept = {u.id for u in _in_order(rows, seed)[:count]}
    return [u for u in rows if u.id in kept]


def _in_order(rows: list[Utterance], seed: int) -> list[Utterance]:
    by_id = sorted(rows, key=lambda u: u.id)
    return [by_id[i] for i in permutation(seed, "subset", len(by_id))]
