"""From a spec and its corpus to what runs: every default filled, data and base pinned, the recipe as stages."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import rfc8785
from pydantic import ValidationError

from trainer.bases import pin_base
from trainer.corpus import Corpus, Guarded, read_corpus
from trainer.fields import Problem, Spec, SpecError, nearest, problem
from trainer.labels import pin_encoder, refuse_conditions, refuse_names
from trainer.metrics import METRICS, default_metrics
from trainer.refusals import (
    refuse_decoding,
    refuse_endless,
    refuse_idle,
    refuse_unbalanced,
    refuse_unbuilt,
    refuse_unfit,
    refuse_unshown,
)  # fmt: skip
from trainer.source_rows import SourceRows
from trainer.spec import Demos, JobSpec, Task
from trainer.stage import MODALITY, Stage, field_of
from trainer.start import Start, refuse_misfit
from trainer.strategies import Auto, Baseline, Budget, Custom, LinearProbe, Majority, TaskRows, Untuned
from trainer.tokens import DataError, check_window, family_of

ADDED: dict[str, Any] = {
    "spec.tuning.dora": False,
    "spec.evaluate.decode.method": "generate",
    "spec.evaluate.decode.constrain": False,
    "spec.evaluate.demos.query_text": "gold",
    "spec.evaluate.demos.pooling": "cls",
    "spec.evaluate.demos.revision": None,
    "spec.evaluate.demos": {"k": 0, "retriever": "random", "seed": 0},
    "spec.evaluate.labels": "regular",
    "spec.evaluate.symbols": None,
    "pools": [],
    "spec.evaluate.dev_limit": 256,
    "spec.evaluate.select": "last",
    "demos": None,
    "dev": None,
    "guards": [],
    "stages.*.measure": None,
    "stages.*.fraction": 1.0,
    "stages.*.tasks": None,
    "stages.*.mix.*.kind": "piecewise",
    "stages.*.optimizer.schedule_part": None,
    "spec.init_from": None,
    "start": None,
}
"""Fields that came after the first hashes were stored, each with the value that does what was done before it: left
out of the hash at that value, so that a stored job hashes alike under every version. `*`: every item of a list or
mapping."""


class SourcePin(Spec):
    """One source of a resolved job, pinned by content."""

    ref: str
    """Reference as the user wrote it."""
    sha256: str
    """Fingerprint of the usable manifest rows."""
    rows: int
    """Usable rows."""
    available: int
    """Rows before the nested subset was taken."""
    modality: Literal["text", "speech"]
    """How the rows are shown."""


class StartPin(Spec):
    """The weights that training starts from, pinned by content."""

    ref: str
    """Reference as the user wrote it."""
    sha256: str
    """Of the safetensors file."""


class Guard(Spec):
    """A further test set, scored before and after training."""

    pin: SourcePin
    """Its rows."""
    tasks: list[Task]
    """Its tasks, with their metrics written out."""


class Resolved(Spec):
    """What is stored and runs."""

    spec: JobSpec
    """The spec with every default filled and tasks written out."""
    stages: list[Stage]
    """The recipe as stages."""
    sources: dict[str, SourcePin]
    """The sources that the stages use."""
    test: SourcePin
    """The rows that are scored."""
    hearing: SourcePin | None = None
    """The recordings that `encoder: auto` is settled on; None where the encoder is said outright."""
    demos: SourcePin | None = None
    """The source that demonstrations are drawn from."""
    pools: list[SourcePin] = []
    """What they are drawn from instead, where `evaluate.demos.from` says so."""
    dev: SourcePin | None = None
    """The rows that checkpoints are scored on."""
    guards: list[Guard] = []
    """What is scored before and after training."""
    start: StartPin | None = None
    """What training starts from besides the base."""
    base_revision: str | None
    """Commit of a hub model, `files:<sha256>` of a local folder, `listing:<sha256>` of an s3:// folder; None where
    nobody could be asked."""

    @property
    def hash(self) -> str:
        """sha256 of the canonical JSON (RFC 8785) of all that decides the result.

        Left out: name, tags, resources and execution (no effect on the result beyond rounding), and the references to
        data and to a local base, for the pins say what they hold.
        """
        doc: dict[str, Any] = self.model_dump(mode="json", by_alias=True)
        del doc["spec"]["evaluate"]["demos"]["from"]
        for key in ("name", "tags", "resources", "execution"):
            del doc["spec"][key]
        if doc["start"]:
            doc["spec"]["init_from"] = None
            del doc["start"]["ref"]
        for path, default in ADDED.items():
            _leave_out(doc, path.split("."), default)
        said = ("trim_silence", "subset_seed") if self._draws_rows else ("trim_silence",)
        doc["spec"]["data"] = {name: doc["spec"]["data"][name] for name in said}
        if doc["spec"]["source"]:
            doc["spec"]["source"] = {"language": doc["spec"]["source"]["language"]}
        doc["spec"]["evaluate"]["on"] = None
        del doc["spec"]["evaluate"]["dev"], doc["spec"]["evaluate"]["guards"]
        if doc["spec"]["encoder_window"] == "family":
            del doc["spec"]["encoder_window"]  # as every job before there was a choice
        said = ("recipe", "steps", "epochs", "optimizer") if self.stages else ("steps", "epochs", "optimizer")
        for key in said:
            del doc["spec"][key]  # the stages say it, where there are any
        if (self.base_revision or "").startswith("files:"):
            doc["spec"]["base"] = None
        further = [doc["hearing"], doc.get("demos"), doc.get("dev"), *(guard["pin"] for guard in doc.get("guards", []))]
        further += doc.get("pools", [])
        for pin in (*doc["sources"].values(), doc["test"], *further):
            if pin:
                del pin["ref"], pin["available"]
        return hashlib.sha256(rfc8785.dumps(doc)).hexdigest()

    @property
    def _draws_rows(self) -> bool:
        """Whether `data.subset_seed` still chooses among the rows that the pins name: a stage shows a part of them.
        Seed 0 is left out, as it was when the first hashes were stored."""
        return bool(self.spec.data.subset_seed) and any(stage.fraction < 1 for stage in self.stages)

    @property
    def steps(self) -> int:
        """Optimiser steps of all stages."""
        return sum(s.steps for s in self.stages)


def _leave_out(doc: Any, path: list[str], default: Any) -> None:
    head, *rest = path
    if isinstance(doc, list) or (head == "*" and isinstance(doc, dict)):
        for item in doc.values() if isinstance(doc, dict) else doc:
            _leave_out(item, rest if head == "*" else path, default)
    elif isinstance(doc, dict) and head in doc:
        if rest:
            _leave_out(doc[head], rest, default)
        elif doc[head] == default:
            del doc[head]


def budget_of(spec: JobSpec, corpus: Corpus) -> Budget:
    """What the spec's own fields, and the tasks of its rows, give every strategy."""
    return Budget(
        global_batch=spec.global_batch,
        steps=spec.steps,
        epochs=spec.epochs,
        optimizer=spec.optimizer,
        projector=spec.tuning.projector == "full",
        encoder=spec.tuning.encoder != "frozen",
        tasks={name: TaskRows(rows, corpus.tasks[name].closed) for name, rows in corpus.task_rows().items()},
    )


