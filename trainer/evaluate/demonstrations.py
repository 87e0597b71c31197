"""k-shot: examples of the training side, in text, behind instruction and menu.

Which ones is the retriever's to say, per utterance; `random` shows nearly all the same ones, so that they are part of
a batch's shared prefix where the instruction stands first.
"""

from collections.abc import Mapping, Sequence

from trainer import answers
from trainer.demonstrations import Candidates
from trainer.manifest import Utterance
from trainer.metrics.normalise import basic
from trainer.rng import permutation
from trainer.spec import Demos, Task
from trainer.tokens import DataError, demonstration


class Demonstrations:
    """What is shown before each utterance. `pool`: rows of the training side, those with text and label are used."""

    def __init__(self, said: Demos, pool: Sequence[Utterance], tasks: Mapping[str, Task]):
        self.said, self.tasks = said, tasks
        usable = sorted((u for u in pool if u.text and u.label is not None), key=lambda u: u.id)
        self._candidates = Candidates(usable, said.seed)
        self._order = [usable[i] for i in permutation(said.seed, "evaluate.demos", len(usable))]
        self._asked: dict[tuple, Task] = {}

    def of(self, query: Utterance) -> list[Utterance]:
        """The first k of one seeded order that are of the query's task, and neither the query itself nor say the same
        (that would show its answer); by `tfidf` the k nearest of its language, the nearest last, as in training.
        DataError where there are fewer, or no transcript to look them up by."""
        if self.said.retriever == "tfidf":
            found = self._nearest(query)
        else:
            found = [u for u in self._order if u.task == query.task and not _same(u, query)][: self.said.k]
        if len(found) < self.said.k:
            message = f"utterance {query.id}: the training side has {len(found)} demonstrations of task {query.task}"
            raise DataError(f"{message} with text and label; evaluate.demos.k asks for {self.said.k}")
        return found

    def _nearest(self, query: Utterance) -> list[Utterance]:
        try:
            (places,) = self._candidates.nearest([query], self.said.k)
        except ValueError as error:
            raise DataError(str(error)) from None
        return [self._candidates.rows[n] for n in reversed(places)]

    def task(self, query: Utterance) -> Task:
        """The query's task with the demonstrations behind its instruction and menu."""
        shown, task = self.of(query), self.tasks[query.task]
        key = (query.task, query.language, *(u.id for u in shown))
        if key not in self._asked:
            lines = answers.instruction(task, query.language, None, [demonstration(u, task) for u in shown])
            told = {"instruction": {query.language: lines}, "menu": False}
            self._asked[key] = task.model_copy(update=told)
        return self._asked[key]


def _same(a: Utterance, b: Utterance) -> bool:
    if a.audio and (a.audio, a.offset_s) == (b.audio, b.offset_s):
        return True
    return bool(a.text and b.text) and basic(a.text) == basic(b.text)  # type: ignore[union-attr]
