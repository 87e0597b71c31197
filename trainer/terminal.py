"""A job in a terminal: progress bar, Ctrl-C, and what one rank of `python -m trainer` does."""

import signal
import sys
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from trainer.ranks import Ranks
from trainer.resolve import read_and_resolve
from trainer.result import Result
from trainer.spec import JobSpec
from trainer.store import open_store


def one_rank(ranks: Ranks, spec: JobSpec, out: str, roots: Sequence[str]) -> Result:
    """Runs a job as one of its ranks; importable by name, so that fresh processes can."""
    from trainer.run import run

    resolved, corpus = read_and_resolve(spec, roots)
    stop = Stop() if ranks.world_size == 1 else lambda: "continue"
    with Progress(spec.name, resolved.steps, shown=ranks.rank == 0) as progress:
        return run(resolved, open_store(out), progress, stop, corpus=corpus, ranks=ranks)


class Stop:
    """`control` for a terminal: the first Ctrl-C (or TERM) asks for a checkpoint, the second ends the
    process."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = True
        signal.signal(number, signal.SIG_DFL)
        print("stopping after this step, with a checkpoint", file=sys.stderr)

    def __call__(self) -> str:
        return "checkpoint_and_exit" if self.asked else "continue"


class Progress:
    """`sink` for a terminal: a bar over steps, notes above it."""

    def __init__(self, name: str, steps: int, *, shown: bool = True):
        self.bar = tqdm(
            total=steps, desc=name, unit="step", file=sys.stderr, dynamic_ncols=True, leave=False, disable=not shown
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def __call__(self, event: dict[str, Any]) -> None:
        match event:
            case {"kind": "step", "step": step, "loss": loss}:
                self.bar.n = step
                self.bar.set_postfix(loss=f"{loss:.3f}")
            case {"kind": "state", "state": state}:
                self.bar.set_postfix_str(state)
            case {"kind": "note", "message": message}:
                self.bar.write(message, file=sys.stderr)
