"""Benchmark suites for CI (light). Their shape is checked; running them needs the service."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from trainer.fields import Share, Spec


def _worse(value: Any) -> Any:
    return float(value.strip().rstrip("%")) / 100 if isinstance(value, str) and value.strip().endswith("%") else value


class Gate(Spec):
    """When a metric blocks."""

    worse_by: Annotated[float, BeforeValidator(_worse)] | None = None
    """Blocks if worse than the baseline by more than this (points, or a share of the baseline)."""
    max: Share | None = None
    """Blocks above this value."""


class Suite(Spec):
    """A benchmark suite for CI. Its shape is checked; running it needs the service and is refused by name."""

    suite: str
    """Name of the suite."""
    baseline: dict[str, str]
    """What to compare with, e.g. `{branch: main}`."""
    jobs: list[str] = Field(min_length=1)
    """Job files, relative to the suite."""
    seeds: list[int] = Field(min_length=1)
    """Training seeds of every job."""
    gate: dict[str, Gate]
    """Per metric, what blocks a merge."""
    inconclusive: Literal["pass", "fail"] = "pass"
    """Verdict where the interval decides nothing."""
