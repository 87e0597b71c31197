"""The one optimisation loop. Executes stages as data and knows no paper.
 Step t of a stage: its presentations from the plan → examples → micro-batches → gradients of the summed loss
→ one reduction over ranks → divided by the step's supervised tokens → clipped → AdamW. How a step is cut into
micro-batches or spread over ranks changes its result by rounding only.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from trainer import checkpoint as checkpoints
from trainer.ahead import Ahead, Share
from trainer.checkpoint import Checkpoint
from trainer.fields import problem
from trainer.memory import out_of_memory
from trainer.objectives import Size, objective_loss
from trainer.objectives.misalignment import measure
from trainer.plan import StagePlan
from trainer.ranks import ACTIONS, ElsewhereError, Ranks, checked
from trainer.rng import seed_of
from trainer.schedule import lr_scale
from trainer.stage import Stage, shares
from trainer.store import Store
from trainer.views import Example

Event = dict[str, Any]


@dataclass
class Outcome:
    """How the loop ended."""

    step: int
    """Finished steps over all stages."""
    reason: str | None
    """None: all stages done; else `yielded`, `user`, `diverged` or `out_of_memory`."""
    message: str
    """In words; empty where all went well."""
    logs: list[str]
    """Keys of the log segments that lead here."""


@dataclass
class Trial:
    """One rank's share of a step's gradients has been computed (or memory ran out)."""

    tokens: int = 0
    loss: float = 0.0
    out_of_memory: bool = False
    data_seconds: float = 0.0
    """Seconds that the step waited for its examples, decoded and with their frames made."""
    given: int = 0
    """Tokens of the rank's examples, each counted whole."""
    computed: int = 0
    """Tokens that the language model computed for them."""
    figures: list[float] = field(default_factory=list)
    """The objective's figures, each summed over the rank's examples."""


