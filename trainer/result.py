"""What a run leaves behind: the numbers, how sure they are, and everything needed to say how they came
about."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import BaseModel, ConfigDict

from trainer.attempts import attempts, claim
from trainer.bases import BaseError, UnreachableError
from trainer.compare import interval
from trainer.fields import SpecError, UnfitDataError
from trainer.manifest import ManifestError
from trainer.metrics import default_metrics, named, score
from trainer.plan import SPEECH, StagePlan
from trainer.predictions import by_task, put
from trainer.resolve import Resolved
from trainer.spec import JobSpec
from trainer.stage import shares
from trainer.store import Store, open_store
from trainer.tokens import DataError

Reason = Literal[
    "invalid_data", "invalid_spec", "out_of_memory", "diverged", "infrastructure", "yielded", "timeout", "user"
]


def reason_of(error: Exception) -> Reason | None:
    """Why a job ends with this error, where its user can do something about it; None for every other error."""
    if isinstance(error, UnfitDataError | ManifestError | DataError):
        return "invalid_data"
    if isinstance(error, UnreachableError):  # a fault of the moment
        return None
    return "invalid_spec" if isinstance(error, SpecError | BaseError) else None


class Record(BaseModel):
    """Results are read by later versions: unknown fields are kept out of the way, not refused."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class Score(Record):
    """One metric of one task in one modality."""

    task: str
    modality: str
    """`speech`, `text` (the transcripts of the same utterances) or `cascade`."""
    metric: str
    value: float
    """A fraction; WER and CER may exceed 1."""
    ci_low: float
    ci_high: float
    """95 % interval over speakers (utterances where unknown); see `method`."""
    n: int
    """Utterances."""
    method: str
    normaliser: str | None = None
    """Of an error rate: the text normaliser that it was counted after; `raw`: the text as written."""
    shots: int | None = None
    """Demonstrations before each query, where the job shows any."""
    labels: str | None = None
    """The names of labels, where they are not the regular ones: `symbol` or `permuted`."""
    query_text: str | None = None
    """What the nearest demonstrations were looked up by: `gold` or `asr`."""


class DevScore(Record):
    """The main metric on the dev set, after a step."""

    step: int
    value: float
    tasks: dict[str, float] = {}
    """Each task's own first metric, where there are several tasks."""


class GuardScore(Record):
    """One metric of a further test set: what training has changed there."""

    data: str
    """The test set, as the spec names it."""
    task: str
    modality: str
    metric: str
    before: float
    """Of the base as it was loaded."""
    after: float
    change: float
    """after - before, in the metric's own unit."""
    ci_low: float
    ci_high: float
    """95 % interval of the change, over speakers (utterances where unknown); of one utterance just the change."""
    n: int


class Shown(Record):
    """What was really presented from one source of one stage."""

    stage: str
    source: str
    presentations: int
    rows: int
    """Different rows presented at least once."""
    exposures_mean: float
    """Presentations per usable row of the source."""
    exposures_max: int
    requested_share: float
    realised_share: float
    audio_seconds: float
    """Seconds of recordings presented, repeats counted; 0 for text."""


class Gradients(Record):
    """Global gradient norm before clipping, over the steps."""

    mean: float
    median: float
    p95: float
    max: float
    clipped_share: float
    variance: float | None = None
    """Of the norms. Between samplers it says nothing by itself: their weights differ (`trainer.gradients` compares at
    the same weights)."""


class Lineage(Record):
    """Where a result came from."""

    spec_hash: str
    data: dict[str, str]
    """Fingerprint per source, and of the test rows (`test`)."""
    plans: dict[str, str]
    """sha256 of the plan per stage."""
    contexts: dict[str, str] = {}
    """sha256 of the context (draws of label names, demonstrations) per stage that has one."""
    init_from: dict[str, str] | None = None
    """Reference and sha256 of the weights that training started from; None: the base alone."""
    base: str
    base_revision: str | None
    base_checksum: str | None
    code: str | None
    """Revision of the code where it runs from a git checkout; `-dirty` with uncommitted changes."""
    versions: dict[str, str]
    seed: int
    hardware: str
    device: str
    precision: str
    threads: int
    world_size: int


