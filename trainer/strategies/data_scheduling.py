"""Several tasks, and in which order and company their examples come (Bhatti, Alam and Chowdhury, arXiv 2601.12494).

The paper compares Uniform Task Mixing, a Task-Progressive Curriculum (TPC), Aligner-Based Diverse Sampling (ADS:
"information-dense batches by selecting task- and label-balanced examples") and TPC followed by ADS. Of its text only
the abstracts could be read: the four names and these words are the paper's, everything below is inferred, and each
choice is a field with its default.

- uniform: each example's task is drawn, p(task) = 1 / tasks; temperature: p(task) ∝ rows^tau.
- tpc: stages by task, generative tasks first; cumulative (a stage shows all tasks so far) or sequential (its own alone,
  which shows negative transfer most clearly).
- ads: quotas of tasks and of labels in every step, clusters where answers are open, greedy k-centre on the output of
  the base's aligner (`trainer.stage.Diverse`). Its three parts come off one by one: `diversity: none` leaves the
  quotas, also `label_quota: false` that of tasks, also `task_quota: false` uniform mixing; `embeddings: random` is the
  control of the third.
- tpc_ads: TPC for the first `switch_at` of the steps, then ADS.

Each stage has a warm-up and a decay of its own (`optimizer.schedule: constant` is one rate all through).
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from trainer.fields import Share, Spec, nearest, problem
from trainer.stage import Balanced, Diverse, Mixture, Optimizer, Sampler, Source, Stage, hears, source_shares
from trainer.strategies.budget import SOURCES, Budget, in_proportion

BY_SCHEDULE = {
    "uniform": set(),
    "temperature": {"tau"},
    "tpc": {"order", "mode", "stage_shares", "replay"},
    "ads": {"tau", "task_quota", "label_quota", "diversity", "embeddings", "candidates", "clusters"},
}
BY_SCHEDULE["tpc_ads"] = BY_SCHEDULE["tpc"] | BY_SCHEDULE["ads"] | {"switch_at", "late_lr_ratio"}
"""The knobs that say something under each schedule."""


class DataScheduling(Spec):
    """Several tasks at once: mixed, one after the other, or in batches made to differ. With one task, or `temperature`
    and tau 1, it is `sft`."""

    paper: ClassVar[str] = "Harmonizing the Arabic Audio Space with Data Scheduling (arXiv 2601.12494)"
    name: Literal["data_scheduling"] = "data_scheduling"
    """The recipe's name."""
    schedule: Literal["uniform", "temperature", "tpc", "ads", "tpc_ads"] = "uniform"
    """Which of the paper's strategies; `temperature` lies between uniform mixing and plain fine-tuning."""
    tau: Share = 0.0
    """temperature, ads: shares of tasks in proportion to rows^tau; 0: all alike, 1: by their rows."""
    order: list[str] | None = Field(default=None, min_length=1)
    """tpc: the tasks in order. Default: those with open answers (transcripts, summaries) first, then those with labels,
    each in the job's order."""
    mode: Literal["cumulative", "sequential"] = "cumulative"
    """tpc: a stage shows all tasks so far, or its own alone."""
    stage_shares: list[Share] | None = Field(default=None, min_length=1)
    """tpc: share of its steps for each stage; add up to 1. Default: all alike."""
    replay: Share | None = Field(default=None, gt=0, lt=1)
    """tpc, cumulative: share of a stage's examples that is of earlier tasks. Default: all tasks so far alike."""
    task_quota: bool = True
    """ads: every step has its share of each task, rounded down or up; off: each example's task is drawn."""
    label_quota: bool = True
    """ads: the labels of a task take turns; clusters where its answer is open."""
    diversity: Literal["kcenter", "none"] = "kcenter"
    """ads: the candidate that is farthest from what the step has already, or the next in a seeded order."""
    embeddings: Literal["aligner", "random"] = "aligner"
    """ads: what tells utterances apart; `random` is the control."""
    candidates: int = Field(default=32, gt=0)
    """ads: rows that each place is filled from."""
    clusters: int = Field(default=8, gt=0)
    """ads: clusters of a task whose answer is open; 1: none."""
    switch_at: float = Field(default=0.7, gt=0, lt=1)
    """tpc_ads: share of the steps before the change."""
    late_lr_ratio: float = Field(default=1.0, gt=0)
    """tpc_ads: peak rate of the last stage over that of the others."""

    @model_validator(mode="after")
    def _says_something(self) -> "DataScheduling":
        # A stored job says every field, so a knob that is at its default has not been turned.
        turned = {k for k, field in type(self).model_fields.items() if getattr(self, k) != field.default}
        if unused := turned - BY_SCHEDULE[self.schedule] - {"name", "schedule"}:
            raise ValueError(f"schedule {self.schedule} has no use for {', '.join(sorted(unused))}; leave it out")
        if self.mode == "sequential" and self.replay is not None:
            raise ValueError("mode sequential shows no earlier task; leave replay out, or use mode: cumulative")
        if self.stage_shares is not None and abs(sum(self.stage_shares) - 1) > 1e-6:
            raise ValueError(f"stage_shares add up to {sum(self.stage_shares):.4g}, not to 1")
        if self.stage_shares is not None and 0 in self.stage_shares:
            raise ValueError("a stage of no steps shows nothing; leave its task out of order")
        return self

    def stages(self, rows: Mapping[str, int], budget: Budget) -> list[Stage]:
        """The schedule as stages. `rows`: usable rows per source; the budget knows those of each task."""
        plain = in_proportion(self.name, None, rows, budget)
        if len(budget.tasks) < 2 or (self.schedule == "temperature" and self.tau == 1):
            return [plain]
        if self.schedule in ("uniform", "temperature"):
            return [_stage(self.schedule, plain.steps, None, Balanced(tau=self.tau), budget, budget.optimizer)]
        said = {k: getattr(self, k) for k in Diverse.model_fields if k in BY_SCHEDULE["ads"]}
        ads = Diverse(**said)
        if self.schedule == "ads":
            return [_stage("ads", plain.steps, None, ads, budget, budget.optimizer)]
        first = plain.steps if self.schedule == "tpc" else round(plain.steps * self.switch_at)
        stages = self._progressive(first, budget)
        if self.schedule == "tpc_ads":
            late = budget.optimizer.model_copy(update={"peak_lr": budget.optimizer.peak_lr * self.late_lr_ratio})
            if first == plain.steps:
                raise problem("recipe.switch_at", f"leaves no step of {first} for ads; lower it", self.switch_at)
            stages.append(_stage("ads", plain.steps - first, None, ads, budget, late))
        return stages

    def _progressive(self, steps: int, budget: Budget) -> list[Stage]:
        """The stages of TPC in `steps` steps."""
        order = self.order or sorted(budget.tasks, key=lambda task: budget.tasks[task].closed)
        if unknown := [task for task in order if task not in budget.tasks]:
            message = f"no row is of this task; {nearest(unknown[0], budget.tasks)}"
            raise problem("recipe.order", message, unknown[0])
        if len(set(order)) < len(order) or len(order) < len(budget.tasks):
            message = f"names each of the job's tasks once: {', '.join(budget.tasks)}"
            raise problem("recipe.order", message, ", ".join(order))
        shares = self.stage_shares or [1 / len(order)] * len(order)
        if len(shares) != len(order):
            message = f"has {len(shares)} shares for {len(order)} tasks ({', '.join(order)}); give one for each"
            raise problem("recipe.stage_shares", message)
        ends = [round(steps * sum(shares[: k + 1])) for k in range(len(order))]
        lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        if min(lengths) < 1:
            message = f"a curriculum of {len(order)} tasks in {steps} steps leaves a stage none; raise steps or epochs"
            raise problem("recipe.schedule", message, self.schedule)
        stages = []
        for k, (task, length) in enumerate(zip(order, lengths, strict=True)):
            shown = [task] if self.mode == "sequential" else order[: k + 1]
            weights = None
            if self.replay is not None and k:
                weights = dict.fromkeys(order[:k], self.replay / k) | {task: 1 - self.replay}
            stages.append(_stage(f"tpc-{k + 1}", length, shown, Balanced(weights=weights), budget, budget.optimizer))
        return stages


def _stage(
    name: str, steps: int, tasks: list[str] | None, sampler: Sampler, budget: Budget, optimizer: Optimizer
) -> Stage:
    """A stage over tasks (None: all), its mix as it follows from their shares."""
    rows = {t: dict(found.rows) for t, found in budget.tasks.items() if tasks is None or t in tasks}
    sources: list[Source] = [s for s in SOURCES if any(s in own for own in rows.values())]
    assert not isinstance(sampler, Mixture)
    mix = dict(zip(sources, source_shares(sampler, rows, sources), strict=True))
    return Stage(
        name=name, steps=steps, mix=mix, tasks=tasks, sampler=sampler, optimizer=optimizer,  # type: ignore[arg-type]
        trainable=budget.trainable(hears=hears(sources)),
    )  # fmt: skip
