"""Paired comparison of two cells of a study: effect, interval, p and a verdict a reader can rely on.

A cell is what one way of training gave: one list of prediction rows per training seed, all over the same
utterances. Two things change when an experiment is repeated: who speaks the test set, and the training seed.
Both are random factors, crossed (every seed answers every speaker), and both belong in the interval:

    variance of the value = variance between blocks / blocks + variance between seeds / seeds

each part by the jackknife (Efron & Tibshirani 1993, ch. 11), so that F1 and WER are treated as the ratios
they are. The sum counts the interaction of block and seed twice, which errs on the wide side.

Where runs of a cell were trained on several subsets of the recordings (`subset_seed`), those of one subset share
its luck, so their counts are averaged first and the subset takes the seed's place above; its variance holds what
the seeds within it add. Assumed: subsets are drawn independently of each other from one pool, about which the
interval speaks, and a training seed that returns in another subset makes the two runs no more alike. With one
subset, the seeds are the draws and nothing is said about other recordings.

A block is a speaker, because utterances of one speaker are not independent (Bisani & Ney 2004; Liu & Peng,
Interspeech 2020); where speakers are unknown it is an utterance, and the method says so.

    fewer than 40 blocks, or several seeds   t interval, degrees of freedom after Satterthwaite (1946)
    40 blocks or more, one seed              bootstrap over blocks, expanded percentiles

Several seeds never use the bootstrap: resampling two seeds shows half of their variance, and no percentile
brings back the rest. Simulated coverage: `tests/test_compare.py`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import special

from trainer.metrics import Metric, named
from trainer.rng import philox

Rows = Sequence[Mapping[str, Any]]
"""The prediction rows of one training seed: one task, one modality, each utterance once."""
Cell = Sequence[Rows]
"""One list of rows per training seed."""
Subsets = Sequence[Any] | None
"""Per run of a cell, its subset of the recordings; None: they had the same."""
Block = Literal["speaker", "utterance"]
Verdict = Literal["better", "worse", "no evidence"]

FEW_BLOCKS = 40
"""Below this many blocks the t interval: percentile intervals of few blocks are too narrow."""
ASSUMED_INTRACLASS = 0.1
"""Correlation of one speaker's utterances where the data cannot tell, because all of them came out the same."""


@dataclass(frozen=True)
class Interval:
    """One cell's value of a metric (a fraction) with its confidence interval."""

    value: float
    ci_low: float
    ci_high: float
    n: int
    """Utterances."""
    blocks: int
    """Independent units: speakers, or utterances where speakers are unknown."""
    method: str


@dataclass(frozen=True)
class Comparison:
    """The difference b - a of a metric between two cells on the same utterances."""

    metric: str
    effect: float
    """value(b) - value(a), in the metric's own units: for WER, negative means that b is better."""
    ci_low: float
    ci_high: float
    p: float
    """Two-sided, from the same method as the interval."""
    verdict: Verdict
    """Of b against a. "no evidence" is not "equal": read the interval for what is still possible."""
    n_utterances: int
    n_blocks: int
    block: Block
    n_seeds: tuple[int, int]
    """Training seeds of a and of b."""
    method: str


def interval(
    cell: Cell,
    metric: str | Metric,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    subsets: Subsets = None,
) -> Interval:
    """Value and confidence interval of one cell, counts of all seeds pooled, each of several subsets weighing the same.

    `subsets`: which subset of the recordings each run was trained on; default: one for all. Raises ValueError
    when seeds differ in their utterances, rows lack the metric, or there are fewer than two.
    """
    metric = named(metric) if isinstance(metric, str) else metric
    table = _tabulate([cell], metric, [subsets])
    value, low, high, _, method = _estimate(table, metric, 1 - confidence, resamples, seed, paired=False)
    top = math.inf if metric.upper is None else metric.upper
    return Interval(value, max(low, 0.0), min(high, top), table.n, table.blocks, method)


