"""One job, from its resolved spec to its result: plan → data → model → loop → evaluate.
 Knows no database, queue or HTTP: files in, files out. What it leaves in the store is complete by itself, and
a later call on the same store goes on from the newest whole checkpoint.
"""

import contextlib
import json
import os
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from trainer import checkpoint, hearing, lineage, result
from trainer.aligner import aligned
from trainer.attempts import attempts, claim, same_job
from trainer.checkpoint import Checkpoint
from trainer.context import prepare, prepared
from trainer.corpus import Corpus, read_corpus
from trainer.evaluate.scoring import Scoring
from trainer.families import check_family, check_loaded, in_bf16, load_base, own_device
from trainer.features import FeatureCache
from trainer.loop import Event, Loop, Outcome
from trainer.plan import StagePlan
from trainer.predictions import Row, to_lines
from trainer.ranks import Ranks, StoppedError, checked
from trainer.resolve import Resolved, check_pins
from trainer.result import Lineage, Result
from trainer.sentence_encoder import sentence_encoder
from trainer.store import ConflictError, Store
from trainer.strategies import Baseline
from trainer.views import Recordings, Silence, reference_examples, training_examples

MICRO_BATCH_TOKENS = {"cpu": 4096, "cuda": 16384}
"""What `micro_batch_tokens: auto` starts from; a step that does not fit is repeated with half."""


def run(
    resolved: Resolved,
    store: Store,
    sink: Callable[[Event], None] = lambda event: None,
    control: Callable[[], str] = lambda: "continue",
    *,
    corpus: Corpus | None = None,
    roots: Sequence[Path | str] = (".",),
    jobs: str | None = None,
    model=None,
    cache: FeatureCache | None = None,
    ranks: Ranks | None = None,
    device: str | None = None,
    threads: int | None = None,
    attempt: int | None = None,
) -> Result:
    """Trains and scores one job; returns its Result, which is also in the store (`final.json` once succeeded).

    `sink` gets every event. `control` says `continue`, `checkpoint_and_exit` or `abort` before every step and between
    the batches of an evaluation; its attribute `reason`, if it has one, is what the result says of an exit (`timeout`,
    else `yielded`). `model`: a loaded base to use again; it decides the device, is refused where it is not what the
    job says, and is given back without the adapter. `cache`: encoder states shared between jobs of one process.
    `jobs`: where jobs lie that `init_from` names by id. `attempt`: this attempt's number where a service gives them;
    ConflictError where it is taken. A failure that the user can do something about is a Result with a reason; an
    unexpected one is written as a result too, and raised. Ranks end alike, whichever of them failed.
    """
    ranks, lent = ranks or Ranks(), model
    with ranks.together():
        same_job(resolved, store)
        over = store.exists("final.json")
    if ranks.from_first(over):
        with ranks.together():
            return Result.model_validate_json(store.get("final.json"))
    job = _Job(resolved, store, sink, ranks, corpus, roots, jobs, device, threads, attempt)
    try:
        plans = job.plans(partial(job.base, model, cache))
        try:
            model = job.model(lent, cache, control)
            job.train(model, plans, control)
            if job.outcome.reason is None:
                job.choose(model)
                job.evaluate(model, control)
        except StoppedError as stop:
            job.stop(stop.action, control)
        with ranks.together():
            if model is not None and model.trained and model.reusable:
                model.detach()  # raises where the base has changed: then nothing is published
        with ranks.together():
            return job.finish(plans)
    except Exception as error:
        if reason := result.reason_of(error):
            with ranks.together():
                return job.fail(reason, error)
        job.fail("infrastructure", error)
        raise
    finally:
        if lent is not None and lent.trained:
            lent.detach()


