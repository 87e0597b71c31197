"""A stage's examples, those of the next steps made in threads while a step is computed.

Threads do: reading a file, decoding and resampling leave Python's lock. What is made, and in what order the loop gets
it, does not depend on them.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from trainer.views import Example

THREADS = 4


class Ahead:
    """Hands out one step's examples after the other; a context, at whose end nothing more is made.

    make: example of a presentation. size: presentations of a step. depth: steps made ahead; 0: each when asked for.
    """

    def __init__(self, make: Callable[[int], Example], *, steps: int, size: int, depth: int):
        self._make, self._steps, self._size, self._depth = make, steps, size, depth
        self._pool = ThreadPoolExecutor(THREADS, "examples") if depth else None
        self._coming: dict[int, list[Future[Example]]] = {}
        self._held: tuple[int, list[Example]] = (-1, [])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def step(self, t: int) -> list[Example]:
        """Examples of step t of the stage, also when it is asked for again. Raises what making one raised."""
        if self._held[0] != t:
            if self._pool is None:
                found = [self._make(i) for i in self._presented(t)]
            else:
                for k in range(t, min(t + self._depth + 1, self._steps)):
                    if k not in self._coming:
                        self._coming[k] = [self._pool.submit(self._make, i) for i in self._presented(k)]
                found = [made.result() for made in self._coming.pop(t)]
            self._held = t, found
        return self._held[1]

    def _presented(self, t: int) -> range:
        return range(t * self._size, (t + 1) * self._size)
