"""A share that changes over a stage, of a source or of the peak learning rate."""

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from trainer.fields import Share, Spec


class _Curve(Spec):
    """A share over the progress through a stage, from 0 to 1."""

    def area(self, progress: np.ndarray) -> np.ndarray:
        """The curve integrated from 0 up to each progress, exactly; shape as `progress`."""
        raise NotImplementedError

    def cumulative(self, count: int) -> np.ndarray:
        """The curve integrated up to each of `count` equal slots of the stage, in slots; shape (count,)."""
        return count * self.area(np.arange(1, count + 1) / count)


class Curve(_Curve):
    """A share that changes over a stage: straight lines between points."""

    kind: Literal["piecewise"] = "piecewise"
    """Which curve."""
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

    def area(self, progress: np.ndarray) -> np.ndarray:
        """Trapezes."""
        return _under_lines(self.points, progress)


class Steps(_Curve):
    """A share that is held from each point to the next."""

    kind: Literal["step"]
    """Which curve."""
    points: list[tuple[Share, Share]] = Field(min_length=1)
    """(progress from which it holds, share) pairs, the first at 0, progress rising and below 1."""

    @field_validator("points")
    @classmethod
    def _rising(cls, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        progress = [x for x, _ in points]
        if progress[0] != 0 or progress[-1] >= 1 or progress != sorted(set(progress)):
            raise ValueError("the first point holds from 0, each further one from a later progress below 1")
        return points

    def area(self, progress: np.ndarray) -> np.ndarray:
        """Rectangles."""
        ends = [x for x, _ in self.points[1:]] + [1.0]
        level = [(x, y) for (begin, y), end in zip(self.points, ends, strict=True) for x in (begin, end)]
        return _under_lines(level, progress)


class Ramp(_Curve):
    """A share that goes from `start` to `end` by a formula, and stays there."""

    kind: Literal["linear", "cosine", "competence"]
    """`linear`: a straight line. `cosine`: half a cosine, flat at both ends. `competence`: sqrt(t (end² - start²) +
    start²) at progress t of the way, steep at first: the square-root competence of arXiv 1903.09848 (with `end` 1 and
    `start` its c0), which is there the share of the sentences, easiest first, that may be drawn, here a source's."""
    start: Share
    """Share at the beginning."""
    end: Share
    """Share from `until` on."""
    until: Share = Field(default=1.0, gt=0)
    """Progress at which `end` is reached."""

    def area(self, progress: np.ndarray) -> np.ndarray:
        """The integral of the formula up to `until`, a rectangle behind it."""
        at = np.minimum(progress, self.until) / self.until
        a, b = self.start, self.end
        match self.kind:
            case "linear":
                under = at * (a + (b - a) * at / 2)
            case "cosine":
                under = at * (a + b) / 2 + (a - b) / 2 * np.sin(np.pi * at) / np.pi
            case "competence":
                top = np.sqrt(at * (b * b - a * a) + a * a)
                # ∫ sqrt(a² + s t) dt = 2/3 (top³ - a³) / s, with s t = (top - a)(top + a) divided out.
                under = 2 / 3 * at * (a * a + a * top + top * top) / np.maximum(a + top, np.finfo(float).tiny)
        return self.until * under + b * np.maximum(progress - self.until, 0)


class Rest(_Curve):
    """What other shares leave: 1 less their sum. In a mix `rest` is short for it."""

    kind: Literal["rest"]
    """Which curve."""
    of: list["AnyShare"] = Field(min_length=1)
    """The other shares."""

    @model_validator(mode="after")
    def _leaves_something(self) -> "Rest":
        if (least := float(shares(self, 1000).min())) < -1e-6:
            raise ValueError(f"the other shares add up to {1 - least:.4g} at some time; lower them to 1")
        return self

    def area(self, progress: np.ndarray) -> np.ndarray:
        """What is left of the whole."""
        return np.asarray(progress, dtype=np.float64) - sum(area(share, progress) for share in self.of)


AnyCurve = Curve | Steps | Ramp | Rest


def _kind(value: Any) -> str:
    if isinstance(value, AnyCurve):
        return value.kind
    return str(value.get("kind", "piecewise")) if isinstance(value, dict) else "constant"


AnyShare = Annotated[
    Annotated[Share, Tag("constant")]
    | Annotated[Curve, Tag("piecewise")]
    | Annotated[Steps, Tag("step")]
    | Annotated[Ramp, Tag("linear")]
    | Annotated[Ramp, Tag("cosine")]
    | Annotated[Ramp, Tag("competence")]
    | Annotated[Rest, Tag("rest")],
    Discriminator(_kind),
]
"""A constant share or a curve."""
Shape = Annotated[
    Annotated[Literal["cosine", "linear", "wsd", "constant"], Tag("constant")]
    | Annotated[Curve, Tag("piecewise")]
    | Annotated[Steps, Tag("step")]
    | Annotated[Ramp, Tag("linear")]
    | Annotated[Ramp, Tag("cosine")]
    | Annotated[Ramp, Tag("competence")],
    Discriminator(_kind),
]
"""A learning-rate schedule by name, or a curve of shares of the peak."""
Rest.model_rebuild()


def _under_lines(points: list[tuple[float, float]], progress: np.ndarray) -> np.ndarray:
    """Area under straight lines between points, up to each progress."""
    x, y = (np.array(v, dtype=np.float64) for v in zip(*points, strict=True))
    area = np.concatenate([[0.0], np.cumsum(np.diff(x) * (y[1:] + y[:-1]) / 2)])
    k = np.clip(np.searchsorted(x, progress, side="left"), 1, len(x) - 1)
    width = np.where(x[k] > x[k - 1], x[k] - x[k - 1], 1.0)
    rise, run = y[k] - y[k - 1], progress - x[k - 1]
    return area[k - 1] + run * y[k - 1] + rise * run * run / (2 * width)


def area(share: float | AnyCurve, progress: np.ndarray) -> np.ndarray:
    """A share integrated from 0 up to each progress; shape as `progress`."""
    return share * progress if isinstance(share, float | int) else share.area(progress)


def cumulative(curve: float | AnyCurve, count: int) -> np.ndarray:
    """Examples due up to and including each of `count` presentations, shape (count,) float64."""
    if isinstance(curve, float | int):
        return curve * np.arange(1, count + 1, dtype=np.float64)
    return curve.cumulative(count)


def shares(curve: float | AnyCurve, count: int) -> np.ndarray:
    """The share in each of `count` equal slots of the stage, shape (count,)."""
    return np.diff(cumulative(curve, count), prepend=0.0)


def mean(curve: float | AnyCurve) -> float:
    """The mean share over the stage."""
    return float(area(curve, np.ones(1))[0])