class Result(Record):
    """`attempts/<no>/result.json`, and `final.json` once all is done."""

    result_version: Literal[1] = 1
    name: str
    outcome: Literal["succeeded", "failed", "yielded"]
    reason: Reason | None = None
    message: str = ""
    attempt: int
    attempts: list[int]
    """All attempts so far."""
    steps: int
    """Finished steps."""
    planned_steps: int
    metric: str | None = None
    """Name of the main metric."""
    scores: list[Score] = []
    """Of the main condition first (`evaluate.demos.k`, `evaluate.labels`), then of every other."""
    dev: list[DevScore] = []
    """The main metric at every checkpoint, where there is a dev set."""
    guards: list[GuardScore] = []
    """What training has changed on the further test sets (`evaluate.guards`)."""
    chosen_step: int | None = None
    """The step whose weights were tested and are in `checkpoint`, where the dev set chose it; else the last."""
    shown: list[Shown] = []
    tokens: int = 0
    """Supervised tokens over all steps."""
    final_loss: float | None = None
    """Mean training loss per supervised token over the last tenth of the steps."""
    gradients: Gradients | None = None
    stage_gradients: dict[str, Gradients] = {}
    """The same by stage, where there are several."""
    training_seconds: float = 0.0
    """Sum over steps of all attempts that count."""
    data_wait_share: float | None = None
    """Of those, the share in which a step waited for its recordings to be read and decoded."""
    wall_seconds: float = 0.0
    """Of this attempt, loading and evaluation included."""
    lineage: Lineage | None = None
    hearing: dict[str, Any] | None = None
    """Where `tuning.encoder` was `auto`: the hearing check, what the encoder became and why."""
    checkpoint: str | None = None
    """Prefix of the last checkpoint, or of the one that the dev set chose; its `adapter/` is the trained adapter."""
    log_tail: list[dict[str, Any]] = []
    """The last 50 events; on failure also the traceback."""


def main_metric(resolved: Resolved) -> str:
    """The metric that the spec names, else the first of the test's first task."""
    spec = resolved.spec
    if spec.evaluate.metric != "auto":
        return spec.evaluate.metric
    task: Any = (spec.tasks or [None])[0]
    return (task.metrics or default_metrics(task))[0] if task else "accuracy"


def scored(rows: Sequence[dict[str, Any]]) -> list[Score]:
    """Every metric of all prediction rows, by condition, modality and task."""
    out, found = [], {}
    for row in rows:
        found.setdefault(put(row), []).append(row)
    for (modality, *_), alike in found.items():
        for task, own in by_task(alike).items():
            out += scores(task, modality, own)
    return out


def scores(task: str, modality: str, rows: Sequence[dict[str, Any]]) -> list[Score]:
    """Every metric of prediction rows of one task, modality and condition, with intervals where there are two rows."""
    out, told = [], {key: rows[0].get(key) for key in ("shots", "labels", "query_text")}
    for metric, value in score(rows).items():
        if len(rows) > 1:
            i = interval([rows], metric)
            low, high, method = i.ci_low, i.ci_high, i.method
        else:
            low = high = value
            method = "one utterance: no interval"
        out.append(
            Score(
                task=task, modality=modality, metric=metric, value=value, ci_low=low, ci_high=high, n=len(rows),
                method=method, normaliser=named(metric).normalised(rows[0]), **told,
            )
        )  # fmt: skip
    return out


