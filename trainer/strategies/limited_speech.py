"""Limited speech beside abundant text (Choi et al., arXiv 2509.15389).

Section 3 of the paper: *text-only* (encoder and adapter frozen), *direct mixing* of all text with the share of
the recordings that exist, and a *curriculum* of two text-only epochs and one mixed epoch whose learning rate
restarts lower (3e-6 after 5e-6, warm-up .02 after .04).

Departures, each a field or named here:
- LoRA at its own rate by default instead of full tuning; the ratios between the stages' rates are the paper's.
- The abundant side may be synthetic speech (`abundant: synthetic`), for a language that the base cannot read.
- `speech_only` and `synthetic_only` are added: the rows that a comparison needs beside the paper's three.
- How often the recordings are shown is said outright (`speech_presentations`), because a first trial found that
  exposure explained what looked like the merit of an order.
"""

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from trainer.fields import Share, Spec, problem
from trainer.stage import Stage
from trainer.strategies.budget import Budget, need

Scheme = Literal["text_only", "synthetic_only", "speech_only", "direct_mix", "curriculum"]


class LimitedSpeech(Spec):
    """Much labelled text (or synthetic speech), few labelled recordings."""

    paper: ClassVar[str] = "Exploring Fine-Tuning of LALMs for SLU under Limited Speech Data (arXiv 2509.15389)"
    name: Literal["limited_speech"] = "limited_speech"
    """The recipe's name."""
    scheme: Scheme = "direct_mix"
    """Which of the paper's schemes; `speech_only` and `synthetic_only` are controls."""
    abundant: Literal["auto", "text", "synthetic"] = "auto"
    """The abundant side: `text`, `synthetic`, or `auto` (text where `data` gives it, else synthetic)."""
    speech_presentations: Literal["once", "per_epoch"] | float | None = None
    """How often each recording is shown over the whole job: `once`, `per_epoch` (as often as an abundant row)
    or a number. Default `once` (arXiv 2509.15389: "the total amount of speech is the same" in direct mixing and
    curriculum). Not together with `speech_share`."""
    speech_share: Share | None = None
    """Share of recordings among the examples of the mixed steps, instead of `speech_presentations`."""
    late_share: float = Field(default=1 / 3, gt=0, lt=1)
    """Curriculum: share of the steps in the mixed last stage (paper: the last of 3 epochs)."""
    late_lr_ratio: float = Field(default=0.6, gt=0)
    """Curriculum: peak rate of the last stage over that of the first (paper: 3e-6 / 5e-6)."""
    late_warmup_ratio: float = Field(default=0.5, gt=0)
    """Curriculum: warm-up ratio of the last stage over that of the first (paper: .02 / .04)."""

    @model_validator(mode="after")
    def _one_word_for_the_mix(self) -> "LimitedSpeech":
        if self.speech_presentations is not None and self.speech_share is not None:
            raise ValueError(
                "speech_presentations and speech_share both say how often recordings are shown; keep one"
            )
        if isinstance(self.speech_presentations, float) and self.speech_presentations <= 0:
            raise ValueError(
                f"speech_presentations must be above 0, not {self.speech_presentations:g}; for none use text_only"
            )
        if self.scheme in ("text_only", "synthetic_only"):
            for knob in ("speech_presentations", "speech_share"):
                if getattr(self, knob) is not None:
                    raise ValueError(f"scheme {self.scheme} shows no recordings; leave {knob} out")
        if self.scheme == "text_only" and self.abundant == "synthetic":
            raise ValueError(
                "scheme text_only with abundant: synthetic: say synthetic_only, or abundant: text"
            )
        if self.scheme == "synthetic_only" and self.abundant == "text":
            raise ValueError("scheme synthetic_only with abundant: text: say text_only, or abundant: synthetic")
        return self

    def stages(self, rows: Mapping[str, int], budget: Budget) -> list[Stage]:
        """The scheme as ordered stages. `rows`: usable rows per source ('text', 'speech', 'synthetic')."""
        if self.scheme == "speech_only":
            return [self._speech_only(need(rows, "speech", "scheme speech_only"), budget)]
        abundant = self._abundant(rows)
        many = need(rows, abundant, f"scheme {self.scheme}")
        if self.scheme in ("text_only", "synthetic_only"):
            steps = budget.steps_for(budget.epochs * many)
            return [_stage(self.scheme, steps, {abundant: 1.0}, budget, budget.optimizer)]
        few = need(rows, "speech", f"scheme {self.scheme}")
        return self._mixed(abundant, many, few, budget)

    def _abundant(self, rows: Mapping[str, int]) -> str:
        if self.scheme in ("text_only", "synthetic_only"):
            return self.scheme.removesuffix("_only")
        if self.abundant != "auto":
            return self.abundant
        return "text" if rows.get("text") else "synthetic"

    def _speech_only(self, few: int, budget: Budget) -> Stage:
        if self.speech_share is not None:
            raise problem("recipe.speech_share", "scheme speech_only shows nothing but recordings; leave it out")
        times = self.speech_presentations
        shown = few * (budget.epochs if times in (None, "per_epoch") else 1 if times == "once" else float(times))
        batch = budget.global_batch
        if times is not None and budget.steps and abs(budget.steps * batch - shown) >= batch:
            raise problem(
                "recipe.speech_presentations",
                f"scheme speech_only shows each of {few} recordings {shown / few:g} times in "
                f"{math.ceil(shown / batch)} steps, but steps is {budget.steps}; keep one of the two",
                times,
            )
        return _stage("speech_only", budget.steps_for(shown), {"speech": 1.0}, budget, budget.optimizer)

    def _mixed(self, abundant: str, many: int, few: int, budget: Budget) -> list[Stage]:
        """Direct mixing and curriculum at the same number of steps and of speech presentations."""
        batch = budget.global_batch

        def mixed_steps(steps: int) -> int:
            if self.scheme == "direct_mix":
                return steps
            if steps < 2:
                message = "a curriculum needs at least 2 steps; raise steps or epochs"
                raise problem("recipe.scheme", message, "curriculum")
            return min(max(1, round(steps * self.late_share)), steps - 1)

        if self.speech_share is not None:
            if not 0 < self.speech_share < 1:
                raise problem("recipe.speech_share", "mixing needs a share between 0 and 1", self.speech_share)
            steps = budget.steps_for(budget.epochs * many / (1 - self.speech_share))
            late = mixed_steps(steps)
            share = self.speech_share
        else:
            times = self.speech_presentations
            wanted = budget.epochs * few if times == "per_epoch" else few * (1 if times in (None, "once") else times)
            steps = budget.steps_for(budget.epochs * many + wanted)
            late = mixed_steps(steps)
            # per_epoch: in proportion to the rows, which is exactly what plain fine-tuning does.
            overall = few / (many + few) if times == "per_epoch" else wanted / (steps * batch)
            shown = overall * steps * batch
            share = overall if self.scheme == "direct_mix" else overall * steps / late
            if share > 1:
                raise problem(
                    "recipe.speech_presentations",
                    f"{shown:.0f} presentations of {few} recordings do not fit into the {late} mixed steps of "
                    f"{batch} examples; show them at most {late * batch / few:.1f} times"
                    + (", or raise recipe.late_share" if self.scheme == "curriculum" else ", or raise steps"),
                    self.speech_presentations,
                )
        if self.scheme == "direct_mix":
            rest = many / (many + few) if self.speech_presentations == "per_epoch" else 1 - share
            return [_stage("direct_mix", steps, {abundant: rest, "speech": share}, budget, budget.optimizer)]
        optimizer = budget.optimizer
        gentler = optimizer.model_copy(
            update={
                "peak_lr": optimizer.peak_lr * self.late_lr_ratio,
                "warmup_ratio": optimizer.warmup_ratio * self.late_warmup_ratio,
            }
        )
        mix = {"speech": 1.0} if share >= 1 else {abundant: 1 - share, "speech": share}
        return [
            _stage(f"{abundant}_first", steps - late, {abundant: 1.0}, budget, optimizer),
            _stage("mixed_last", late, mix, budget, gentler),
        ]


def _stage(name: str, steps: int, mix: dict, budget: Budget, optimizer) -> Stage:
    hears = set(mix) != {"text"}
    return Stage(name=name, steps=steps, mix=mix, trainable=budget.trainable(hears=hears), optimizer=optimizer)