def resolve(spec: JobSpec, corpus: Corpus) -> Resolved:
    """The resolved job. Pure in (spec, corpus, files of a local base); SpecError where they do not fit."""
    refuse_unbuilt(spec)
    if Path(spec.base).is_dir() and spec.encoder_window != "family":
        check_window(family_of(spec.base), spec.encoder_window)
    try:
        stages = spec.recipe.stages(corpus.counts(), budget_of(spec, corpus))
        stages = [Stage.model_validate(stage.model_dump()) for stage in stages]  # nobody looks at changed copies
    except ValidationError as error:  # knobs that are right one by one, and make no stage together
        said = [": ".join([*map(str, e["loc"]), e["msg"].removeprefix("Value error, ")]) for e in error.errors()]
        raise problem("recipe", f"makes no stage: {'; '.join(said)}") from None
    except OverflowError:
        raise problem("epochs", "more steps than can be counted; lower epochs, or those of the recipe") from None
    refuse_idle(stages, spec)
    refuse_endless(stages, spec)
    used = list(dict.fromkeys(source for stage in stages for source in stage.mix))
    if corpus.test is None:
        raise SpecError([Problem("evaluate.on", None, "no test set")])
    refuse_unfit(stages, spec, corpus)
    refuse_unbalanced(stages, corpus, custom=isinstance(spec.recipe, Custom))
    if isinstance(spec.recipe, Baseline):
        used = spec.recipe.learns_from(corpus.counts())
        spec = _one_answer(spec, corpus)
    else:
        refuse_unshown(used, spec, corpus)
    tested = {u.task for u in corpus.test.rows}
    refuse_names(stages, corpus, custom=isinstance(spec.recipe, Custom))
    stages = [pin_encoder(stage) for stage in stages]
    # also those of rows that no stage shows: the resolved spec reads the same corpus again
    tasks = [_scored(t, spec) if t.name in tested else t for t in corpus.tasks.values()]
    heard = corpus.heard()
    refuse_decoding(spec, [t for t in tasks if t.name in tested])
    refuse_conditions(spec, corpus)
    tuning = spec.tuning
    if tuning.encoder == "auto" and not any(stage.trainable.encoder for stage in stages):
        tuning = tuning.model_copy(update={"encoder": "frozen"})  # no stage hears, so nothing would train it
    recipe = spec.recipe.chosen(corpus.counts()) if isinstance(spec.recipe, Auto) else spec.recipe
    metric = spec.evaluate.metric
    if metric == "auto":
        metric = next(t for t in tasks if t.name in tested).metrics[0]
    dev = corpus.dev if spec.evaluate.dev or spec.evaluate.select == "best" else None
    if dev and (other := sorted({u.task for u in dev.rows} - tested)):
        raise problem("evaluate.dev", f"has rows of task {other[0]}, which the test has not", dev.ref)
    demos = spec.evaluate.demos
    shown_by = corpus.demonstrators() if demos.most and not demos.from_ else None
    if demos.most and not demos.from_ and shown_by is None:
        raise problem("evaluate.demos.k", "no source has transcripts with labels to show", demos.k)
    if demos.encoder and demos.most:
        demos = demos.model_copy(update={"revision": pin_base(demos.retriever, demos.revision)})
    named = {"metric": metric, "on": corpus.test.refs, "dev": dev and dev.ref, "demos": demos}
    evaluate = spec.evaluate.model_copy(update=named)
    base_revision = pin_base(spec.base, spec.revision)
    if corpus.start:
        refuse_misfit(corpus.start, tuning, base_revision)
    settled = {"tasks": tasks, "tuning": tuning, "recipe": recipe, "evaluate": evaluate}
    return Resolved(
        spec=spec.model_copy(update=settled),
        stages=stages,
        sources={name: _pin(corpus.sources[name], name) for name in used},
        test=_pin(corpus.test, "test"),
        hearing=_pin(corpus.sources[heard], heard) if tuning.encoder == "auto" and heard else None,
        demos=_pin(corpus.sources[shown_by], shown_by) if shown_by else None,
        pools=[_pin(pool, "text") for pool in corpus.pools] if demos.most else [],
        dev=_pin(dev, "test") if dev else None,
        guards=[_guard(found) for found in corpus.guards if spec.evaluate.guards],
        start=StartPin(ref=corpus.start.ref, sha256=corpus.start.sha256) if corpus.start else None,
        base_revision=base_revision,
    )