class _Job:
    """The steps of `run`, and what they share."""

    def __init__(self, resolved, store, sink, ranks, corpus, roots, jobs, device, threads, attempt):
        self.resolved, self.store, self.ranks = resolved, store, ranks
        self.spec = resolved.spec
        self.began = time.perf_counter()
        self.tail: deque[Event] = deque(maxlen=50)
        self._sink, self._corpus, self.roots, self.jobs = sink, corpus, roots, jobs
        self.device = device or own_device(ranks.rank, torch.cuda.device_count())
        if self.device.startswith("cuda:"):
            torch.cuda.set_device(self.device)
        self.threads = threads or int(os.environ.get("ATTUNE_THREADS") or 0)
        self.threads = self.threads or max(1, lineage.cores() // ranks.world_size)
        # Sums over threads depend on their number, so it is set here and not left to the environment.
        torch.set_num_threads(self.threads)
        with ranks.together():
            number = claim(store, attempt) if ranks.rank == 0 else None
        self.attempt = ranks.from_first(number)
        self._base: Any = None
        self.rows: list[Row] = []
        self.lineage: Lineage | None = None
        self.hearing: dict[str, Any] | None = None
        self.found: Checkpoint | None = None
        self.outcome = Outcome(0, None, "", [])
        self.chosen: tuple[int, str] | None = None
        self.guards: list[result.GuardScore] = []

    def tell(self, event: Event) -> None:
        if self.ranks.rank == 0:
            self.tail.append(event)
            self._sink(event)

    def put(self, key: str, data: str | bytes) -> None:
        if self.ranks.rank == 0:
            self.store.put(key, data.encode() if isinstance(data, str) else data)

    def put_shared(self, key: str, data: str | bytes) -> None:
        """`put` of what all attempts use: where another one running now was first, its bytes stay."""
        with contextlib.suppress(ConflictError):
            self.put(key, data)

    # ---- plan, data

    def plans(self, base: Callable[[], Any]) -> list[StagePlan]:
        """The stages' plans: as stored by an earlier attempt, else made now and stored, some by the `base`. Also finds
        what an earlier attempt has finished."""
        self.tell({"kind": "state", "state": "loading", "attempt": self.attempt})
        with self.ranks.together():
            if not self.store.exists("spec.json"):
                self.put_shared("spec.json", self.resolved.model_dump_json(by_alias=True, indent=1) + "\n")
        with self.ranks.together():
            same_job(self.resolved, self.store)  # another job may have begun here just now
            self.corpus = self._corpus or read_corpus(self.spec, self.roots, self.jobs)
            check_pins(self.resolved, self.corpus)
            self.scoring = Scoring(self.resolved, self.corpus, self.ranks, self.tell)
            self.tasks = self.scoring.tasks
        with self.ranks.together():
            if self.ranks.rank == 0:
                prepare(
                    self.resolved, self.corpus, self.store, self.put_shared, sentence_encoder,
                    lambda *rows: aligned(base(), self.recordings, *rows),
                )  # fmt: skip
        with self.ranks.together():
            plans, self.contexts = prepared(self.resolved, self.store)
            if found := checkpoint.newest(self.store, self.tell):
                self.found, self.outcome = found, Outcome(found.step, None, "", found.logs)
        if len(set(self.ranks.gather(self.outcome.step))) > 1:
            raise RuntimeError("the ranks do not see the same checkpoints in the store")
        return plans

    # ---- model

    def base(self, lent, cache: FeatureCache | None):
        """The base alone: as lent, else loaded when it is first asked for."""
        if self._base is None:
            spec, self.device = self.spec, self.device if lent is None else str(lent.device)
            self.precision = "bf16" if in_bf16(spec, self.device) else "fp32"
            if lent is None:
                lent = load_base(self.resolved, self.device, cache)
            else:
                check_family(spec, lent.folder)
                lent.cache = lent.cache if cache is None else cache
            check_loaded(lent, spec, self.resolved.base_revision, self.precision)
            lent.hear(spec.encoder_window)
            self.recordings = Recordings(lent.tokens.shape.sampling_rate, trim_silence=spec.data.trim_silence == "on")
            self._base = lent
        return self._base

    def model(self, lent, cache: FeatureCache | None, control: Callable[[], str]):
        """The base with this job's trainable parts on it."""
        spec, tuning = self.spec, self.spec.tuning
        with self.ranks.together():
            base = self.base(lent, cache)
        if isinstance(spec.recipe, Baseline):
            return base
        if tuning.encoder == "auto":
            tuning = tuning.model_copy(update={"encoder": self._encoder(base, control)})
        with self.ranks.together():
            base.attach(tuning, seed=spec.seed, execution=spec.execution, shard=spec.resources.shard_base)
            if self.corpus.start and self.found is None:  # a checkpoint has all of it
                base.start_from(self.corpus.start.weights(), self.corpus.start.ref)
        return base

    def _encoder(self, model, control: Callable[[], str]) -> str:
        """What `encoder: auto` becomes: by the hearing check on recordings of the training side, once for all
        attempts, said and stored before any training."""
        key = "inputs/encoder.json"

        def between(done: int) -> None:
            if checked(control()) == "abort":
                raise StoppedError("abort")

        with self.ranks.together():
            if self.ranks.rank == 0 and not self.store.exists(key):
                # Real recordings even where no stage shows them: they are what the job is for.
                heard = self.corpus.heard()
                if heard is None:
                    found = {"encoder": "frozen", "verdict": "no recordings to train on, so the encoder stays frozen"}
                else:
                    rows = self.corpus.sources[heard].rows
                    task = self.tasks[rows[0].task]
                    found = asdict(hearing.check(model, rows, task, recordings=self.recordings, between=between))
                self.put_shared(key, json.dumps(found, indent=1) + "\n")
        with self.ranks.together():
            self.hearing = settled = json.loads(self.store.get(key))
        self.tell({"kind": "note", "level": "info", "message": "encoder: {encoder}. {verdict}".format(**settled)})
        return settled["encoder"]

    # ---- loop

    def train(self, model, plans: list[StagePlan], control: Callable[[], str]) -> None:
        """Executes what is left of the stages."""
        spec = self.spec
        with self.ranks.together():
            self.lineage = self._lineage(model, plans)
        if not plans:
            return
        budget = spec.micro_batch_tokens
        told = (self.resolved, self.corpus, self.contexts, model.tokens)
        with self.ranks.together():
            loop = Loop(
                model, self.resolved.stages, plans, training_examples(*told, self.recordings),
                outlines=training_examples(*told, Silence(model.tokens.shape)),
                global_batch=spec.global_batch, seed=spec.seed, checkpoint_every=spec.checkpoint_every,
                budget=budget if isinstance(budget, int) else MICRO_BATCH_TOKENS[torch.device(self.device).type],
                store=self.store, attempt=self.attempt, sink=self.tell, control=control, ranks=self.ranks,
                judge=partial(self.scoring.judge, model, self.recordings, control),
                reference=partial(reference_examples, self.resolved, self.corpus, model.tokens, self.recordings),
            )  # fmt: skip
            if self.found is not None:
                loop.resume(self.found)
                self.scoring.recall(list(checkpoint.read_log(self.store, self.found.logs)))
                self._retell(self.found)
                self.found = None
                self.tell({"kind": "note", "level": "info", "message": f"resumed after step {loop.step}"})
        self.tell({"kind": "state", "state": "training", "step": loop.step, "steps": self.resolved.steps})
        try:
            self.outcome = loop.run()
        finally:
            self.outcome = replace(self.outcome, step=loop.step)
        if self.outcome.reason == "yielded":
            self.stop("checkpoint_and_exit", control)

    def stop(self, action: str, control: Callable[[], str]) -> None:
        """The run ends on request, the checkpoint of its last step being written; what was scored does not count."""
        self.rows, self.guards, self.chosen = [], [], None
        message = "checkpoint written on request; the next attempt goes on from it"
        reason = "yielded" if action == "checkpoint_and_exit" else "user"
        if reason == "user":
            message = "aborted on request"
        elif getattr(control, "reason", None) == "timeout":
            reason = "timeout"
            message = "the time limit (resources.time) was reached; the checkpoint is written, run again to go on"
        self.outcome = replace(self.outcome, reason=reason, message=message)

    def _retell(self, found: checkpoint.Checkpoint) -> None:
        """Tells the steps that earlier attempts finished: those who listen may have missed the last of them."""
        if self.ranks.rank == 0:
            for event in checkpoint.read_log(self.store, found.logs):
                if event["kind"] != "step":
                    continue
                self._sink({key: value for key, value in event.items() if key != "row_losses"} | {"kind": "retold"})

    # ---- evaluate

    def choose(self, model) -> None:
        """Puts the weights of the checkpoint that is best on the dev set in place of the last ones, where that is
        asked for."""
        if self.spec.evaluate.select == "last":
            return
        with self.ranks.together():
            for step in self.scoring.best_first():
                found = checkpoint.at_step(self.store, step, self.tell)
                if found is not None:
                    self.chosen, adapter = (step, found[0]), found[1].adapter
                    model.load_files(adapter)
                    self.tell({"kind": "note", "level": "info", "step": step, "message":
                               f"tested are the weights after step {step}, the best on the dev set"})  # fmt: skip
                    return

    def evaluate(self, model, control: Callable[[], str]) -> None:
        """Scores the test rows in every modality that the spec asks for; predictions go to the store."""
        self.tell({"kind": "state", "state": "evaluating"})
        for name, rows in self.scoring.test(model, self.recordings, control):
            self.rows += rows
            with self.ranks.together():
                self.put(f"attempts/{self.attempt}/predictions/{name}.jsonl", to_lines(rows))
            self.tell({"kind": "predicted", "modality": name, "utterances": len(rows)})
        for n, guarding in enumerate(self.scoring.guards(model, self.recordings, control)):
            self.guards += guarding.scores()
            with self.ranks.together():
                for name, rows in (("before", guarding.before), ("after", guarding.after)):
                    self.put(f"attempts/{self.attempt}/guards/{n}-{name}.jsonl", to_lines(rows))

    # ---- result

    def finish(self, plans: list[StagePlan]) -> Result:
        """The result of a run that came to its end, whichever."""
        outcome, done = self.outcome, self.outcome.reason is None
        events = [e for e in checkpoint.read_log(self.store, outcome.logs) if e["kind"] == "step"]
        clip = {stage.name: stage.optimizer.clip_norm for stage in self.resolved.stages}
        made = self._result(
            outcome="succeeded" if done else "yielded" if outcome.reason in ("yielded", "timeout") else "failed",
            reason=outcome.reason,
            message=outcome.message,
            scores=result.scored(self.rows),
            shown=result.shown(self.resolved, plans, {k: v.rows for k, v in self.corpus.sources.items()}, outcome.step),
            tokens=sum(e["tokens"] for e in events),
            final_loss=result.final_loss(events),
            gradients=result.gradients(events, clip),
            stage_gradients=result.stage_gradients(events, clip),
            training_seconds=sum(e["seconds"] for e in events),
            data_wait_share=result.data_wait_share(events),
            checkpoint=self.chosen[1] if self.chosen else checkpoint.furthest(self.store),
            chosen_step=self.chosen and self.chosen[0],
            guards=self.guards,
            dev=self.scoring.curve(),
        )
        self._write(made)
        return self._finalize(made) if done else made

    def _finalize(self, made: Result) -> Result:
        """The job's final result: this one, or that of another attempt which came to the end first."""
        try:
            self.put("final.json", made.model_dump_json(indent=1) + "\n")
        except ConflictError:
            first = Result.model_validate_json(self.store.get("final.json"))
            message = f"attempt {first.attempt} finished before this one; its result stays the job's"
            self.tell({"kind": "note", "level": "warning", "message": message})
            return first
        return made

    def fail(self, reason: result.Reason, error: Exception) -> Result:
        """The result of a run that an error ended."""
        self.tell({"kind": "error", "reason": reason, "message": str(error), "traceback": traceback.format_exc()})
        made = self._result(
            outcome="failed", reason=reason, message=str(error), checkpoint=checkpoint.furthest(self.store)
        )
        with contextlib.suppress(ConflictError):  # the attempt's result was written before the error came
            self._write(made)
        return made

    def _result(self, **fields: Any) -> Result:
        return Result(
            name=self.spec.name,
            attempt=self.attempt,
            attempts=sorted({*attempts(self.store), self.attempt}),
            steps=self.outcome.step,
            planned_steps=self.resolved.steps,
            metric=result.main_metric(self.resolved),
            wall_seconds=time.perf_counter() - self.began,
            lineage=self.lineage,
            hearing=self.hearing,
            log_tail=list(self.tail),
            **fields,
        )

    def _write(self, made: Result) -> None:
        self.put(f"attempts/{self.attempt}/result.json", made.model_dump_json(indent=1) + "\n")

    def _lineage(self, model, plans: list[StagePlan]) -> Lineage:
        gpu = torch.cuda.get_device_name(self.device) if torch.device(self.device).type == "cuda" else None
        return Lineage(
            spec_hash=self.resolved.hash,
            data={**{k: pin.sha256 for k, pin in self.resolved.sources.items()}, "test": self.resolved.test.sha256},
            plans={s.name: p.sha256 for s, p in zip(self.resolved.stages, plans, strict=True)},
            contexts={name: found.sha256 for name, found in self.contexts.items()},
            init_from=self.resolved.start and self.resolved.start.model_dump(),
            base=self.spec.base,
            base_revision=self.resolved.base_revision,
            base_checksum=model.checksum,
            code=lineage.code_revision(), versions=lineage.versions(), seed=self.spec.seed,
            hardware=lineage.processor() + (f"; {gpu}" if gpu else ""),
            device=self.device, precision=self.precision, threads=self.threads, world_size=self.ranks.world_size,
        )  # fmt: skip
