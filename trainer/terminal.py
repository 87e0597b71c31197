"""A job in a terminal: progress bar, Ctrl-C, and what one rank of `python -m trainer` does."""

import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

from trainer.corpus import Corpus
from trainer.ranks import Ranks
from trainer.resolve import Resolved, read_and_resolve
from trainer.result import Result
from trainer.spec import JobSpec
from trainer.store import open_store


def one_rank(ranks: Ranks, spec: JobSpec, out: str, roots: Sequence[str]) -> Result:
    """Runs a job as one of its ranks; importable by name, so that fresh processes can."""
    return run_resolved(ranks, *read_and_resolve(spec, roots), out)


def run_resolved(ranks: Ranks, resolved: Resolved, corpus: Corpus, out: str) -> Result:
    """Runs a job whose data have been read, with a bar and Ctrl-C."""
    from trainer.run import run

    spec = resolved.spec
    limit = Limit(spec.resources.time if ranks.rank == 0 else None)  # one clock for all ranks
    stop = Stop(limit) if ranks.world_size == 1 else limit
    with Progress(spec.name, resolved.steps, shown=ranks.rank == 0) as progress:
        return run(resolved, open_store(out), progress, stop, corpus=corpus, ranks=ranks)


class Limit:
    """`control` that asks for a checkpoint when `seconds` (None: any number) have passed since it was made."""

    reason: str | None = None

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.monotonic):
        self.clock = clock
        self.end = None if seconds is None else clock() + seconds

    def __call__(self) -> str:
        if self.end is None or self.clock() < self.end:
            return "continue"
        self.reason = "timeout"
        return "checkpoint_and_exit"


class Stop:
    """`control` for a terminal: the first Ctrl-C (or TERM) asks for a checkpoint, the second ends the
    process; `limit` goes on counting."""

    def __init__(self, limit: Limit) -> None:
        self.asked, self.limit = False, limit
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = True
        signal.signal(number, signal.SIG_DFL)
        print("stopping after this step, with a checkpoint", file=sys.stderr)

    @property
    def reason(self) -> str | None:
        """`timeout` where it was the limit that ended the run."""
        return None if self.asked else self.limit.reason

    def __call__(self) -> str:
        return "checkpoint_and_exit" if self.asked else self.limit()


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
            case {"kind": "dev", "step": step, "metric": metric, "value": value}:
                self.bar.write(f"dev {metric} {value:.3f} after step {step}", file=sys.stderr)
            case {"kind": "note", "message": message}:
                self.bar.write(message, file=sys.stderr)