def compare(
    a: Cell,
    b: Cell,
    metric: str | Metric,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    margin: float = 0.0,
    paired_seeds: bool = False,
    subsets: tuple[Subsets, Subsets] = (None, None),
) -> Comparison:
    """The effect of b against the baseline a.

    The verdict is better or worse only when the interval excludes 0 and the effect exceeds `margin`, the
    smallest difference that would matter. Seeds of the two cells count as independent draws, which is wide if
    anything. `paired_seeds` pairs seed k of a with seed k of b, so that what they share cancels: for seeds
    that also choose the recordings, and three or more of them (a pair of differences has one degree of
    freedom). `subsets`: of a and of b, as of `interval`; where there are several, "seed" means subset here.
    Raises ValueError when the cells differ in their utterances, naming the first ids; else as `interval`.
    """
    metric = named(metric) if isinstance(metric, str) else metric
    table = _tabulate([a, b], metric, subsets)
    draws = [len(counts) for counts in table.counts]
    if paired_seeds and draws[0] != draws[1]:
        raise ValueError(f"paired_seeds needs equally many seeds; a has {draws[0]}, b has {draws[1]}")
    effect, low, high, p, method = _estimate(table, metric, 1 - confidence, resamples, seed, paired_seeds)
    verdict: Verdict = "no evidence"
    if (low > 0 or high < 0) and abs(effect) > margin:
        verdict = "better" if (effect > 0) == metric.higher_is_better else "worse"
    seeds = (len(a), len(b))
    return Comparison(
        metric.name, effect, low, high, p, verdict, table.n, table.blocks, table.block, seeds, method
    )


def holm(ps: Sequence[float]) -> list[float]:
    """p values adjusted for having asked several questions (Holm 1979), in the order given."""
    adjusted, highest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        highest = max(highest, min(1.0, ps[i] * (len(ps) - rank)))
        adjusted[i] = highest
    return adjusted


def smallest_detectable(
    n: int,
    blocks: int,
    base_rate: float,
    *,
    agreement: float = 0.5,
    intraclass: float = 0.02,
    seeds: int = 1,
    seed_sd: float = 0.0,
    power: float = 0.8,
    alpha: float = 0.05,
) -> float:
    """The smallest true difference of an accuracy that a paired comparison finds with probability `power`.

    n: test utterances, in `blocks` speakers of equal size (blocks = n where speakers are unknown).
    base_rate: the baseline's accuracy, between 0 and 1. Returns a fraction (0.03 = three points), at most 1.
    Assumes that right and wrong answers of the two systems correlate by `agreement` (phi; 0 = unrelated),
    that the differences of one speaker's utterances correlate by `intraclass` (design effect 1 + (n / blocks
    - 1) intraclass), and that each of `seeds` training seeds moves a cell's accuracy by `seed_sd` (standard
    deviation, a fraction) independently in both cells. The defaults are guesses until measured on one's own
    runs: read the result as an order of magnitude. Form: t test of a mean of paired block differences, blocks
    - 1 degrees of freedom.
    """
    if not (0 < base_rate < 1 and n >= blocks >= 2 and seeds >= 1):
        raise ValueError(
            "smallest_detectable needs 0 < base_rate < 1, n >= blocks >= 2 and seeds >= 1; "
            f"got base_rate={base_rate}, n={n}, blocks={blocks}, seeds={seeds}"
        )
    discordant = 2 * base_rate * (1 - base_rate) * (1 - agreement)
    design_effect = 1 + (n / blocks - 1) * intraclass
    error = math.sqrt(discordant * design_effect / n + 2 * seed_sd**2 / seeds)
    quantiles = _t(1 - alpha / 2, blocks - 1) + _t(power, blocks - 1)
    return min(1.0, float(quantiles * error))


# ------------------------------------------------------------------------------------------- counts by block


class _Table(NamedTuple):
    """Summed counts of one or two cells over the same utterances."""

    counts: list[np.ndarray]
    """Per cell (draws, blocks, k): a draw is a seed, or a subset of the recordings with its seeds averaged."""
    runs: list[int]
    """Per cell."""
    n: int
    differing: int
    """Utterances whose counts differ between the two cells (0 for one cell)."""
    block: Block
    note: str

    @property
    def blocks(self) -> int:
        return self.counts[0].shape[1]


