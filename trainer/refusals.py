"""What a job cannot do (light): what is not built, and stages too long, idle, or without what they need."""

from collections.abc import Sequence

from trainer.corpus import Corpus
from trainer.fields import Problem, SpecError, nearest, problem
from trainer.formats import FORMATS
from trainer.metrics import METRICS
from trainer.spec import JobSpec, Task
from trainer.stage import (
    MODALITY,
    RECORDINGS,
    Balanced,
    Interleaved,
    Mixture,
    Stage,
    Transcribe,
    cumulative,
    field_of,
    hears,
    source_shares,
)  # fmt: skip
from trainer.strategies import Baseline, Custom, Untuned
from trainer.tokens import check_window
from trainer.words import in_turns

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
        heard = any(float(cumulative(share, 1)[-1]) > 0 for source, share in stage.mix.items() if hears([source]))
        if any(learns[part] and (heard or part == "lm") for part in opened):
            continue
        can = [part for part, does in learns.items() if does and (heard or part == "lm")]
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
        if isinstance(stage.view, Interleaved):
            problems += _untimed(stage, spec, corpus)
        wants_text = stage.objective.twin or isinstance(stage.view, Transcribe | Interleaved)
        for source in stage.mix if wants_text else ():
            if bare := [u.id for u in corpus.sources[source].rows if not u.text and stage.shows(u.task)]:
                message = f"{len(bare)} rows have no transcript, which stage {stage.name} needs; the first is {bare[0]}"
                problems.append(Problem(field_of(source), corpus.sources[source].ref, message))
    if problems:
        raise SpecError(problems)


def refuse_unshown(used: Sequence[str], spec: JobSpec, corpus: Corpus) -> None:
    """SpecError for data of other languages, further sentences and replaced ones that would have no effect, and for a
    target language that is not tested. `used`: the sources that are shown."""
    assert corpus.test is not None, "resolve() refuses a job without a test set"
    problems = []
    rows = {name: count for name, count in corpus.counts().items() if count}
    if spec.source and not any(source.startswith("source_") for source in used):
        message = f"recipe {spec.recipe.name} shows none of its rows; use limited_speech or sft, or leave source out"
        problems.append(Problem("source", None, message))
    if spec.source and not any(u.language.split("-")[0] == spec.language.split("-")[0] for u in corpus.test.rows):
        there = ", ".join(sorted({u.language for u in corpus.test.rows}))
        message = f"no row is in the target language, {spec.language}, but in {there}; add a test set in it"
        problems.append(Problem("evaluate.on", corpus.test.ref, message))
    if "extra_text" in rows and "extra_text" not in used:
        message = f"recipe {spec.recipe.name} shows none of its sentences; use limited_speech or sft, or leave it out"
        problems.append(Problem("data.extra_text", spec.data.extra_text, message))
    replaced = [source for source in RECORDINGS if source in rows]
    if spec.data.pairing == "replace" and replaced and not any(source in used for source in replaced):
        message = "leaves out the sentences of recordings that are not shown; use add"
        problems.append(Problem("data.pairing", "replace", message))
    if problems:
        raise SpecError(problems)


def refuse_unbalanced(stages: Sequence[Stage], corpus: Corpus, *, custom: bool) -> None:
    """SpecError for stages whose tasks have no rows, and for a mix that does not follow from the shares of tasks.
    `custom`: the recipe is the stages themselves."""
    problems = []
    for n, stage in enumerate(stages):
        if not stage.picks:
            continue
        at = f"recipe.stages[{n}]" if custom else "recipe"
        found = corpus.task_rows(stage.shows)
        rows = {t: {s: k for s, k in own.items() if s in stage.mix} for t, own in found.items()}
        rows = {task: own for task, own in rows.items() if own}
        if missing := [task for task in stage.tasks or () if task not in rows]:
            known = corpus.task_rows()
            remedy = "mix in a source that has some" if missing[0] in known else nearest(missing[0], known)
            message = f"no row of stage {stage.name} is of it; {remedy}"
            problems.append(Problem(f"{at}.tasks", missing[0], message))
            continue
        if idle := [s for s in stage.mix if not any(s in own for own in rows.values())]:
            message = f"has no row of the tasks of stage {stage.name}; leave it out of mix"
            problems.append(Problem(f"{at}.mix.{idle[0]}", None, message))
            continue
        if isinstance(stage.sampler, Mixture):
            continue
        weights = stage.sampler.weights if isinstance(stage.sampler, Balanced) else None
        if weights is not None and set(weights) != set(rows):
            message = f"names {', '.join(weights)}, and the rows of stage {stage.name} are of {', '.join(rows)}"
            problems.append(Problem(f"{at}.sampler.weights", None, message))
            continue
        follows = dict(zip(stage.sources, source_shares(stage.sampler, rows, stage.sources), strict=True))
        if any(not isinstance(share, float) or abs(share - follows[s]) > 0.005 for s, share in stage.mix.items()):
            said = ", ".join(f"{source}: {share:.4f}" for source, share in follows.items())
            message = f"sampler {stage.sampler.kind} shares out tasks, from which the sources follow: use {{{said}}}"
            problems.append(Problem(f"{at}.mix", None, message))
    if problems:
        raise SpecError(problems)


