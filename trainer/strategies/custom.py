"""A recipe written out by hand: the stages themselves."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from trainer.fields import Spec
from trainer.stage import Stage
from trainer.strategies.budget import Budget, need


class Custom(Spec):
    """Stages exactly as given; nothing is added."""

    paper: ClassVar[str] = "none: stages written out by hand"
    name: Literal["custom"] = "custom"
    """The recipe's name."""
    stages_: list[Stage] = Field(alias="stages", min_length=1)
    """The stages in order."""

    @field_validator("stages_")
    @classmethod
    def _names_differ(cls, stages: list[Stage]) -> list[Stage]:
        names = [s.name for s in stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stage names must differ: {', '.join(names)}")
        return stages

    def stages(self, rows: Mapping[str, int], budget: Budget) -> list[Stage]:
        """The given stages, after a check that their sources have rows."""
        for stage in self.stages_:
            for source in stage.mix:
                need(rows, source, f"stage {stage.name}")
        return self.stages_