def _tabulate(cells: Sequence[Cell], metric: Metric, subsets: Sequence[Subsets]) -> _Table:
    if not all(cells):
        raise ValueError("a cell has no seeds: give one list of prediction rows per training seed")
    draws = [_draws(cell, given) for cell, given in zip(cells, subsets, strict=True)]
    seeds = [[_by_utterance(rows, metric) for rows in cell] for cell in cells]
    first, ids = seeds[0][0], list(seeds[0][0])
    for other in (rows for cell in seeds for rows in cell):
        if other.keys() != first.keys():
            odd = sorted(other.keys() ^ first.keys())
            raise ValueError(
                f"{len(odd)} utterances are predicted on one side only: {', '.join(odd[:3])}"
                f"{', ...' if len(odd) > 3 else ''}; compare cells on the same test utterances"
            )
    if len(ids) < 2:
        raise ValueError(f"an interval needs at least 2 utterances; got {len(ids)}")
    block_of, block, note = _blocks(ids, [rows for cell in seeds for rows in cell])
    counts, means = [], []
    for cell, draw in zip(seeds, draws, strict=True):
        by_row = np.array([[rows[i]["counts"][metric.name] for i in ids] for rows in cell], dtype=float)
        summed = np.zeros((block_of.max() + 1, len(cell), by_row.shape[2]))
        np.add.at(summed, block_of, by_row.swapaxes(0, 1))
        by_run = summed.swapaxes(0, 1)
        counts.append(np.stack([by_run[members].mean(0) for members in draw]))
        means.append(by_row.mean(0))
    differing = int((abs(means[-1] - means[0]) > 1e-12).any(-1).sum())
    return _Table(counts, [len(cell) for cell in cells], len(ids), differing, block, note)


def _draws(cell: Cell, subsets: Subsets) -> list[list[int]]:
    """The runs that were drawn together: those of one subset of the recordings where there are several subsets, else
    each alone."""
    if subsets is None or len(set(subsets)) == 1:
        return [[k] for k in range(len(cell))]
    together: dict[Any, list[int]] = {}
    for k, subset in zip(range(len(cell)), subsets, strict=True):
        together.setdefault(subset, []).append(k)
    return list(together.values())


def _by_utterance(rows: Rows, metric: Metric) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        key = row["utterance"]
        if metric.name not in row["counts"]:
            have = ", ".join(row["counts"]) or "none"
            raise ValueError(f"utterance '{key}' has no counts of '{metric.name}' (it has: {have})")
        if key in found:
            raise ValueError(f"utterance '{key}' occurs twice in one seed; keep one task and one modality")
        found[key] = row
    return found


def _blocks(ids: list[str], seeds: list[dict[str, Mapping[str, Any]]]) -> tuple[np.ndarray, Block, str]:
    """(block index per utterance, kind, remark). A text row may lack the speaker its speech twin knows."""
    speakers = [next((s for rows in seeds if (s := rows[i].get("speaker")) is not None), None) for i in ids]
    known = dict.fromkeys(s for s in speakers if s is not None)
    if None not in speakers and len(known) > 1:
        index = {speaker: k for k, speaker in enumerate(known)}
        return np.array([index[s] for s in speakers if s is not None]), "speaker", f"{len(known)} speakers"
    if None not in speakers:
        note = "one speaker: utterances as blocks, nothing is said about other speakers"
    else:
        note = "speakers unknown: utterances as blocks, interval may be too narrow"
    return np.arange(len(ids)), "utterance", note


# ----------------------------------------------------------------------------------- estimate and its errors


def _difference(sums: Sequence[np.ndarray], metric: Metric) -> np.ndarray:
    """Value of one cell, or second minus first, of summed counts (..., k) per cell."""
    values = [metric.values(cell) for cell in sums]
    return values[-1] - values[0] if len(values) == 2 else values[0]


def _t(q: float, df: float) -> float:
    """The q quantile of Student's t. scipy.stats says the same from the same function, and takes every process that
    imports it half a second."""
    return float(special.stdtrit(df, q))


def _beyond(x: float, df: float) -> float:
    """The probability that Student's t is larger than x."""
    return float(special.stdtr(df, -x))