def _guard(found: Guarded) -> Guard:
    tasks = [t.model_copy(update={"metrics": t.metrics or default_metrics(t)}) for t in found.tasks.values()]
    return Guard(pin=_pin(found.source, "test"), tasks=tasks)


def _one_answer(spec: JobSpec, corpus: Corpus) -> JobSpec:
    """The spec of a baseline; all but the base itself answer an utterance in one way only. SpecError where it cannot
    answer the test."""
    if isinstance(spec.recipe, Untuned):
        return spec
    assert corpus.test is not None
    asked = {corpus.tasks[u.task].answer: u.task for u in corpus.test.rows}
    if isinstance(spec.recipe, LinearProbe):
        if not all(u.audio for u in corpus.test.rows):
            raise problem("recipe", "a linear probe answers recordings, which the test has not", "linear_probe")
        if "text" in asked:
            message = f"a linear probe cannot answer text, which task {asked['text']} asks for"
            raise problem("recipe", message, "linear_probe")
    if "choice" in asked:
        message = f"learns from labels of other rows, and those of task {asked['choice']} have choices of their own"
        raise problem("recipe", f"{spec.recipe.name} {message}; compare with untuned", spec.recipe.name)
    alike = {"text_twin": False, "demos": Demos(), "labels": "regular", "symbols": None}  # it reads no prompt
    return spec.model_copy(update={"evaluate": spec.evaluate.model_copy(update=alike)})


