"""All strategies, one file each. Another paper is one more file and one more name in this list: docs/a-new-paper.md."""

from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, Field

from trainer.strategies.auto import Auto
from trainer.strategies.baselines import Baseline, LinearProbe, Majority, Untuned
from trainer.strategies.budget import Budget, TaskRows
from trainer.strategies.contrastive import Contrastive
from trainer.strategies.custom import Custom
from trainer.strategies.data_scheduling import DataScheduling
from trainer.strategies.label_permutation import LabelPermutation
from trainer.strategies.limited_speech import LimitedSpeech
from trainer.strategies.salad import Salad
from trainer.strategies.sft import Sft

Strategy = (
    Auto | Sft | LimitedSpeech | LabelPermutation | Salad | Contrastive | DataScheduling | Custom | Majority | Untuned
    | LinearProbe
)

STRATEGIES: tuple[type[Strategy], ...] = get_args(Strategy)

PAPERS = {strategy.model_fields["name"].default: strategy.paper for strategy in STRATEGIES}
"""What each recipe's name stands for."""


def _by_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Recipe = Annotated[Strategy, Field(discriminator="name"), BeforeValidator(_by_name)]

__all__ = [  # what the rest of the trainer knows by name; another strategy needs no place here
    "PAPERS", "STRATEGIES", "Auto", "Baseline", "Budget", "Custom", "LimitedSpeech", "LinearProbe",
    "Majority", "Recipe", "TaskRows", "Untuned",
]  # fmt: skip