def _estimate(
    table: _Table, metric: Metric, alpha: float, resamples: int, seed: int, paired: bool
) -> tuple[float, float, float, float, str]:
    """(value, low, high, p, method) of the cell's value or the difference of two."""
    value = float(_difference([c.sum((0, 1)) for c in table.counts], metric))
    if math.isnan(value):
        raise ValueError(f"nothing was counted for '{metric.name}': no reference of these utterances has it")
    n_seeds = [len(c) for c in table.counts]
    if max(n_seeds) == 1 and table.blocks >= FEW_BLOCKS:
        low, high, p = _bootstrap(table, metric, alpha, resamples, seed)
        how = f"expanded percentile bootstrap over blocks, {resamples} resamples"
        spread = high > low
    else:
        parts = [_jackknife(table, metric, axis=1)]
        for cells in [range(len(n_seeds))] if paired else [range(k, k + 1) for k in range(len(n_seeds))]:
            if n_seeds[cells[0]] > 1:
                parts.append(_jackknife(table, metric, axis=0, cells=cells))
        variance = sum(v for v, _ in parts)
        # Rounding in the sums leaves about 1e-32.
        spread = variance > 1e-24
        df = variance**2 / sum(v**2 / d for v, d in parts) if spread else float(table.blocks - 1)
        half = _t(1 - alpha / 2, df) * math.sqrt(variance)
        low, high = value - half, value + half
        p = 2 * _beyond(abs(value) / math.sqrt(variance), df) if spread else 0.0
        how = f"t interval, {df:.1f} degrees of freedom"
    if not spread:
        # Every block says the same (720 of 720 right), which does not make the interval a point: an event of
        # this rate would show up nowhere with probability alpha / 2 (exact binomial bound at zero events).
        effective = table.n / (1 + (table.n / table.blocks - 1) * ASSUMED_INTRACLASS)
        half = 1 - (alpha / 2) ** (1 / effective)
        low, high = value - half, value + half
        p = min(1.0, 2 * max(1 - abs(value), 0.5) ** effective) if value else 1.0
        how = f"blocks do not differ: exact bound of {effective:.0f} effective utterances"
    if len(table.counts) == 2:
        # The sign test's floor: three utterances that changed are no evidence, however many did not.
        p = min(1.0, max(p, 2.0 ** (1 - table.differing)))
        if p > alpha:
            low, high = min(low, 0.0), max(high, 0.0)
    return value, low, high, p, "; ".join([how, table.note, _seed_note(n_seeds, table.runs, paired)])


def _seed_note(draws: list[int], runs: list[int], paired: bool) -> str:
    if max(draws) == 1:
        return "one seed: training randomness not included"
    what, averaged = "seeds", ""
    if draws != runs:
        counted = " and ".join(map(str, runs))
        what, averaged = "draws", f"; a draw is a subset of the recordings, its seeds averaged ({counted} runs)"
    if min(draws) == 1:
        note = f"{what} {draws[0]} and {draws[1]}: training randomness of the single seed not included"
    elif len(draws) == 1:
        note = f"{draws[0]} {what}"
    else:
        note = f"{draws[0]} {what}, paired" if paired else f"{draws[0]} and {draws[1]} {what}, independent"
    return note + averaged


def _jackknife(
    table: _Table, metric: Metric, axis: int, cells: Sequence[int] | None = None
) -> tuple[float, float]:
    """(variance of the estimate, degrees of freedom), leaving out one block (axis 1) or one seed (axis 0).

    Only `cells` lose their seed; the others stay whole.
    """
    sums = []
    for k, counts in enumerate(table.counts):
        total = counts.sum((0, 1))
        loses = cells is None or k in cells
        sums.append(total - counts.sum(1 - axis) if loses else total)
    left_out = np.atleast_1d(_difference(sums, metric))
    left_out = left_out[~np.isnan(left_out)]  # the one block that counted anything leaves nothing behind
    m = max(len(left_out), 2)
    return float((m - 1) / m * ((left_out - left_out.mean()) ** 2).sum()), float(m - 1)


def _bootstrap(
    table: _Table, metric: Metric, alpha: float, resamples: int, seed: int
) -> tuple[float, float, float]:
    """(low, high, two-sided p): blocks drawn with replacement, the same ones for both cells."""
    blocks = table.blocks
    per_block = [counts.sum(0) for counts in table.counts]
    sums = [np.empty((resamples, c.shape[1])) for c in per_block]
    for r in range(resamples):
        # The generator's own words, scaled by multiplication: the same draws under every NumPy version.
        words = philox(seed, f"bootstrap/{r}", blocks) >> np.uint64(32)
        drawn = (words * np.uint64(blocks)) >> np.uint64(32)
        times = np.bincount(drawn.astype(np.int64), minlength=blocks)
        for total, counts in zip(sums, per_block, strict=True):
            total[r] = times @ counts
    values = _difference(sums, metric)
    # Percentiles of a sample's resamples are too narrow by what tells t from z and n - 1 from n: 6 % at 40
    # blocks. Expanded percentiles (Hesterberg 2015, The American Statistician 69(4)) go out by as much; the p
    # value takes the same way back.
    wider = math.sqrt(blocks / (blocks - 1))
    tail = float(special.ndtr(-wider * _t(1 - alpha / 2, blocks - 1)))
    low, high = np.nanquantile(values, [tail, 1 - tail])
    beyond = (min((values <= 0).sum(), (values >= 0).sum()) + 1) / (resamples + 1)
    p = 2 * _beyond(-float(special.ndtri(min(beyond, 0.5))) / wider, blocks - 1)
    return float(low), float(high), float(p)