def _untimed(stage: Stage, spec: JobSpec, corpus: Corpus) -> list[Problem]:
    """What keeps a stage from cutting its recordings between words."""
    problems = []
    if spec.data.trim_silence == "on":
        message = f"would move the times of words, which stage {stage.name} needs; use report"
        problems.append(Problem("data.trim_silence", "on", message))
    for source in (name for name in stage.mix if MODALITY[name] == "speech"):
        if bare := [u.id for u in corpus.sources[source].rows if stage.shows(u.task) and not in_turns(u)]:
            message = (
                f"{len(bare)} rows have no times of two words or more that agree with their transcript, which stage "
                f"{stage.name} needs (`words` of a manifest; `attune words`); the first is {bare[0]}"
            )
            problems.append(Problem(f"data.{source}", corpus.sources[source].ref, message))
    assert corpus.test is not None
    if stage.measure and not any(u.audio and in_turns(u) for u in corpus.test.rows):
        message = "no row has times of words, which measuring misalignment here needs; leave measuring out"
        problems.append(Problem("evaluate.on", corpus.test.ref, message))
    return problems


def refuse_unbuilt(spec: JobSpec) -> None:
    """SpecError for what the contract can say but this version cannot do."""
    problems = []
    if spec.evaluate.folds is not None:
        message = "cross-validation is not built yet; leave folds out and name a test set in evaluate.on"
        problems.append(Problem("evaluate.folds", spec.evaluate.folds, message))
    if spec.tuning.method != "lora" and spec.tuning.encoder == "lora":
        message = f"encoder: lora goes with method: lora, not {spec.tuning.method}; use frozen or full"
        problems.append(Problem("tuning.encoder", "lora", message))
    if isinstance(spec.recipe, Custom) and spec.steps is not None:
        message = "custom stages say their own steps; leave steps out"
        problems.append(Problem("steps", spec.steps, message))
    if spec.tuning.method == "projector" and spec.tuning.projector == "frozen":
        message = "method: projector trains nothing but the projector; use projector: full"
        problems.append(Problem("tuning.projector", "frozen", message))
    if spec.evaluate.cascade and spec.tuning.method != "lora":
        message = f"the base itself must be left to transcribe, which method: {spec.tuning.method} does not; use lora"
        problems.append(Problem("evaluate.cascade", True, message))
    if spec.evaluate.guards and spec.tuning.method != "lora":
        message = f"the base itself must be left to compare with, which method: {spec.tuning.method} does not; use lora"
        problems.append(Problem("evaluate.guards", spec.evaluate.guards, message))
    if spec.resources.shard_base and (spec.tuning.method == "full" or spec.tuning.dora):
        message = "a base split over ranks is frozen, and its layers' norms are on no rank; use LoRA without dora"
        problems.append(Problem("resources.shard_base", True, message))
    if spec.evaluate.metric not in ("auto", *METRICS):
        message = f"unknown metric; {nearest(spec.evaluate.metric, METRICS)}"
        problems.append(Problem("evaluate.metric", None, message))
    if isinstance(spec.recipe, Baseline):
        problems += _meant_for_training(spec)
    if spec.family != "auto":
        check_window(spec.family, spec.encoder_window)
    problems += _unknown_targets(spec)
    if problems:
        raise SpecError(problems)


def _meant_for_training(spec: JobSpec) -> list[Problem]:
    """What a recipe that trains nothing cannot follow."""
    name = spec.recipe.name
    problems = [
        Problem(key, None, f"recipe {name} trains nothing; leave {key} out")
        for key in ("tuning", "optimizer", "steps", "epochs", "init_from")
        if key in spec.model_fields_set
    ]
    problems += [
        Problem(f"evaluate.{key}", value, f"recipe {name} trains nothing; leave {key} out")
        for key, value in ((key, getattr(spec.evaluate, key)) for key in ("dev", "select", "guards"))
        if value not in (None, "last", [])
    ]
    if spec.evaluate.cascade and not isinstance(spec.recipe, Untuned):
        message = f"recipe {name} cannot answer the base's transcripts; leave cascade out"
        problems.append(Problem("evaluate.cascade", True, message))
    return problems


def _unknown_targets(spec: JobSpec) -> list[Problem]:
    """Layers that no base of the family has, as far as it is known before the base is read."""
    families = [spec.family] if spec.family in FORMATS else list(FORMATS)
    known = list(dict.fromkeys(name for family in families for name in FORMATS[family].TARGETS))
    if not spec.tuning.targets:
        message = "names no layer, so nothing gets an adapter; name some, or leave targets out for all of them"
        return [Problem("tuning.targets", None, message)]
    given = [] if spec.tuning.targets == "auto" else spec.tuning.targets
    return [
        Problem(f"tuning.targets[{n}]", name, f"the language model has no such layer; {nearest(name, known)}")
        for n, name in enumerate(given)
        if name not in known
    ]


def refuse_decoding(spec: JobSpec, tested: Sequence[Task]) -> None:
    """SpecError for a way of answering that the tests' tasks do not allow."""
    if spec.evaluate.decode.constrain and all(task.answer == "text" for task in tested):
        message = "the test asks for text, which nothing limits; leave constrain out"
        raise problem("evaluate.decode.constrain", message, True)
    method, open_ = spec.evaluate.decode.method, [task for task in tested if not task.picks_one]
    if method != "generate" and open_:
        message = f"scores labels or choices, and task {open_[0].name} answers {open_[0].answer}; use generate"
        raise problem("evaluate.decode.method", message, method)
