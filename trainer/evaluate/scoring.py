"""The sets that a job is scored on, each answered by all ranks together."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from trainer import baselines
from trainer.compare import compare
from trainer.corpus import Corpus
from trainer.evaluate import modalities, predict, transcribe
from trainer.evaluate.demonstrations import Asking
from trainer.manifest import Utterance
from trainer.metrics import count, named, score
from trainer.predictions import CASCADE, Row, by_task, limited
from trainer.ranks import Ranks, Turns
from trainer.resolve import Resolved
from trainer.result import DevScore, GuardScore
from trainer.spec import Condition, Evaluate, Task
from trainer.tokens import DataError, reference
from trainer.views import Recordings

PROGRESS_S = 5.0
"""Seconds between two words on how far an evaluation is."""
TWINLESS = Evaluate(text_twin=False)
"""Recordings where there are any, else transcripts."""
Event = dict[str, Any]


class Guarding(NamedTuple):
    """A further test set, answered before and after training."""

    ref: str
    before: list[Row]
    after: list[Row]

    def scores(self) -> list[GuardScore]:
        """Every metric of every task, with the interval of its change."""
        out, after = [], by_task(self.after)
        for task, rows in by_task(self.before).items():
            values = score(rows), score(after[task])
            for metric in (m for m in values[0] if m in values[1]):
                low = high = change = values[1][metric] - values[0][metric]
                if len(rows) > 1:
                    found = compare([rows], [after[task]], metric)
                    low, high = found.ci_low, found.ci_high
                out.append(GuardScore(
                    data=self.ref, task=task, modality=rows[0]["modality"], metric=metric, before=values[0][metric],
                    after=values[1][metric], change=change, ci_low=low, ci_high=high, n=len(rows),
                ))  # fmt: skip
        return out


class Scoring:
    """Test and dev set of a job. DataError for a row that cannot be scored: said before training, not after it.

    Attributes: `tasks` by name, `utterances` (of the test), `dev` (its utterances, none where there is no dev set),
    `dev_values` (the main metric on the dev set, by step).
    """

    def __init__(self, resolved: Resolved, corpus: Corpus, ranks: Ranks, tell: Callable[[Event], None]):
        self.resolved, self.corpus, self.ranks, self.tell = resolved, corpus, ranks, tell
        evaluate = resolved.spec.evaluate
        self.tasks = {task.name: task for task in resolved.spec.tasks or [] if not isinstance(task, str)}
        assert corpus.test is not None
        self.utterances = limited(corpus.test.rows, evaluate.limit)
        self.modalities = modalities(self.utterances, evaluate)
        self.dev = limited(corpus.dev.rows, evaluate.dev_limit) if resolved.dev and corpus.dev else []
        self._dev_modality = modalities(self.dev, TWINLESS)[0] if self.dev else ""
        self.dev_values: dict[int, float] = {}
        self._dev_tasks: dict[int, dict[str, float]] = {}
        self._said_at = -float("inf")
        self.conditions = evaluate.conditions()
        self._asking = Asking(evaluate, self.tasks, corpus.shown() if evaluate.demos.most else [])
        self._asking.check([*self.utterances, *self.dev])
        self._heard: dict[tuple, str] = {}
        scores = evaluate.decode.method != "generate"
        _check("test", self.utterances, self.tasks, scores)
        _check("dev", self.dev, self.tasks, scores)
        for guard, found in zip(resolved.guards, corpus.guards, strict=False):
            _check(f"guard {guard.pin.ref}:", found.source.rows, {task.name: task for task in guard.tasks}, scores)

    def test(self, model, recordings: Recordings, control: Callable[[], str]) -> Iterator[tuple[str, list[Row]]]:
        """The test's prediction rows on every rank, condition by condition and modality by modality, under the name of
        both (`speech`, `speech.3-shot`); errors as of `trainer.ranks.Turns`."""
        answers_of = partial(baselines.answers_of, self.resolved, self.corpus, model)
        for apart, condition in self.conditions.items():
            for modality in self.modalities:
                work = partial(self._put, condition, answers_of, model)
                name = f"{modality}.{apart}" if apart else modality
                yield name, self._rows(work, self.utterances, self.tasks, modality, recordings, control, name=name)

    def _put(
        self, condition: Condition, work: Callable[..., list[Row]], model, utterances, tasks, modality, decode,
        recordings, between,
    ) -> list[Row]:  # fmt: skip
        """What `work` answers to utterances as a condition puts them."""
        heard = None
        if modality == CASCADE or condition.query_text == "asr":
            heard = self._hear(model, utterances, recordings, between)
        asked = self._asking(condition, utterances, heard)
        rows = work(utterances, tasks, modality, decode, recordings, between, asked=asked, heard=heard)
        shots = condition.shots if self.resolved.spec.evaluate.demos.most else None
        labels = condition.labels if condition.labels != "regular" else None
        query = condition.query_text if condition.query_text != "none" else None
        told = {"shots": shots, "labels": labels, "query_text": query}
        return [row | {key: value for key, value in told.items() if value is not None} for row in rows]

    def _hear(self, model, utterances: Sequence[Utterance], recordings: Recordings, between) -> list[str]:
        """What the base transcribes, once for all conditions."""
        keys = [(u.audio, u.offset_s, u.duration_s) for u in utterances]
        if new := [u for u, key in zip(utterances, keys, strict=True) if key not in self._heard]:
            said = transcribe(model, new, recordings, between=lambda _: between(0))
            self._heard |= {(u.audio, u.offset_s, u.duration_s): text for u, text in zip(new, said, strict=True)}
        return [self._heard[key] for key in keys]

    def judge(self, model, recordings: Recordings, control: Callable[[], str], step: int) -> list[Event]:
        """Scores the dev set with the weights after `step`, if there is one and it is not known yet; what is to be
        told and kept of it."""
        if not self.dev or step in self.dev_values:
            return []
        work = partial(self._put, self.conditions[""], partial(predict, model), model)
        rows = self._rows(work, self.dev, self.tasks, self._dev_modality, recordings, control, name="dev")
        metric = self.resolved.spec.evaluate.metric
        values = [value for part in by_task(rows).values() if (value := score(part).get(metric)) is not None]
        if not values:
            raise DataError(f"evaluate.dev: no utterance has anything to count for the metric {metric}")
        self.dev_values[step] = value = sum(values) / len(values)
        told = {"kind": "dev", "step": step, "metric": metric, "value": value, "utterances": len(rows)}
        if len(by_task(rows)) > 1:
            parts = {name: score(part).get(self.tasks[name].metrics[0]) for name, part in by_task(rows).items()}
            self._dev_tasks[step] = told["tasks"] = {name: v for name, v in parts.items() if v is not None}
        return [told]

    def curve(self) -> list[DevScore]:
        """What is known of the dev set, step by step."""
        known = sorted(self.dev_values.items())
        return [DevScore(step=step, value=v, tasks=self._dev_tasks.get(step, {})) for step, v in known]

    def recall(self, events: Sequence[Event]) -> None:
        """Takes over what earlier attempts found on the dev set."""
        self.dev_values |= {e["step"]: e["value"] for e in events if e["kind"] == "dev"}
        self._dev_tasks |= {e["step"]: e["tasks"] for e in events if e["kind"] == "dev" and "tasks" in e}

    def best_first(self) -> list[int]:
        """Steps by their value on the dev set; of equal ones the earlier first."""
        better = -1 if named(self.resolved.spec.evaluate.metric).higher_is_better else 1
        return sorted(self.dev_values, key=lambda step: (better * self.dev_values[step], step))

    def guards(self, model, recordings: Recordings, control: Callable[[], str]) -> Iterator[Guarding]:
        """Every further test set, answered by the base as it was loaded and by the model as it is now, recordings where
        it has them."""
        for guard, found in zip(self.resolved.guards, self.corpus.guards, strict=False):
            rows = limited(found.source.rows, self.resolved.spec.evaluate.limit)
            tasks = {task.name: task for task in guard.tasks}
            asked = (rows, tasks, modalities(rows, TWINLESS)[0], recordings, control, f"guard {guard.pin.ref}")
            with model.base_only():
                before = self._rows(partial(predict, model), *asked)
            yield Guarding(guard.pin.ref, before, self._rows(partial(predict, model), *asked))

    def _rows(
        self,
        work: Callable[..., list[Row]],
        utterances: list,
        tasks: dict[str, Task],
        modality: str,
        recordings: Recordings,
        control: Callable[[], str],
        name: str = "",
    ) -> list[Row]:
        """What `work` (of the arguments of `predict` from `utterances` on) answers, this rank a share of it."""
        turns = Turns(self.ranks, control, partial(self._progress, name or modality, len(utterances)))
        # A split base takes all ranks in every forward, so they answer all of it alike.
        split = self.resolved.spec.resources.shard_base
        mine = utterances if split else utterances[self.ranks.rank :: self.ranks.world_size]
        rows = turns.run(partial(work, mine, tasks, modality, self.resolved.spec.evaluate.decode, recordings, turns))
        found = {row["utterance"]: row for part in self.ranks.gather(rows) for row in part}
        return [found[u.id] for u in utterances]

    def _progress(self, name: str, of: int, done: int) -> None:
        now = time.perf_counter()
        if now - self._said_at >= PROGRESS_S:
            self._said_at = now
            self.tell({"kind": "progress", "modality": name, "done": done, "of": of})


def _check(kind: str, utterances: Sequence, tasks: dict[str, Task], scores: bool) -> None:
    """DataError for an utterance that no answer could be scored against. scores: labels and choices will come with a
    probability."""
    for utterance in utterances:
        task = tasks[utterance.task]
        try:
            count(reference(utterance, task), None, task, 1.0 if scores and task.picks_one else None)
        except ValueError as error:
            raise DataError(f"{kind} utterance {utterance.id} cannot be scored: {error}") from error
