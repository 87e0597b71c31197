"""Attune's side of a comparison: trainer.loop over a list of examples, step by step in the order given."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.measure import ROOT
from trainer.loop import Loop
from trainer.plan import StagePlan, plan_stage
from trainer.resolve import read_and_resolve
from trainer.spec import Tuning, parse_job
from trainer.stage import Optimizer, Stage, Trainable
from trainer.tokens import Tokens
from trainer.views import Example, Recordings, training_example

PLAIN = Optimizer(peak_lr=1e-3, schedule="constant", warmup_ratio=0)
"""What every peer can do too: AdamW at a constant rate, gradients clipped to a norm of 1."""
LORA = Tuning(rank=16, alpha=32, encoder="frozen", projector="frozen", dropout=0.0)
"""LoRA on all linear layers of the language model, nowhere else."""
WHOLE = 10**6
"""A budget of tokens that holds a whole step in one micro-batch."""


def loop(
    model: Any,
    examples: Sequence[Example],
    batch: int,
    *,
    optimizer: Optimizer = PLAIN,
    budget: int = WHOLE,
    sink: Callable[[dict[str, Any]], None] = lambda event: None,
) -> Loop:
    """The loop that trains on `batch` examples a step, as many steps as there are."""
    steps = len(examples) // batch
    stage = Stage(name="benchmark", steps=steps, mix={"speech": 1.0}, trainable=Trainable(), optimizer=optimizer)
    n = steps * batch
    plan = StagePlan(np.zeros(n, np.uint16), np.arange(n, dtype=np.uint32), np.ones(n, np.uint8))
    return Loop(
        model, [stage], [plan], lambda stage, source, row, view, at: examples[row],
        global_batch=batch, seed=0, budget=budget, checkpoint_every=10**9, sink=sink,
    )  # fmt: skip


def train(model: Any, examples: Sequence[Example], batch: int, **options: Any) -> list[dict[str, Any]]:
    """The events of all steps."""
    events: list[dict[str, Any]] = []
    outcome = loop(model, examples, batch, sink=events.append, **options).run()
    if outcome.reason:
        raise RuntimeError(f"{outcome.reason}: {outcome.message}")
    return [e for e in events if e["kind"] == "step"]


def planned(job: dict[str, Any], tokens: Tokens) -> list[Example]:
    """All examples of the only stage of a job on the repository's data, in the order of its plan."""
    resolved, corpus = read_and_resolve(parse_job(job), [ROOT])
    (stage,) = resolved.stages
    plan, recordings = plan_stage(resolved, 0), Recordings(tokens.shape.sampling_rate)
    tasks: dict[str, Any] = {task.name: task for task in resolved.spec.tasks}  # type: ignore[union-attr]
    return [
        training_example(
            corpus.sources[stage.sources[plan.source[i]]].rows[plan.row[i]], int(plan.view[i]), stage.view, tasks,
            tokens, recordings,
        )
        for i in range(len(plan))
    ]  # fmt: skip
