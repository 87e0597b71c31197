"""The ranks of one job: a gloo group of processes, or just this one.

A rank that fails by itself leaves the others waiting in their next reduction. So whatever can fail on one rank alone
is done `together`, or in `Turns`: then every rank raises the same error at the same place.
"""

import contextlib
import os
import pickle
import socket
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

ACTIONS = ("continue", "checkpoint_and_exit", "abort")
"""What `control` may ask for, the strongest last."""


class ElsewhereError(RuntimeError):
    """Another rank failed at what all ranks compute together; its own error says why."""


class Ranks:
    """This process's place among the ranks, and the one reduction that a step needs."""

    def __init__(self, rank: int = 0, world_size: int = 1):
        self.rank, self.world_size = rank, world_size

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, the same bits on every rank; the tensor itself where there is one."""
        if self.world_size > 1:
            on_cpu = values.cpu()  # gloo
            dist.all_reduce(on_cpu)
            return on_cpu.to(values.device)
        return values

    def from_first(self, value):
        """Rank 0's value (any picklable object) on every rank."""
        if self.world_size > 1:
            box = [value]
            dist.broadcast_object_list(box, src=0)
            return box[0]
        return value

    def gather(self, value) -> list:
        """Every rank's value (any picklable object), in rank order, on every rank."""
        if self.world_size > 1:
            out: list = [None] * self.world_size
            dist.all_gather_object(out, value)
            return out
        return [value]

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What fails on one rank in this block fails on all at its end, which all ranks reach at once. In the block
        itself nothing is reduced or gathered."""
        failure = None
        try:
            yield
        except Exception as error:
            failure = error
        self.agree(failure)

    def agree(self, failure: Exception | None) -> None:
        """Raises the first rank's failure on every rank, if one has any, rather its cause than what it did elsewhere;
        all ranks call it."""
        if self.world_size == 1:
            if failure is not None:
                raise failure
            return
        found = self.gather(failure and _portable(failure, self.rank))
        failed = [(rank, error) for rank, error in enumerate(found) if error is not None]
        if failed:
            rank, error = min(failed, key=lambda one: isinstance(one[1], ElsewhereError))
            raise failure if failure is not None and rank == self.rank else error


def _portable(error: Exception, rank: int) -> Exception:
    """The error as other ranks can raise it: a copy that says where it happened."""
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:  # some errors cannot be taken apart and made again
        copy = RuntimeError(f"{type(error).__name__}: {error}")
    copy.add_note(f"on rank {rank}:\n{''.join(traceback.format_exception(error))}")
    return copy


class StoppedError(Exception):
    """`control` asked for an end (`action`); every rank raises it at the same place."""

    def __init__(self, action: str):
        super().__init__(action)
        self.action = action


class Turns:
    """Work that takes ranks different times: in between they share orders, failures and how far they are.
    `told` gets the number of things that all ranks together have done."""

    def __init__(self, ranks: Ranks, control: Callable[[], str], told: Callable[[int], None] = lambda done: None):
        self.ranks, self.control, self.told = ranks, control, told
        self._done, self._settled = 0, False

    def __call__(self, done: int = 0) -> None:
        """This rank has done so many more things and goes on. StoppedError, or any rank's failure."""
        self._done += done
        self._turn(True)

    def run(self, work: Callable[[], Any]) -> Any:
        """This rank's `work`, which calls these turns in between, however often; returns what it made when all ranks
        are ready. StoppedError, or any rank's failure."""
        made, failure = None, None
        try:
            made = work()
        except Exception as error:
            if self._settled:
                raise
            failure = error
        while self._turn(False, failure):
            pass
        return made

    def _turn(self, working: bool, failure: Exception | None = None) -> bool:
        """Whether any rank still works."""
        action = "continue"
        try:
            action = checked(self.control())
        except Exception as error:
            failure = failure or error
        own = [float(working), float(failure is not None), float(self._done), *(float(action == a) for a in ACTIONS)]
        still, failed, done, *asked = self.ranks.sum(torch.tensor(own, dtype=torch.float64)).tolist()
        if failed:
            self._settled = True
            self.ranks.agree(failure)
        strongest = next(a for a, n in reversed(list(zip(ACTIONS, asked, strict=True))) if n)
        if strongest == "abort" or (strongest != "continue" and still):  # all done: nothing is left to put off
            self._settled = True
            raise StoppedError(strongest)
        self.told(int(done))
        return bool(still)


def checked(action: str) -> str:
    """What a control said; ValueError where it may not say that."""
    if action not in ACTIONS:
        raise ValueError(f"control said {action!r}; it may say {', '.join(ACTIONS)}")
    return action


def spawn(work: Callable, world_size: int, *arguments, method: str = "spawn") -> None:
    """Runs `work(ranks, *arguments)` in `world_size` processes joined by gloo on this machine; raises where
    one of them fails. `method`: `spawn` starts afresh (`work` must be importable by name); `fork` is quicker,
    and sound only where the process has not used a GPU or more than one thread."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(  # type: ignore[attr-defined]
        _enter, (work, world_size, port, arguments), nprocs=world_size, start_method=method
    )


def _enter(rank: int, work: Callable, world_size: int, port: int, arguments: tuple) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    try:
        work(Ranks(rank, world_size), *arguments)
    finally:
        dist.destroy_process_group()
