"""Cross-modal distillation (SALAD; Cuervo et al., arXiv 2510.13632), and going on with actively selected speech.

Section 3 of the paper: L = alpha * L_DIST + (1 - alpha) * L_NLL, where the original text model, reading the words,
teaches the tuned one, hearing them; sentences are mixed in, one in three examples, and distilled alike (each is its own
transcript) against forgetting. Learning rates warm up, hold, and fall linearly to 0 over the last fifth of the steps.

Departures, each a field or named here:
- The predicted tokens are those of the task's answer behind one recording, unless `context: interleaved` asks for the
  paper's sequences, which alternate segments of text and speech and predict every word that is read. Those need the
  times of words, and an utterance is a sequence of its own; the paper's fill 2,048 tokens.
- The teacher is the base with its adapters off. With a base that has heard speech before, this is not the paper's
  original text model: misalignment and forgetting are against this base.
- LoRA at the job's own rate instead of full tuning at 5e-5 (3 B) or 5e-6 (7 B) and its own rate for a new adapter.
- The evaluation, spoken multiple choice and its text twin by length-normalised likelihood, is a test (or a guard) whose
  rows have `choices`: a task with `answer: choice` under `evaluate.decode.method: mean_likelihood`, examples in text by
  `evaluate.demos`. Inferred: choices are answers in the family's chat, and the end counts among an answer's tokens.
- Stage II: `attune build active` selects texts and has them spoken; its data set is the source `synthetic` of phase
  `active_selection`, which goes on from the Stage I job (`init_from` of the job), or of phase `both`, where both stages
  are one job.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from trainer.fields import Share, Spec, default, problem
from trainer.stage import Distillation, Divergences, Interleaved, Plain, Span, Stage
from trainer.strategies.budget import Budget, need

ACTIVE_SHARE = 1.9 / 25.9


class Salad(Spec):
    """The base reads the transcript and teaches the tuned model, which hears the recording."""

    paper: ClassVar[str] = "Closing the Gap Between Text and Speech Understanding in LLMs (arXiv 2510.13632)"
    name: Literal["salad"] = "salad"
    """The recipe's name."""
    phase: Literal["distillation", "active_selection", "both"] = "distillation"
    """Which of the paper's stages: the first; the second, which shows recordings, actively selected synthetic speech
    (`data.synthetic`, of `attune build active`) and sentences in equal parts, and begins where `init_from` says; or
    `both` in one job."""
    active_share: Share = Field(default=ACTIVE_SHARE, gt=0, lt=1)
    """Phase `both`: share of the steps in the second stage (paper: 1.9 B of 25.9 B tokens)."""
    context: Literal["answer", "interleaved"] = "answer"
    """What is predicted from what: the task's answer behind the recording, or running text between heard segments (the
    paper), which needs the times of words in `data`."""
    text_words: Span = (10, 30)
    """`interleaved`: fewest and most words of a segment that is read (the paper: 10 to 30)."""
    speech_words: Span = (5, 15)
    """`interleaved`: fewest and most words of a segment that is heard (the paper: 5 to 15)."""
    alpha: Share = 1.0
    """Weight of the divergence beside cross-entropy's 1 - alpha (the paper's method: 1; its analysis: 0 to 1)."""
    direction: Literal["forward", "reverse"] = "forward"
    """KL(base ‖ tuned) or KL(tuned ‖ base); `forward` is inferred, the paper does not say."""
    temperature: float = Field(default=1.0, gt=0)
    """Of both distributions (inferred: 1)."""
    text_share: Share | None = None
    """Share of sentences among the examples of the first stage. Default 1/3 where `data` gives text, else 0 (one of two
    values that are told of the paper, the other is 20 %)."""
    schedule: Literal["wsd", "as_given"] = "wsd"
    """Shape of the learning rate: the paper's `wsd`, or the job's own `optimizer.schedule`."""
    measure_every: int | None = Field(default=None, gt=0)
    """Steps between measurements of misalignment and forgetting on the test set; default: none are made."""

    @model_validator(mode="after")
    def _used(self) -> "Salad":
        spans = [name for name in ("text_words", "speech_words") if getattr(self, name) != default(self, name)]
        if self.context == "answer" and spans:
            raise ValueError(f"context answer has no segments; leave {', '.join(spans)} out")
        return self

    def stages(self, rows: Mapping[str, int], budget: Budget) -> list[Stage]:
        """The stages of the phase. `rows`: usable rows per source."""
        if self.phase == "active_selection":
            if self.text_share is not None:
                raise problem("recipe.text_share", "active_selection shows its sources in equal parts; leave it out")
            many = need(rows, "speech", "active_selection")
            return [self._active(rows, budget, budget.steps_for(budget.epochs * 3 * many))]
        first = self._distillation(rows, budget)
        if self.phase == "distillation":
            return [first]
        # `steps` are those of the whole job; without them the second stage comes on top of the first's epochs.
        whole = first.steps if budget.steps else first.steps / (1 - self.active_share)
        after = max(1, round(self.active_share * whole))
        before = first.steps - after if budget.steps else first.steps
        if before < 1:
            raise problem("steps", "phase both needs one step for each of its stages; use 2 or more", budget.steps)
        return [first.model_copy(update={"steps": before}), self._active(rows, budget, after)]

    def _active(self, rows: Mapping[str, int], budget: Budget, steps: int) -> Stage:
        """Recordings, selected speech and sentences in equal parts."""
        for source in ("speech", "synthetic", "text"):
            need(rows, source, f"phase {self.phase}")
        return self._stage("active", steps, dict.fromkeys(("text", "speech", "synthetic"), 1 / 3), budget)

    def _distillation(self, rows: Mapping[str, int], budget: Budget) -> Stage:
        """One stage over recordings and sentences."""
        spoken = "speech" if rows.get("speech") else "synthetic"
        many = need(rows, spoken if rows.get(spoken) else "speech", "distillation")
        share = self.text_share if self.text_share is not None else 1 / 3 if rows.get("text") else 0.0
        mix: dict = {spoken: 1.0}
        if share == 1:
            raise problem("recipe.text_share", "nothing would be heard; use a share below 1", 1.0)
        if share:
            need(rows, "text", f"text_share {share:g}")
            mix = {"text": share, spoken: 1 - share}
        return self._stage("distillation", budget.steps_for(budget.epochs * many / (1 - share)), mix, budget)

    def _stage(self, name: str, steps: int, mix: dict, budget: Budget) -> Stage:
        optimizer = budget.optimizer
        if self.schedule == "wsd":
            optimizer = optimizer.model_copy(update={"schedule": "wsd"})
        view = Plain()
        if self.context == "interleaved":
            view = Interleaved(text_words=self.text_words, speech_words=self.speech_words)
        return Stage(
            name=name,
            steps=steps,
            mix=mix,
            trainable=budget.trainable(hears=True),
            optimizer=optimizer,
            view=view,
            objective=Distillation(alpha=self.alpha, direction=self.direction, temperature=self.temperature),
            measure=Divergences(every=self.measure_every) if self.measure_every else None,
        )
