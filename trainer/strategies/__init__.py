"""All strategies, one file each. A sixth paper is one more file and one more name in this list."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from trainer.strategies.auto import Auto
from trainer.strategies.baselines import Baseline, LinearProbe, Majority, Untuned
from trainer.strategies.budget import Budget
from trainer.strategies.contrastive import Contrastive
from trainer.strategies.custom import Custom
from trainer.strategies.label_permutation import LabelPermutation
from trainer.strategies.limited_speech import LimitedSpeech
from trainer.strategies.salad import Salad
from trainer.strategies.sft import Sft

STRATEGIES = (
    Auto, Sft, LimitedSpeech, LabelPermutation, Salad, Contrastive, Custom, Majority, Untuned, LinearProbe,
)  # fmt: skip

PAPERS = {
    "auto": "none: picks one of the others from the data",
    "sft": "none: plain fine-tuning, the control",
    "limited_speech": "Exploring Fine-Tuning of LALMs for SLU under Limited Speech Data (arXiv 2509.15389)",
    "label_permutation": "SLU on Unseen Tasks With In-Context Learning (arXiv 2505.07731)",
    "salad": "Closing the Gap Between Text and Speech Understanding in LLMs (arXiv 2510.13632)",
    "contrastive": "Contrastive Learning for Task-Independent SpeechLLM-Pretraining (arXiv 2412.15712)",
    "custom": "none: stages written out by hand",
    "majority": "none: the most frequent answer",
    "untuned": "none: the base as it is",
    "linear_probe": "none: a linear classifier on the frozen encoder",
}

NOT_BUILT_YET = {
    "data_scheduling": "arXiv 2601.12494",
}


def _by_name(value: Any) -> Any:
    name = value if isinstance(value, str) else value.get("name") if isinstance(value, dict) else None
    if name in NOT_BUILT_YET:
        raise ValueError(f"recipe '{name}' ({NOT_BUILT_YET[name]}) is not built yet; built: {', '.join(PAPERS)}")
    return {"name": value} if isinstance(value, str) else value


Recipe = Annotated[
    Auto | Sft | LimitedSpeech | LabelPermutation | Salad | Contrastive | Custom | Majority | Untuned | LinearProbe,
    Field(discriminator="name"),
    BeforeValidator(_by_name),
]

__all__ = [
    "NOT_BUILT_YET", "PAPERS", "STRATEGIES", "Auto", "Baseline", "Budget", "Contrastive", "Custom", "LabelPermutation",
    "LimitedSpeech", "LinearProbe", "Majority", "Recipe", "Salad", "Sft", "Untuned",
]  # fmt: skip
