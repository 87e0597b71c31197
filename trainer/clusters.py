"""k-means in whole numbers (light): the same clusters on every machine.

Points are put on a grid of 16 bits and centres are rounded to it. All sums are then whole numbers that floating point
holds exactly, so the order in which a machine adds them is of no account.
"""

from typing import NamedTuple

import numpy as np

from trainer.rng import word

GRID = 32767
"""The largest coordinate of all points is put here."""
BLOCK = 1 << 14
"""Points whose distances are taken at a time."""


class Clusters(NamedTuple):
    """Points in clusters, none of them empty."""

    labels: np.ndarray
    """Cluster of each point, counted from 0, shape (points,), int64."""
    centres: np.ndarray
    """Centre of each cluster in the points' own unit, shape (clusters, width), float64."""


def kmeans(points: np.ndarray, k: int, seed: int, *, cap: int | None = None, rounds: int = 100) -> Clusters:
    """`k` clusters of points (points, width), fewer where fewer points are different; with `cap` none has more points
    than that.

    Lloyd's algorithm until nothing moves, `rounds` times at most, from the centres of k-means++ (Arthur and
    Vassilvitskii, SODA 2007). With `cap` every round assigns greedily: points ask for the nearest centre that has room,
    and a centre takes the nearest of those that ask. ValueError for no points, too small a cap, and what is not finite.
    """
    if points.ndim != 2 or not len(points) or k < 1:
        raise ValueError(f"{k} clusters of points of shape {points.shape}; give at least one of each")
    if cap is not None and cap * k < len(points):
        raise ValueError(f"{k} clusters of at most {cap} hold {cap * k} of {len(points)} points; raise cap or k")
    if not np.isfinite(points).all():
        raise ValueError("a point is not finite")
    scale = GRID / (float(np.abs(points).max()) or 1.0)
    grid = np.rint(points * scale)
    centres, labels = _spread(grid, k, seed, again=cap is not None), np.full(len(grid), -1)
    for _ in range(rounds):
        found = _nearest(grid, centres) if cap is None else _with_room(grid, centres, cap)
        if np.array_equal(found, labels):
            break
        labels = found
        centres = _means(grid, labels, centres)
    kept, labels = np.unique(labels, return_inverse=True)
    return Clusters(labels.astype(np.int64), centres[kept] / scale)


def _spread(grid: np.ndarray, k: int, seed: int, *, again: bool) -> np.ndarray:
    """First centres: points drawn one after the other, each in proportion to its squared distance from those before.
    Where there are no other points left, fewer; or the same ones `again`, for their room."""
    chosen = [word(seed, "kmeans", 0) % len(grid)]
    squares = np.einsum("ij,ij->i", grid, grid)

    def apart(n: int) -> np.ndarray:
        return squares - 2 * (grid @ grid[n]) + squares[n]

    left = apart(chosen[0])
    while len(chosen) < k and (again or left.any()):
        sums = np.cumsum(left)
        drawn = word(seed, "kmeans", len(chosen)) / 2**64 * sums[-1]
        at = min(int(np.searchsorted(sums, drawn, side="right")), len(grid) - 1)
        chosen.append(at if left[at] else int(np.argmax(left)))
        left = np.minimum(left, apart(chosen[-1]))
    return grid[chosen]


def _distances(grid: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Squared distances less what all centres have in common, (points, centres)."""
    return np.einsum("ij,ij->i", centres, centres) - 2 * (grid @ centres.T)


def _nearest(grid: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The nearest centre of each point; of equally near ones the first."""
    parts = range(0, len(grid), BLOCK)
    return np.concatenate([_distances(grid[n : n + BLOCK], centres).argmin(1) for n in parts])


def _with_room(grid: np.ndarray, centres: np.ndarray, cap: int) -> np.ndarray:
    """A centre for each point, at most `cap` points for each."""
    far = _distances(grid, centres)
    far += np.einsum("ij,ij->i", grid, grid)[:, None]
    labels, room = np.full(len(grid), -1), np.full(len(centres), cap)
    while len(waiting := np.flatnonzero(labels < 0)):
        asked = far[waiting].argmin(1)
        for centre in np.unique(asked):
            asking = waiting[asked == centre]
            near = asking[np.argsort(far[asking, centre], kind="stable")][: room[centre]]
            labels[near] = centre
            room[centre] -= len(near)
            if not room[centre]:
                far[:, centre] = np.inf
    return labels


def _means(grid: np.ndarray, labels: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Each cluster's mean on the grid; a cluster that lost all its points stays where it was."""
    centres = before.copy()
    for n in np.unique(labels):
        centres[n] = np.rint(grid[labels == n].mean(0))
    return centres
