"""Translation: BLEU and chrF, as sufficient statistics that add up over a corpus.

BLEU (Papineni et al. 2002) is sacrebleu's (Post 2018) with its default exponential smoothing; the tokenisation is part
of the metric's name, because a BLEU without it is not a result. chrF is Popović 2015: characters up to 6-grams without
white space, beta 2. Both take the text as written, case included, and one reference.
"""

from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.metrics.normalise import one_text

if TYPE_CHECKING:
    from trainer.spec import Task

ORDER = 4
"""Longest word n-gram of BLEU."""
CHARACTERS, BETA = 6, 2
"""Longest character n-gram of chrF; how much more recall counts than precision."""


def bleu_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """[hypothesis length, reference length, matches of 1- to 4-grams, hypothesis' 1- to 4-grams], tokens as WMT's 13a
    cuts them."""
    return _bleu(one_text(reference, task), prediction, "13a")


def bleu_zh_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """As `bleu_counts`, Chinese characters each a token (sacrebleu's `zh`)."""
    return _bleu(one_text(reference, task), prediction, "zh")


def bleu_character_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """As `bleu_counts`, every character a token: for Japanese, Thai and other scripts without word spaces."""
    return _bleu(one_text(reference, task), prediction, "char")


def bleu(counts: np.ndarray) -> np.ndarray:
    """BLEU from (..., 10) summed counts, in [0, 1]; 0 when no n-gram matches or none of some order fits."""
    hypothesis, reference = counts[..., 0], counts[..., 1]
    matches, total = counts[..., 2 : 2 + ORDER], counts[..., 2 + ORDER :]
    # An order without a match counts as half a match, the next such order as a quarter, and so on.
    missed = matches == 0
    smoothed = np.where(missed, 0.5 ** np.cumsum(missed, axis=-1), matches)
    whole = (total > 0).all(axis=-1) & (matches > 0).any(axis=-1)
    precision = smoothed / np.where(total > 0, total, 1.0)
    ratio = reference / np.where(hypothesis > 0, hypothesis, 1.0)
    brevity = np.exp(np.minimum(0.0, 1.0 - ratio))
    return np.where(whole, brevity * np.exp(np.log(precision).mean(axis=-1)), 0.0)


def chrf_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """For n = 1 to 6: [hypothesis' n-grams, reference's, matches]; length 18."""
    expected, given = ("".join(text.split()) for text in (one_text(reference, task), prediction or ""))
    counts: list[float] = []
    for n in range(1, CHARACTERS + 1):
        wanted, made = _grams(expected, n), _grams(given, n)
        # A hypothesis n-gram without any reference n-gram of its length is not held against it, as in sacrebleu.
        counts += [made.total() if wanted else 0, wanted.total(), (made & wanted).total()]
    return [float(count) for count in counts]


def chrf(counts: np.ndarray) -> np.ndarray:
    """chrF from (..., 18) summed counts, in [0, 1]: F of precision and recall averaged over the orders that both sides
    have."""
    made, wanted, matches = counts[..., 0::3], counts[..., 1::3], counts[..., 2::3]
    both = (made > 0) & (wanted > 0)
    orders = np.maximum(both.sum(axis=-1), 1)
    precision = (both * matches / np.where(both, made, 1.0)).sum(axis=-1) / orders
    recall = (both * matches / np.where(both, wanted, 1.0)).sum(axis=-1) / orders
    weight = BETA**2 * precision + recall
    return np.divide((1 + BETA**2) * precision * recall, weight, out=np.zeros(np.shape(weight)), where=weight > 0)


def _grams(text: str, n: int) -> Counter[str]:
    return Counter(text[i : i + n] for i in range(len(text) - n + 1))


def _bleu(reference: str, prediction: str | None, tokenisation: str) -> list[float]:
    found = _scorer(tokenisation).corpus_score([prediction or ""], [[reference]])
    return [float(x) for x in (found.sys_len, found.ref_len, *found.counts, *found.totals)]


@cache
def _scorer(tokenisation: str) -> Any:
    """Imported when a task asks for BLEU: only trainers have sacrebleu installed, and reading counts needs it not."""
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=tokenisation, force=True)