def shown(resolved: Resolved, plans: Sequence[StagePlan], rows: dict[str, list], steps: int) -> list[Shown]:
    """What the first `steps` steps of the plans present, per stage and source."""
    out, batch, first = [], resolved.spec.global_batch, 0
    for stage, plan in zip(resolved.stages, plans, strict=True):
        done = max(0, min(stage.steps, steps - first)) * batch
        first += stage.steps
        mix: Any = stage.mix
        for n, name in enumerate(stage.sources):
            if not done:
                continue
            at = np.flatnonzero(plan.source[:done] == n)
            times = np.bincount(plan.row[at], minlength=len(rows[name]))
            spoken = plan.view[at] == SPEECH
            lengths = np.array([u.duration_s or 0.0 for u in rows[name]])
            out.append(
                Shown(
                    stage=stage.name, source=name, presentations=len(at), rows=int((times > 0).sum()),
                    exposures_mean=len(at) / len(rows[name]), exposures_max=int(times.max(initial=0)),
                    requested_share=float(shares(mix[name], stage.steps)[: done // batch].mean()),
                    realised_share=len(at) / done,
                    audio_seconds=float(lengths[plan.row[at][spoken]].sum()),
                )
            )  # fmt: skip
    return out


def stage_gradients(events: Sequence[dict[str, Any]], clip: Mapping[str, float]) -> dict[str, Gradients]:
    """`gradients` of each stage, where there are several; `clip`: as of it."""
    found = {name: gradients([e for e in events if e["stage"] == name], clip) for name in clip}
    return {name: own for name, own in found.items() if own} if len(clip) > 1 else {}


def gradients(events: Sequence[dict[str, Any]], clip: Mapping[str, float]) -> Gradients | None:
    """Statistics of the steps' gradient norms; `clip`: by stage, the norm above which they were scaled down."""
    if not events:
        return None
    x = np.asarray([e["grad_norm"] for e in events], dtype=float)
    clipped = sum(e["grad_norm"] > clip[e["stage"]] for e in events)
    return Gradients(
        mean=float(x.mean()), median=float(np.median(x)), p95=float(np.quantile(x, 0.95)), max=float(x.max()),
        clipped_share=clipped / len(x), variance=float(x.var()),
    )  # fmt: skip


def final_loss(events: Iterable[dict[str, Any]]) -> float | None:
    """Mean loss per supervised token over the last tenth of the steps (at least one)."""
    steps = list(events)
    tail = steps[-max(1, len(steps) // 10) :] if steps else []
    tokens = sum(e["tokens"] for e in tail)
    return sum(e["loss"] * e["tokens"] for e in tail) / tokens if tokens else None


def data_wait_share(events: Iterable[dict[str, Any]]) -> float | None:
    """Seconds that steps waited for their examples, of all that they took."""
    steps = list(events)
    seconds = sum(e["seconds"] for e in steps)
    return sum(e.get("data_wait", 0.0) for e in steps) / seconds if seconds else None


# ------------------------------------------------------------------------------------- what could not even begin


def leave_refusal(out: str, name: str, error: Exception, spec: JobSpec | None = None) -> None:
    """Leaves the result of what `error` kept from beginning as an attempt of its own, so that whoever waits for a
    result reads why. `spec`: the job, where it could be read; `name`: what to call it, unless the error knows better.

    Nothing is left where the mistake is the command line's, where another job or a study has begun to fill `out`, and
    where it cannot be written: the error itself has been said.
    """
    reason = reason_of(error)
    if reason is None or (isinstance(error, SpecError) and error.problems[0].param.startswith("--")):
        return
    with contextlib.suppress(OSError, ValueError, BotoCoreError, ClientError):  # ValueError: no store, or no run in it
        store = open_store(out)
        if _taken(store, spec):
            return
        number = claim(store)
        made = Result(
            name=getattr(error, "job", "") or name, outcome="failed", reason=reason, message=str(error),
            attempt=number, attempts=attempts(store), steps=0, planned_steps=0,
        )  # fmt: skip
        store.put(f"attempts/{number}/result.json", (made.model_dump_json(indent=1) + "\n").encode())


def _taken(store: Store, spec: JobSpec | None) -> bool:
    """Whether the store holds something finished, or a run that is not known to be of this very spec."""
    if store.exists("final.json") or store.exists("report.json") or store.list("jobs/"):
        return True
    if not store.exists("spec.json"):
        return False
    held = Resolved.model_validate_json(store.get("spec.json")).spec
    return spec is None or not _says(held.model_dump(by_alias=True), spec.model_dump(by_alias=True))


def _says(held: Any, given: Any) -> bool:
    """Whether the resolved value `held` is what was given; what was left open, resolving has filled."""
    if given in (None, "auto", {"name": "auto"}):
        return True
    if isinstance(given, Mapping) and isinstance(held, Mapping):
        return all(_says(held.get(key), value) for key, value in given.items())
    return held == given
