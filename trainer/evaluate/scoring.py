"""The sets that a job is scored on, each answered by all ranks together."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from trainer import baselines
from trainer.corpus import Corpus
from trainer.evaluate import modalities
from trainer.metrics import count, named, score
from trainer.predictions import Row, by_task, limited
from trainer.ranks import Ranks, Turns
from trainer.resolve import Resolved
from trainer.spec import Evaluate
from trainer.tokens import DataError, reference
from trainer.views import Recordings

PROGRESS_S = 5.0
"""Seconds between two words on how far an evaluation is."""
Event = dict[str, Any]


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
        self._dev_modality = modalities(self.dev, Evaluate(text_twin=False))[0] if self.dev else ""
        self.dev_values: dict[int, float] = {}
        self._said_at = -float("inf")
        for utterance in (*self.utterances, *self.dev):
            task = self.tasks[utterance.task]
            try:
                count(reference(utterance, task), None, task)
            except ValueError as error:
                kind = "dev" if utterance in self.dev else "test"
                raise DataError(f"{kind} utterance {utterance.id} cannot be scored: {error}") from error

    def test(self, model, recordings: Recordings, control: Callable[[], str]) -> Iterator[tuple[str, list[Row]]]:
        """The test's prediction rows, modality by modality, on every rank; errors as of `trainer.ranks.Turns`."""
        for modality in self.modalities:
            yield modality, self._rows(model, self.utterances, modality, recordings, control)

    def judge(self, model, recordings: Recordings, control: Callable[[], str], step: int) -> list[Event]:
        """Scores the dev set with the weights after `step`, if there is one and it is not known yet; what is to be
        told and kept of it."""
        if not self.dev or step in self.dev_values:
            return []
        rows = self._rows(model, self.dev, self._dev_modality, recordings, control, name="dev")
        metric = self.resolved.spec.evaluate.metric
        values = [value for part in by_task(rows).values() if (value := score(part).get(metric)) is not None]
        if not values:
            raise DataError(f"evaluate.dev: no utterance has anything to count for the metric {metric}")
        self.dev_values[step] = value = sum(values) / len(values)
        return [{"kind": "dev", "step": step, "metric": metric, "value": value, "utterances": len(rows)}]

    def recall(self, events: Sequence[Event]) -> None:
        """Takes over what earlier attempts found on the dev set."""
        self.dev_values |= {e["step"]: e["value"] for e in events if e["kind"] == "dev"}

    def best_first(self) -> list[int]:
        """Steps by their value on the dev set; of equal ones the earlier first."""
        better = -1 if named(self.resolved.spec.evaluate.metric).higher_is_better else 1
        return sorted(self.dev_values, key=lambda step: (better * self.dev_values[step], step))

    def _rows(self, model, utterances: list, modality: str, recordings, control, name: str = "") -> list[Row]:
        turns = Turns(self.ranks, control, partial(self._progress, name or modality, len(utterances)))
        mine = utterances[self.ranks.rank :: self.ranks.world_size]
        asked = (mine, self.tasks, modality, self.resolved.spec.evaluate.decode, recordings, turns)
        rows = turns.run(partial(baselines.answers_of, self.resolved, self.corpus, model, *asked))
        found = {row["utterance"]: row for part in self.ranks.gather(rows) for row in part}
        return [found[u.id] for u in utterances]

    def _progress(self, name: str, of: int, done: int) -> None:
        now = time.perf_counter()
        if now - self._said_at >= PROGRESS_S:
            self._said_at = now
            self.tell({"kind": "progress", "modality": name, "done": done, "of": of})
