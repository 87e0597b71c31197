"""From a spec and its corpus to what runs: every default filled, data and base pinned, the recipe as stages."""

import difflib
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import rfc8785

from trainer.corpus import MODALITY, Corpus, SourceRows, read_corpus
from trainer.fields import Problem, Spec, SpecError
from trainer.metrics import METRICS
from trainer.spec import JobSpec
from trainer.stage import Stage
from trainer.strategies import Budget

WHOLE_BYTES = 64 << 20
"""Files of a base up to this size are hashed whole; of larger ones size and first MiB (safetensors header)."""


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
    base_revision: str | None
    """Hub revision, or `files:<sha256>` of a local folder; None where only the hub can tell."""

    @property
    def hash(self) -> str:
        """sha256 of the canonical JSON (RFC 8785) of all that decides the result.

        Left out: name, tags and resources (no effect on the result), and the references to data, for the pins
        of the sources in use say what they hold.
        """
        doc: dict[str, Any] = self.model_dump(mode="json", by_alias=True)
        for key in ("name", "tags", "resources"):
            del doc["spec"][key]
        doc["spec"]["data"] = {"trim_silence": doc["spec"]["data"]["trim_silence"]}
        doc["spec"]["evaluate"]["on"] = None
        for pin in (*doc["sources"].values(), doc["test"]):
            del pin["ref"], pin["available"]
        return hashlib.sha256(rfc8785.dumps(doc)).hexdigest()

    @property
    def steps(self) -> int:
        """Optimiser steps of all stages."""
        return sum(s.steps for s in self.stages)


def refuse_unbuilt(spec: JobSpec) -> None:
    """SpecError for what the contract can say but this version cannot do."""
    problems = []
    if spec.source is not None:
        problems.append(Problem("source", None, "cross-lingual transfer is not built yet; leave source out"))
    if spec.evaluate.folds is not None:
        message = "cross-validation is not built yet; leave folds out and name a test set in evaluate.on"
        problems.append(Problem("evaluate.folds", spec.evaluate.folds, message))
    if spec.tuning.method != "lora" and spec.tuning.encoder == "lora":
        message = f"encoder: lora goes with method: lora, not {spec.tuning.method}; use frozen or full"
        problems.append(Problem("tuning.encoder", "lora", message))
    if spec.evaluate.metric not in ("auto", *METRICS):
        near = difflib.get_close_matches(spec.evaluate.metric, METRICS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(METRICS)}"
        problems.append(Problem("evaluate.metric", None, f"unknown metric; {hint}"))
    if problems:
        raise SpecError(problems)


def budget_of(spec: JobSpec) -> Budget:
    """What the spec's own fields give every strategy."""
    return Budget(
        global_batch=spec.global_batch,
        steps=spec.steps,
        epochs=spec.epochs,
        optimizer=spec.optimizer,
        projector=spec.tuning.projector == "full",
        encoder=spec.tuning.encoder != "frozen",
    )


def resolve(spec: JobSpec, corpus: Corpus) -> Resolved:
    """The resolved job. Pure in (spec, corpus, files of a local base); SpecError where they do not fit."""
    refuse_unbuilt(spec)
    stages = spec.recipe.stages(corpus.counts(), budget_of(spec))
    used = dict.fromkeys(source for stage in stages for source in stage.mix)
    if corpus.test is None:
        raise SpecError([Problem("evaluate.on", None, "no test set")])
    shown = [corpus.sources[name].rows for name in used] + [corpus.test.rows]
    names = {u.task for rows in shown for u in rows}
    tasks = [task for task in corpus.tasks.values() if task.name in names]
    return Resolved(
        spec=spec.model_copy(update={"tasks": tasks}),
        stages=stages,
        sources={name: _pin(corpus.sources[name], name) for name in used},
        test=_pin(corpus.test, "test"),
        base_revision=pin_base(spec.base, spec.revision),
    )


def read_and_resolve(spec: JobSpec, roots: Sequence[Path | str] = (".",)) -> tuple[Resolved, Corpus]:
    """Read the corpus and resolve the job against it."""
    refuse_unbuilt(spec)
    corpus = read_corpus(spec, roots)
    return resolve(spec, corpus), corpus


def pin_base(base: str, revision: str | None) -> str | None:
    """Content hash of a local base folder, else the given revision."""
    folder = Path(base)
    if not (folder / "config.json").is_file():
        return revision
    digest = hashlib.sha256()
    names = ("config.json", "tokenizer.json", "processor_config.json", "preprocessor_config.json")
    files = [folder / n for n in names if (folder / n).is_file()]
    for path in [*files, *sorted(folder.glob("*.safetensors"))]:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read() if size <= WHOLE_BYTES else file.read(1 << 20))
    return f"files:{digest.hexdigest()}"


def _pin(source: SourceRows, name: str) -> SourcePin:
    return SourcePin(
        ref=source.ref,
        sha256=source.sha256,
        rows=len(source.rows),
        available=source.available,
        modality=MODALITY.get(name, "speech"),
    )
