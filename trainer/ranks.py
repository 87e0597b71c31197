"""The ranks of one job: a gloo group of processes, or just this one."""

import os
import socket
from collections.abc import Callable

import torch
import torch.distributed as dist


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
