"""Plain supervised fine-tuning: every source in proportion to its rows. The control of all other strategies."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from trainer.fields import Spec
from trainer.stage import Source, Stage
from trainer.strategies.budget import Budget, in_proportion


class Sft(Spec):
    """Plain fine-tuning on the sources named, mixed in proportion to their rows."""

    paper: ClassVar[str] = "none: plain fine-tuning, the control"
    name: Literal["sft"] = "sft"
    """The recipe's name."""
    sources: list[Source] | None = Field(default=None, min_length=1)
    """Sources to train on; default: all that `data` gives."""

    def stages(self, rows: Mapping[str, int], budget: Budget) -> list[Stage]:
        """One stage over all sources. `rows`: usable rows per source."""
        return [in_proportion("sft", self.sources, rows, budget)]