def read_and_resolve(
    spec: JobSpec, roots: Sequence[Path | str] = (".",), jobs: str | None = None
) -> tuple[Resolved, Corpus]:
    """Read the corpus and resolve the job against it. `jobs`: as of `trainer.start.find_start`."""
    refuse_unbuilt(spec)
    corpus = read_corpus(spec, roots, jobs)
    return resolve(spec, corpus), corpus


def check_pins(resolved: Resolved, corpus: Corpus) -> None:
    """The data are those that the job was resolved with, the test rows among them; else DataError."""
    assert corpus.test is not None, "resolve() refuses a job without a test set"
    pinned: list[tuple[str, SourcePin | StartPin, SourceRows | Start]] = []
    if resolved.start is not None:
        assert corpus.start is not None, "read_corpus finds it, or refuses"
        pinned.append(("init_from", resolved.start, corpus.start))
    pinned += [(field_of(name), pin, corpus.sources[name]) for name, pin in resolved.sources.items()]
    pinned.append(("evaluate.on", resolved.test, corpus.test))
    if resolved.demos is not None:
        pinned.append(("evaluate.demos", resolved.demos, corpus.sources[corpus.demonstrators() or ""]))
    for n, (pin, pool) in enumerate(zip(resolved.pools, corpus.pools, strict=True) if resolved.pools else ()):
        pinned.append((f"evaluate.demos.from[{n}]", pin, pool))
    if resolved.dev is not None:
        if corpus.dev is None:
            raise DataError(f"evaluate.dev: {resolved.dev.ref} was not read")
        pinned.append(("evaluate.dev", resolved.dev, corpus.dev))
    for n, (guard, found) in enumerate(zip(resolved.guards, corpus.guards, strict=True) if resolved.guards else ()):
        pinned.append((f"evaluate.guards[{n}]", guard.pin, found.source))
    if resolved.hearing is not None:
        name = corpus.heard() or ""
        pinned.append((field_of(name), resolved.hearing, corpus.sources[name]))
    for field, pin, found in pinned:
        if found.sha256 != pin.sha256:
            raise DataError(f"{field}: {pin.ref} has changed since the job was resolved; submit it again")


def _tells_confidence(spec: JobSpec) -> bool:
    """Whether answers come with their probability: labels scored by a model."""
    return spec.evaluate.decode.method != "generate" and not isinstance(spec.recipe, Majority | LinearProbe)


def _scored(task: Task, spec: JobSpec) -> Task:
    """The task with its metrics written out, the job's own among them; a metric that is unknown or cannot be counted
    for its answer form is refused now rather than missed after training."""
    metrics = task.metrics or default_metrics(task)
    wanted = spec.evaluate.metric
    asked = [(f"tasks.{task.name}.metrics", name) for name in metrics]
    if wanted != "auto" and wanted not in metrics:
        metrics = [wanted, *metrics]
        asked.append(("evaluate.metric", wanted))
    problems = []
    for field, name in asked:
        if name not in METRICS:
            problems.append(Problem(field, name, f"unknown metric; {nearest(name, METRICS)}"))
        elif task.answer not in METRICS[name].answers:
            fit = ", ".join(m.name for m in METRICS.values() if task.answer in m.answers)
            message = f"is not defined for the answer form '{task.answer}' of task {task.name}; those that are: {fit}"
            problems.append(Problem(field, name, message))
        elif METRICS[name].of_confidence and not _tells_confidence(spec):
            message = "asks how sure the model is: use evaluate.decode.method: likelihood, or leave it out"
            problems.append(Problem(field, name, message))
        elif METRICS[name].of_names and spec.evaluate.labels != "permuted":
            message = "tells definitions from names, which only evaluate.labels: permuted does; leave it out"
            problems.append(Problem(field, name, message))
    if problems:
        raise SpecError(problems)
    return task.model_copy(update={"metrics": metrics})


def _pin(source: SourceRows, name: str) -> SourcePin:
    return SourcePin(
        ref=source.ref,
        sha256=source.sha256,
        rows=len(source.rows),
        available=source.available,
        modality=MODALITY.get(name, "speech"),
    )
