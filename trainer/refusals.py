"""Stages that a job cannot run (light): too long, idle, or asking for what its spec and corpus do not give."""

from collections.abc import Sequence

from trainer.corpus import Corpus
from trainer.fields import Problem, SpecError, problem
from trainer.spec import JobSpec
from trainer.stage import Stage, Transcribe, cumulative
from trainer.strategies import Custom

MOST_PRESENTATIONS = 100_000_000
"""Of a job: its plan is arrays of that length."""


def refuse_endless(stages: Sequence[Stage], spec: JobSpec) -> None:
    """SpecError for a job whose plan, which lists what is presented one by one, would not fit into memory."""
    if (count := sum(stage.steps for stage in stages) * spec.global_batch) > MOST_PRESENTATIONS:
        said = f"{count:,} examples would be presented; a job has {MOST_PRESENTATIONS:,} at most, so make several of it"
        raise problem("steps", said, spec.steps)


def refuse_idle(stages: Sequence[Stage], spec: JobSpec) -> None:
    """SpecError for stages that would train nothing: all they open is frozen by `tuning`, or out of reach of text."""
    tuning, problems = spec.tuning, []
    learns = {
        "lm": tuning.method != "projector",
        "projector": tuning.projector == "full",
        "encoder": tuning.encoder != "frozen",  # `auto` may still come to that, which the run refuses
    }
    for n, stage in enumerate(stages):
        opened = [part for part, on in stage.trainable if on]
        hears = any(float(cumulative(share, 1)[-1]) > 0 for source, share in stage.mix.items() if source != "text")
        if any(learns[part] and (hears or part == "lm") for part in opened):
            continue
        can = [part for part, does in learns.items() if does and (hears or part == "lm")]
        remedy = f"open {' or '.join(can)}" if can else "mix in recordings, or use method: lora"
        why = f"opens only {', '.join(opened)}" if opened else "opens no part"
        if frozen := [part for part in opened if not learns[part]]:
            why += f", and tuning keeps {', '.join(frozen)} frozen"
        elif opened:
            why += ", which text never reaches"
        own = isinstance(spec.recipe, Custom)
        at, value = (f"recipe.stages[{n}].trainable", opened) if own else ("tuning.method", tuning.method)
        problems.append(Problem(at, value, f"stage {stage.name} would train nothing: it {why}; {remedy}"))
    if problems:
        raise SpecError(problems)


def refuse_unfit(stages: Sequence[Stage], spec: JobSpec, corpus: Corpus) -> None:
    """SpecError for what objectives, views and measurements of the stages ask for, and the job does not give."""
    assert corpus.test is not None, "resolve() refuses a job without a test set"
    method, global_batch, problems = spec.tuning.method, spec.global_batch, []
    for stage in stages:
        if (stage.measure or stage.objective.twin == "asked") and method != "lora":
            message = "distillation and forgetting need the base itself, which must be left: use method: lora"
            problems.append(Problem("tuning.method", method, message))
        if stage.measure and not any(u.audio and u.text for u in corpus.test.rows):
            message = "no row has recording and transcript, which measuring misalignment needs; leave measuring out"
            problems.append(Problem("evaluate.on", corpus.test.ref, message))
        if global_batch % stage.objective.unit:
            message = f"must be a multiple of the objective's group_size ({stage.objective.unit}); change either"
            problems.append(Problem("global_batch", global_batch, message))
        for source in stage.mix if stage.objective.twin or isinstance(stage.view, Transcribe) else ():
            if bare := [u.id for u in corpus.sources[source].rows if not u.text]:
                message = f"{len(bare)} rows have no transcript, which stage {stage.name} needs; the first is {bare[0]}"
                problems.append(Problem(f"data.{source}", corpus.sources[source].ref, message))
    if problems:
        raise SpecError(problems)
