"""`recipe: auto`: the plainest recipe that uses all the data there is. `attune explain` shows what it became."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from trainer.fields import Spec, problem
from trainer.stage import RECORDINGS, TEXTS, Stage
from trainer.strategies.budget import Budget
from trainer.strategies.limited_speech import LimitedSpeech
from trainer.strategies.sft import Sft


class Auto(Spec):
    """Chosen from the data: direct mixing where recordings stand beside text or synthetic speech, else plain."""

    paper: ClassVar[str] = "none: picks one of the others from the data"
    name: Literal["auto"] = "auto"
    """The recipe's name."""

    def chosen(self, rows: Mapping[str, int]) -> LimitedSpeech | Sft:
        """The recipe that `auto` stands for. Direct mixing rather than a curriculum, because at equal exposure
        no curriculum has beaten it in our own trials (docs/log.md)."""
        if not any(rows.values()):
            raise problem("data", "no rows to train on; give data.corpus, data.text or data.speech")
        if any(rows.get(s) for s in RECORDINGS) and any(rows.get(s) for s in (*TEXTS, "synthetic")):
            return LimitedSpeech(scheme="direct_mix", speech_presentations="per_epoch")
        return Sft()

    def stages(self, rows: Mapping[str, int], budget: Budget) -> list[Stage]:
        """The chosen recipe's stages."""
        return self.chosen(rows).stages(rows, budget)
