"""A decoder's frozen layers split over the ranks (FSDP2), each gathered from all of them while it is computed.

A rank that failed on its way would leave the others waiting for its part of the next layer. So all say how they are
before every gather, and at the end of what they compute `alike`: what fails on one rank fails on all of them at the
same place, from which they can go on together.
"""

import contextlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from trainer.memory import out_of_memory
from trainer.ranks import ElsewhereError

gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)  # its name in earlier torch
WELL, FULL, FAILED = range(3)
"""How a rank is: at work, out of memory, or failed otherwise."""


class Shards:
    """The split layers, and how FSDP2 gathers them (its `AllGather`). `own`: parameters that stay whole on every rank,
    outside of it."""

    def __init__(self, layers: Sequence[nn.Module], own: Collection[nn.Parameter], device: torch.device):
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        self._begun: set[Any] = set()
        for layer in layers:
            # Said so, for FSDP2 takes each layer for a root, which by itself would stay gathered after its forward.
            whole = set(own) & set(layer.parameters())
            split: Any = fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
            split.set_custom_all_gather(self)
            split.register_forward_pre_hook(lambda layer, inputs: self._begun.add(layer), prepend=True)
            # Room made first in inference mode, by an evaluation before any step, would be of no use to a step.
            split.unshard()
            split.reshard()

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Room for a gathered layer."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor, input_tensor, group, async_op: bool = False):
        """Gathers a layer; ElsewhereError where another rank has failed since the last one."""
        self._meet()
        return gather(output_tensor, input_tensor, group=group, async_op=async_op)

    @contextlib.contextmanager
    def alike(self) -> Iterator[None]:
        """What all ranks compute alike, with equally many gathers: what fails in it on one rank raises its own error
        there and ElsewhereError on the others, and leaves the layers split as before."""
        try:
            yield
            self._meet()
        except ElsewhereError:
            self._reset()
            raise
        except Exception as error:
            self._say(FULL if out_of_memory(error) else FAILED)
            self._reset()
            raise

    def _meet(self) -> None:
        for rank, how in enumerate(self._say(WELL)):
            if how != WELL:
                # In these words `out_of_memory` knows it again.
                said = "not enough memory on" if how == FULL else "something failed on"
                raise ElsewhereError(f"resources.shard_base: {said} rank {rank}, whose part of the base all need")

    def _say(self, how: int) -> list[int]:
        """How every rank is; all say it equally often."""
        said = torch.zeros(dist.get_world_size(), dtype=torch.int64)
        said[dist.get_rank()] = how
        dist.all_reduce(said)
        return said.tolist()

    def _reset(self) -> None:
        """The layers are split again, whatever they were in the middle of."""
        for layer in self._begun:  # what never ran has nothing to reset, and FSDP2 would fail at it
            if not hasattr(layer, "reset_iter_state"):
                message = f"torch {torch.__version__} cannot go on after a failure; use 2.13 or later"
                raise RuntimeError(f"resources.shard_base: {message}, or a smaller micro_batch_tokens")
            layer.reset_iter_state()
