"""A share that changes over a stage."""

import numpy as np
from pydantic import field_validator

from trainer.fields import Share, Spec


class Curve(Spec):
    """A share that changes over a stage: straight lines between points."""

    points: list[tuple[Share, Share]]
    """(progress through the stage, share) pairs, progress rising from 0 to 1; two pairs at one progress
    make a step."""

    @field_validator("points")
    @classmethod
    def _rising(cls, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        progress = [x for x, _ in points]
        if len(points) < 2 or progress != sorted(progress) or progress[0] != 0 or progress[-1] != 1:
            raise ValueError("give at least two points with progress rising from 0 to 1")
        return points

    def cumulative(self, count: int) -> np.ndarray:
        """The curve integrated up to each of `count` equal slots of the stage, in slots; shape (count,)."""
        x, y = (np.array(v, dtype=np.float64) for v in zip(*self.points, strict=True))
        area = np.concatenate([[0.0], np.cumsum(np.diff(x) * (y[1:] + y[:-1]) / 2)])
        at = np.arange(1, count + 1) / count
        k = np.clip(np.searchsorted(x, at, side="left"), 1, len(x) - 1)
        width = np.where(x[k] > x[k - 1], x[k] - x[k - 1], 1.0)
        rise, run = y[k] - y[k - 1], at - x[k - 1]
        return count * (area[k - 1] + run * y[k - 1] + rise * run * run / (2 * width))


def cumulative(curve: float | Curve, count: int) -> np.ndarray:
    """Examples due up to and including each of `count` presentations, shape (count,) float64."""
    if isinstance(curve, Curve):
        return curve.cumulative(count)
    return curve * np.arange(1, count + 1, dtype=np.float64)


def shares(curve: float | Curve, count: int) -> np.ndarray:
    """The share in each of `count` equal slots of the stage, shape (count,)."""
    return np.diff(cumulative(curve, count), prepend=0.0)
