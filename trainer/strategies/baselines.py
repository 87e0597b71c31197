"""The simple rows beside what was trained, as recipes: a job of one trains no model, and answers the test like any job.

`majority` needs no model at all, `untuned` is the base as it was loaded, `linear_probe` a linear classifier on the
base's frozen encoder (`trainer.baselines` answers for them).
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from trainer.fields import Spec
from trainer.stage import Stage
from trainer.strategies.budget import Budget, need


class Baseline(Spec):
    """A recipe without stages."""

    def stages(self, rows: Mapping[str, int], budget: Budget) -> list[Stage]:
        """None."""
        return []

    def learns_from(self, rows: Mapping[str, int]) -> list[str]:
        """The sources whose rows it sees."""
        return []


class Majority(Baseline):
    """The same answer to every utterance: the most frequent of the training rows."""

    paper: ClassVar[str] = "none: the most frequent answer"
    name: Literal["majority"] = "majority"
    """The recipe's name."""

    def learns_from(self, rows: Mapping[str, int]) -> list[str]:
        """All there are."""
        return [name for name, count in rows.items() if count]


class Untuned(Baseline):
    """The base as it was loaded, with the task's instruction and no example."""

    paper: ClassVar[str] = "none: the base as it is"
    name: Literal["untuned"] = "untuned"
    """The recipe's name."""


class LinearProbe(Baseline):
    """Logistic regression on mean and deviation of the frozen encoder's states, from the recordings alone."""

    paper: ClassVar[str] = "none: a linear classifier on the frozen encoder"
    name: Literal["linear_probe"] = "linear_probe"
    """The recipe's name."""

    def learns_from(self, rows: Mapping[str, int]) -> list[str]:
        """The recordings."""
        need(rows, "speech", "a linear probe")
        return ["speech"]
