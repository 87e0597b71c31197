"""Active selection (SALAD; arXiv 2510.13632, section 4): which texts of a broad collection are worth speaking (light).

Texts are clustered, the misalignment M of each cluster is measured on a probe set that is spoken already, clusters are
drawn in proportion to P_web · M^gamma, and texts inside them evenly. Inferred, as the paper does not say: nothing is
drawn twice, what is exhausted is left out from then on, and no cluster holds more than ROOM times its even share.
"""

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
from scipy.sparse.linalg import svds

from trainer.clusters import kmeans
from trainer.demonstrations import TfIdf
from trainer.metrics.normalise import basic
from trainer.rng import permutation, word

WIDTH = 64
"""Dimensions that TF-IDF vectors are brought down to."""
ROOM = 2
"""Texts that a cluster may hold, in even shares ("balanced" k-means)."""


def embedded(texts: Sequence[str]) -> np.ndarray:
    """Texts as points (texts, width), up to WIDTH wide: TF-IDF over words and character trigrams, its leading singular
    directions, each text of length 1. Needs no model."""
    vectors = TfIdf([basic(text) for text in texts]).vectors
    least = min(cast(tuple[int, int], vectors.shape))
    width = min(WIDTH, least - 1)
    if width < 1:
        return np.ones((len(texts), 1))
    left, values, _ = svds(vectors, width, v0=np.ones(least))
    points = left * values
    return points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)


def clustered(points: np.ndarray, probe: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(cluster of each text, cluster of each probe text: that of the nearest centre), from points (texts, width)."""
    cap = math.ceil(ROOM * len(points) / count)
    found = kmeans(points, count, seed, cap=cap)
    far = (found.centres**2).sum(1) - 2 * probe @ found.centres.T
    return found.labels, far.argmin(1)


def misalignment(
    clusters: np.ndarray, divergences: np.ndarray, tokens: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """(M of each cluster, its probe texts): the mean per predicted token over its probe texts, shapes (count,). A
    cluster without any gets the mean over all (inferred). `clusters`: of each probe text; `divergences`: its sum over
    its tokens, in nats."""
    sums = np.bincount(clusters, np.maximum(divergences, 0), count)  # rounding may leave a divergence of 0 below it
    many = np.bincount(clusters, tokens, count)
    whole = sums.sum() / many.sum()
    return np.where(many > 0, sums / np.maximum(many, 1), whole), np.bincount(clusters, minlength=count)


def target(web: np.ndarray, misaligned: np.ndarray, gamma: float) -> np.ndarray:
    """P_target of each cluster, in proportion to P_web · M^gamma; gamma 0 leaves P_web. ValueError where all of it is
    0."""
    most = float(misaligned.max()) or 1.0  # so that no power of it is beyond what numbers can say
    weight = web * (misaligned.astype(np.float64) / most) ** gamma
    if not weight.sum() > 0:
        raise ValueError("misalignment is 0 in every cluster, so there is nothing to select by; use strategy: uniform")
    return weight / weight.sum()


def order(clusters: np.ndarray, probability: np.ndarray, seed: int, count: int | None = None) -> list[int]:
    """The texts in the order that they are drawn in, `count` of them (all): a cluster by its probability among those
    that have texts left, one of its texts evenly. Where only clusters of probability 0 are left, these by their size.
    The first of a longer order are those of a shorter one."""
    members = [np.flatnonzero(clusters == c) for c in range(len(probability))]
    waiting = [m[permutation(seed, f"selection/{c}", len(m))].tolist()[::-1] for c, m in enumerate(members)]
    out: list[int] = []
    sums = _sums(waiting, probability)
    for n in range(len(clusters) if count is None else count):
        drawn = min(word(seed, "selection", n) / 2**64 * sums[-1], np.nextafter(sums[-1], 0))
        cluster = int(np.searchsorted(sums, drawn, side="right"))
        out.append(waiting[cluster].pop())
        if not waiting[cluster]:
            sums = _sums(waiting, probability)
            if not sums[-1]:
                break
    return out


def _sums(waiting: Sequence[Sequence[int]], probability: np.ndarray) -> np.ndarray:
    """Running sums of what clusters are drawn by."""
    left = np.array([len(w) for w in waiting])
    by = np.where(left > 0, probability, 0.0)
    return np.cumsum(by if by.sum() > 0 else left.astype(np.float64))
