"""Plain supervised fine-tuning: every source in proportion to its rows. The control of all other strategies."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from trainer.fields import Spec, problem
from trainer.stage import Source, Stage
from trainer.strategies.budget import Budget


class Sft(Spec):
    """Plain fine-tuning on the sources named, mixed in proportion to their rows."""

    name: Literal["sft"] = "sft"
    """The recipe's name."""
    sources: list[Source] | None = Field(default=None, min_length=1)
    """Sources to train on; default: all that `data` gives."""

    def stages(self, rows: Mapping[str, int], budget: Budget) -> list[Stage]:
        """One stage over all sources. `rows`: usable rows per source."""
        chosen = self.sources or [s for s in ("text", "synthetic", "speech") if rows.get(s)]
        missing = [s for s in chosen if not rows.get(s)]
        if missing or not chosen:
            raise problem(
                "recipe.sources", f"no rows in {', '.join(missing) or 'any source'}; give them in data"
            )
        total = sum(rows[s] for s in chosen)
        mix: dict[Source, float] = {s: rows[s] / total for s in chosen}  # type: ignore[misc]
        return [
            Stage(
                name="sft",
                steps=budget.steps_for(budget.epochs * total),
                mix=mix,  # type: ignore[arg-type]
                trainable=budget.trainable(hears=chosen != ["text"]),
                optimizer=budget.optimizer,
            )
        ]