class Loop:
    """All that a run of the stages needs; `run` executes them. `examples` makes the example of (stage, source, row,
    view, number of the presentation in the stage); `outlines` the same without its recording, by which several ranks
    know who makes which: without them every rank makes all."""

    def __init__(
        self,
        model,
        stages: Sequence[Stage],
        plans: Sequence[StagePlan],
        examples: Callable[[Stage, str, int, int, int], Example],
        *,
        global_batch: int,
        seed: int,
        budget: int,
        checkpoint_every: int,
        store: Store | None = None,
        attempt: int = 1,
        sink: Callable[[Event], None] = lambda event: None,
        control: Callable[[], str] = lambda: "continue",
        ranks: Ranks | None = None,
        judge: Callable[[int], Sequence[Event]] = lambda step: (),
        reference: Callable[[Stage], list[Example]] = lambda stage: [],
        outlines: Callable[[Stage, str, int, int, int], Example] | None = None,
    ):
        self.model, self.stages, self.plans, self.examples = model, stages, plans, examples
        self.global_batch, self.seed, self.budget = global_batch, seed, budget
        self.checkpoint_every, self.store, self.attempt = checkpoint_every, store, attempt
        self.sink, self.control, self.ranks, self.judge = sink, control, ranks or Ranks(), judge
        self.reference, self.outlines = reference, outlines
        self.parameters = list(model.trained.values())
        parts: dict[str, list] = {}
        for name, parameter in model.trained.items():
            parts.setdefault(model.part_of(name), []).append(parameter)
        # foreach=False: one parameter after the other, so that the bits do not depend on how tensors are
        # grouped.
        groups = [{"params": p, "part": k} for k, p in parts.items()]
        self.optimizer = torch.optim.AdamW(groups, foreach=False, fused=model.device.type == "cuda")
        self.step = 0
        self.action = "continue"
        self.logs: list[str] = []
        self._unsaved: list[Event] = []
        self._saved_at = 0

    def resume(self, found: Checkpoint) -> None:
        """Continue from a checkpoint: the same bits as if nothing had happened."""
        self.model.load_files(found.adapter)
        checkpoints.load_optimizer(self.optimizer, self.model.trained, found.optimizer)
        self.step = self._saved_at = found.step
        self.budget, self.logs = found.budget, list(found.logs)

    def run(self) -> Outcome:
        """Executes what is left of the stages."""
        if self.step and self.step % self.checkpoint_every == 0:
            self._mark()  # the attempt that wrote it may have left before it was judged
        first = 0
        for stage, plan in zip(self.stages, self.plans, strict=True):
            if self.step < first + stage.steps:
                outcome = self._run_stage(stage, plan, first)
                if outcome is not None:
                    return outcome
            first += stage.steps
        self._mark()
        return Outcome(self.step, None, "", self.logs)

    def gradients(self, stage: Stage, plan: StagePlan) -> Iterator[tuple[float, torch.Tensor]]:
        """(L2 norm, all of it in a row) of the gradient of each step of a plan, at the weights as they are: nothing is
        learnt. MemoryError where one example does not fit."""
        self._open(stage)
        self.model.train()
        with self.ahead(stage, plan) as ahead:
            for t in range(stage.steps):
                _, reduced, _ = self._gradients(stage, ahead, t)
                if reduced is None:
                    raise MemoryError("one example alone does not fit into the memory")
                norm = self._gradient_norm(int(reduced[0]))
                yield norm, torch.cat([p.grad.reshape(-1).float().cpu() for p in self.open if p.grad is not None])

    def _open(self, stage: Stage) -> None:
        """Opens what the stage trains; SpecError where that is nothing."""
        groups = self.model.set_trainable(stage.trainable)
        self.open = [self.model.trained[name] for names in groups.values() for name in names]
        if not self.open:
            message = f"stage {stage.name} has nothing to train: what it opens is frozen by tuning"
            raise problem("tuning", message, ", ".join(k for k, v in stage.trainable if v) or None)

    def _run_stage(self, stage: Stage, plan: StagePlan, first: int) -> Outcome | None:
        self._open(stage)
        if stage.reset_optimizer and self.step == first:
            self.optimizer.state.clear()
        o = stage.optimizer
        for group in self.optimizer.param_groups:
            group.update(betas=(o.beta1, o.beta2), eps=o.epsilon, weight_decay=o.weight_decay)
        requested = {s: shares(curve, stage.steps) for s, curve in stage.mix.items()}
        self.model.train()
        with self.ranks.together():
            self.measured = self.reference(stage) if stage.measure else []
        with self.ahead(stage, plan) as ahead:
            return self._steps(stage, plan, first, requested, ahead)

    def ahead(self, stage: Stage, plan: StagePlan) -> Ahead:
        """The examples of the stage's steps, their recordings up to the encoder."""
        kept = self.model.keeps  # asked here: within a step the base may stand in for the tuned model

        def presented(i: int) -> tuple[Stage, str, int, int, int]:
            return stage, stage.sources[plan.source[i]], int(plan.row[i]), int(plan.view[i]), i

        def make(i: int) -> Example:
            return self.model.listened(self.examples(*presented(i)), kept=kept)

        def own(outlines: Sequence[Example]) -> list[int]:
            return sorted(i for indices in self._cut(stage, outlines) for i in indices)

        share, outlines = None, self.outlines
        if outlines is not None and self.ranks.world_size > 1:
            share = Share(lambda i: outlines(*presented(i)), own)
        depth = self.model.execution.prefetch
        return Ahead(make, steps=stage.steps, size=self.global_batch, depth=depth, share=share)

    def _cut(self, stage: Stage, examples: Sequence[Example]) -> list[list[int]]:
        """This rank's micro-batches of a step. Which examples it has in them does not depend on the budget."""
        how = {"even": self.model.sharded, "unit": stage.objective.unit}
        return self.model.micro_batches(examples, self.budget, self.ranks.world_size, **how)[self.ranks.rank]

    def _steps(self, stage: Stage, plan: StagePlan, first: int, requested, ahead: Ahead) -> Outcome | None:
        while self.step < first + stage.steps:
            t = self.step - first
            began = time.perf_counter()
            presented = plan.step(t, self.global_batch)
            self.action = "continue"
            trial, reduced, action = self._gradients(stage, ahead, t)
            if reduced is None:
                least = stage.objective.unit
                what = "one example" if least == 1 else f"one group of {least} examples"
                return self._stop("out_of_memory", f"{what} alone does not fit into the memory; use a smaller "
                                  "base, shorter recordings, or a device with more memory")  # fmt: skip
            tokens, loss = int(reduced[0]), float(reduced[1])
            norm = self._gradient_norm(tokens)
            if not (np.isfinite(loss) and np.isfinite(norm)):
                return self._stop("diverged", f"step {self.step + 1}: loss {loss / tokens:g}, gradient norm {norm:g};"
                                  " the weights are those of the step before. Lower optimizer.peak_lr")  # fmt: skip
            rate = self._update(stage, t, norm)
            self.step += 1
            shown = Counter(plan.source[presented].tolist())
            self._report({
                "kind": "step", "stage": stage.name, "step": self.step, "loss": loss / tokens, "lr": rate,
                "grad_norm": norm, "tokens": tokens,
                "examples": {s: shown[n] for n, s in enumerate(stage.sources)},
                "requested_mix": {s: float(requested[s][t]) for s in stage.sources},
                "realised_mix": {s: shown[n] / self.global_batch for n, s in enumerate(stage.sources)},
                "seconds": time.perf_counter() - began, "data_wait": trial.data_seconds,
                "sharing": trial.given / max(1, trial.computed), **self._divergences(stage, t),
                **{k: float(reduced[2 + n]) / self.global_batch for n, k in enumerate(stage.objective.figures)},
            }, reduced[-self.global_batch :].tolist())  # fmt: skip
            if action == "abort":
                return self._stop("user", "aborted on request")
            if action == "checkpoint_and_exit":
                return self._stop("yielded", "checkpoint written on request; the next attempt goes on from it")
            if self.step % self.checkpoint_every == 0:
                self._mark()
        return None

    def _gradients(self, stage: Stage, ahead: Ahead, t: int):
        """Summed gradients of the step on every rank, repeated with smaller micro-batches while memory is
        short. What failed on one rank is raised on all.

        Returns the last trial, the reduced figures [tokens, loss, the objective's…, row losses…] (None: out of
        memory for good) and the strongest action that any rank was told.
        """
        before, waited = self.budget, 0.0
        while True:
            rows, failure = torch.zeros(self.global_batch), None
            try:
                trial, smallest = self._try(stage, ahead, t, rows)
            except Exception as error:
                trial, smallest, failure = Trial(figures=[0.0] * len(stage.objective.figures)), False, error
            waited = trial.data_seconds = waited + trial.data_seconds  # a repeated step waited the first time
            for parameter in self.open:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            said = [trial.out_of_memory, smallest, *(self.action == a for a in ACTIONS), failure is not None]
            figures = torch.tensor([*map(float, said), trial.tokens, trial.loss, *trial.figures])
            width = sum(p.numel() for p in self.open)
            if self.ranks.world_size > 1:
                flat = torch.cat([p.grad.reshape(-1).float().cpu() for p in self.open] + [figures, rows])
                flat = self.ranks.sum(flat)
                self._put_gradients(flat[:width])
                figures, rows = flat[width : width + len(figures)], flat[width + len(figures) :]
            if figures[5]:
                self.ranks.agree(failure)
            told = [a for a, n in zip(ACTIONS, figures[2:5].tolist(), strict=True) if n]
            if not figures[0]:
                return trial, torch.cat([figures[6:].double(), rows.double()]), told[-1]
            if figures[1] and self.model.save_memory():
                self.budget = before
                self.sink({"kind": "note", "level": "warning", "step": self.step, "message": "out of memory: from step "
                           f"{self.step + 1} on activations are computed again in the backward pass"})  # fmt: skip
                continue
            if figures[1]:
                self.budget = before  # smaller ones did not help, so a later attempt need not begin with them
                return trial, None, told[-1]
            self.budget //= 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.sink({"kind": "note", "level": "warning", "step": self.step, "message": "out of memory: step "
                       f"{self.step + 1} is repeated with micro-batches of {self.budget} tokens"})  # fmt: skip

    def _try(self, stage: Stage, ahead: Ahead, t: int, rows: torch.Tensor) -> tuple[Trial, bool]:
        """This rank's gradients into `.grad` (zeros where none). The flag: memory ran out on a single
        example."""
        # a repeated step forgets no order
        self.action = max(self.action, checked(self.control()), key=ACTIONS.index)
        for parameter in self.parameters:
            parameter.grad = None
        objective = stage.objective
        trial, single = Trial(figures=[0.0] * len(objective.figures)), False
        began = time.perf_counter()
        with self.ranks.together() if self.model.sharded else contextlib.nullcontext():
            # A rank that fails here would leave the others waiting for its part of a split base.
            outlines, made = ahead.step(t)
        trial.data_seconds = time.perf_counter() - began
        size = Size(len(outlines), sum(len(e.supervised) for e in outlines))
        for indices in self._cut(stage, outlines):
            single = len(indices) <= objective.unit
            try:
                with self.model.alike():
                    if not indices:  # the others need this rank's part of the base
                        self._backward(stage, list(outlines[: objective.unit]), 0, size, weight=0.0)
                        continue
                    batch, loss = self._backward(stage, [made[i] for i in indices], indices[0], size)
            except RuntimeError as error:  # torch.OutOfMemoryError is one
                if not out_of_memory(error):
                    raise
                trial.out_of_memory = True
                single = single and not isinstance(error, ElsewhereError)
                break
            trial.tokens += len(batch.targets)
            trial.loss += float(loss.total.detach())
            trial.given += batch.given
            trial.computed += len(batch.ids)
            if loss.figures is not None:
                trial.figures = [a + b for a, b in zip(trial.figures, loss.figures.tolist(), strict=True)]
            rows[indices] = loss.rows.cpu()
        return trial, trial.out_of_memory and single

    def _backward(self, stage: Stage, examples: list[Example], first: int, size: Size, *, weight: float = 1.0):
        """(pack, loss) of a micro-batch of a step of `size`, its gradients times `weight` added to `.grad`."""
        batch = self.model.collate(examples)
        torch.manual_seed(seed_of(self.seed, "dropout", self.step, first))
        loss = objective_loss(stage.objective, self.model, batch, size)
        if loss.total.requires_grad:  # text alone never reaches a projector or an encoder that learns alone
            (loss.total * weight).backward()
        return batch, loss

    def _put_gradients(self, flat: torch.Tensor) -> None:
        at = 0
        for p in self.open:
            p.grad = flat[at : at + p.numel()].view_as(p).to(p.device)
            at += p.numel()

    def _gradient_norm(self, tokens: int) -> float:
        """Makes the gradients those of the mean over supervised tokens; returns their global L2 norm."""
        norms = []
        for p in self.open:
            p.grad.div_(tokens)
            norms.append(torch.linalg.vector_norm(p.grad))
        return float(torch.linalg.vector_norm(torch.stack(norms)))

    def _update(self, stage: Stage, t: int, norm: float) -> float:
        """Clips and steps; returns the language model's learning rate."""
        if norm > stage.optimizer.clip_norm:
            for p in self.open:
                p.grad.mul_(stage.optimizer.clip_norm / norm)
        rate = stage.optimizer.peak_lr * lr_scale(t, stage.steps, stage.optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * self.model.lr_scales[group["part"]]
        self.optimizer.step()
        return rate

    def _divergences(self, stage: Stage, t: int) -> dict[str, float]:
        """Misalignment and forgetting after step t of a stage, where it asks for them. Every rank measures all, so that
        a base split over ranks is gathered by all alike."""
        if stage.measure is None or ((t + 1) % stage.measure.every and t + 1 < stage.steps):
            return {}
        with self.ranks.together(), self.model.alike():
            return measure(self.model, self.measured, self.budget)._asdict()

    def _report(self, event: Event, row_losses: list[float]) -> None:
        self.sink(event)
        # Kept with the log, not sent: which labels the model finds hard to believe, in the plan's order.
        self._unsaved.append({**event, "row_losses": [round(x, 5) for x in row_losses]})

    def _mark(self) -> None:
        """A checkpoint of the job's own rhythm, and what is to be said of it (in the log of the next). Saved first: an
        order to leave that comes while it is judged loses no step."""
        self._save()
        for event in self.judge(self.step):
            self.sink(event)
            self._unsaved.append(event)
        self.model.train()

    def _save(self) -> None:
        if self.store is None or self.step == self._saved_at:
            return
        self.model.cache.flush()  # what steps up to here saw is what a later attempt finds
        with self.ranks.together():
            if self.ranks.rank == 0:
                found = Checkpoint(
                    self.step,
                    self.model.files(),
                    checkpoints.optimizer_bytes(self.optimizer, self.model.trained),
                    self.budget,
                    self.logs,
                )
                prefix = checkpoints.write(self.store, self.attempt, found, self._unsaved, self._saved_at)
                self.sink({"kind": "checkpoint", "step": self.step, "prefix": prefix})
        self._unsaved, self._saved_at = [], self.step

    def _stop(self, reason: str, message: str) -> Outcome:
        """Ends the loop after the last good step, whose state is kept: whatever the reason, the weights are its."""
        self._save()
        return Outcome(self.step, reason, message, self.logs)
