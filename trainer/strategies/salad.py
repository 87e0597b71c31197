"""Cross-modal distillation (SALAD; Cuervo et al., arXiv 2510.13632), its first stage.

Section 3 of the paper: L = alpha * L_DIST + (1 - alpha) * L_NLL, where the original text model, reading the words,
teaches the tuned one, hearing them; sentences are mixed in, one in three examples, and distilled alike (each is its own
transcript) against forgetting. Learning rates warm up, hold, and fall linearly to 0 over the last fifth of the steps.

Departures, each a field or named here:
- The predicted tokens are those of the task's answer behind one recording: the paper's sequences alternate segments of
  text and speech and predict every next word, which needs the times of words.
- The teacher is the base with its adapters off. With a base that has heard speech before, this is not the paper's
  original text model: misalignment and forgetting are against this base.
- LoRA at the job's own rate instead of full tuning at 5e-5 (3 B) or 5e-6 (7 B) and its own rate for a new adapter.
- The second stage (active selection and synthesis of more speech) is refused by name.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from trainer.fields import Share, Spec, problem
from trainer.stage import Distillation, Divergences, Stage
from trainer.strategies.budget import Budget, need


class Salad(Spec):
    """The base reads the transcript and teaches the tuned model, which hears the recording."""

    paper: ClassVar[str] = "Closing the Gap Between Text and Speech Understanding in LLMs (arXiv 2510.13632)"
    name: Literal["salad"] = "salad"
    """The recipe's name."""
    phase: Literal["distillation", "active_selection"] = "distillation"
    """Which of the paper's stages; the second (`active_selection`) is not built yet."""
    alpha: Share = 1.0
    """Weight of the divergence beside cross-entropy's 1 - alpha (the paper's method: 1; its analysis: 0 to 1)."""
    direction: Literal["forward", "reverse"] = "forward"
    """KL(base ‖ tuned) or KL(tuned ‖ base); `forward` is inferred, the paper does not say."""
    temperature: float = Field(default=1.0, gt=0)
    """Of both distributions (inferred: 1)."""
    text_share: Share | None = None
    """Share of sentences among the examples. Default 1/3 where `data` gives text, else 0 (one of two values that are
    told of the paper, the other is 20 %)."""
    schedule: Literal["wsd", "as_given"] = "wsd"
    """Shape of the learning rate: the paper's `wsd`, or the job's own `optimizer.schedule`."""
    measure_every: int | None = Field(default=None, gt=0)
    """Steps between measurements of misalignment and forgetting on the test set; default: none are made."""

    @field_validator("phase")
    @classmethod
    def _built(cls, phase: str) -> str:
        if phase == "active_selection":
            raise ValueError("active_selection is not built yet; use phase: distillation")
        return phase

    def stages(self, rows: Mapping[str, int], budget: Budget) -> list[Stage]:
        """One stage over recordings and sentences. `rows`: usable rows per source."""
        spoken = "speech" if rows.get("speech") else "synthetic"
        many = need(rows, spoken if rows.get(spoken) else "speech", "distillation")
        share = self.text_share if self.text_share is not None else 1 / 3 if rows.get("text") else 0.0
        mix: dict = {spoken: 1.0}
        if share == 1:
            raise problem("recipe.text_share", "nothing would be heard; use a share below 1", 1.0)
        if share:
            need(rows, "text", f"text_share {share:g}")
            mix = {"text": share, spoken: 1 - share}
        optimizer = budget.optimizer
        if self.schedule == "wsd":
            optimizer = optimizer.model_copy(update={"schedule": "wsd"})
        objective = Distillation(alpha=self.alpha, direction=self.direction, temperature=self.temperature)
        return [
            Stage(
                name="distillation",
                steps=budget.steps_for(budget.epochs * many / (1 - share)),
                mix=mix,
                trainable=budget.trainable(hears=True),
                optimizer=optimizer,
                objective=objective,
                measure=Divergences(every=self.measure_every) if self.measure_every else None,
            )
        ]
