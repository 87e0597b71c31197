"""A stage's examples, those of the next steps made in threads while a step is computed: read, decoded, resampled, and
turned into what the encoder gets.

Threads do, and need no copies between processes: libsndfile, soxr, numpy's and torch's transforms leave Python's lock
(decoding and mel frames of 3 and 15 s: two threads made as many as two processes). What is made, and in what order the
loop gets it, does not depend on them.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Self

from trainer.views import Example

THREADS = 4


class Step(NamedTuple):
    """The examples of one step."""

    outlines: Sequence[Example]
    """All of them, the same on every rank: what is computed where is decided by them."""
    made: dict[int, Example]
    """Those that are made here, by their place in the step."""


class Share(NamedTuple):
    """How several ranks make each its own part of a step."""

    outline: Callable[[int], Example]
    """A presentation's example without its recording."""
    own: Callable[[Sequence[Example]], Sequence[int]]
    """Of a step's outlines, the places of those that this rank makes."""


class Ahead:
    """Hands out one step's examples after the other; a context, at whose end nothing more is made.

    make: example of a presentation. size: presentations of a step. depth: steps made ahead; 0: each when asked for.
    share: without it all are made here, and are outlines themselves.
    """

    def __init__(
        self, make: Callable[[int], Example], *, steps: int, size: int, depth: int, share: Share | None = None
    ):
        self._make, self._steps, self._size, self._depth, self._share = make, steps, size, depth, share
        self._pool = ThreadPoolExecutor(THREADS, "examples") if depth else None
        self._coming: dict[int, Future] = {}
        self._held: tuple[int, Step] = (-1, Step([], {}))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def step(self, t: int) -> Step:
        """Step t of the stage, also when it is asked for again. Raises what making one of its examples raised."""
        if self._held[0] != t:
            for k in range(t, min(t + self._depth + 1, self._steps)):
                if k not in self._coming:
                    self._coming[k] = self._later(self._begin, k)
            outlines, coming = self._coming.pop(t).result()
            made = {n: example.result() for n, example in coming.items()}
            self._held = t, Step(outlines or list(made.values()), made)
        return self._held[1]

    def _begin(self, k: int) -> tuple[list[Example], dict[int, Future]]:
        """Outlines of step k where ranks share it, and its examples to come."""
        first = k * self._size
        outlines, own = [], range(self._size)
        if self._share is not None:
            outlines = [self._share.outline(first + n) for n in own]
            own = self._share.own(outlines)
        return outlines, {n: self._later(self._make, first + n) for n in own}

    def _later(self, work: Callable, *arguments) -> Future:
        if self._pool is not None:
            return self._pool.submit(work, *arguments)
        done: Future = Future()
        try:
            done.set_result(work(*arguments))
        except Exception as error:
            done.set_exception(error)
        return done
