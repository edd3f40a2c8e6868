"""Several processes, one run: ``torchrun`` starts them, ``fit`` spreads each batch over them.

Every process draws the same random numbers from the same generator and works on the rows
``rank, rank + world_size, ...`` of each batch. A run therefore has the same batches, times and
noise however many processes share it. A data set may be too large for one process: each keeps the
examples ``rank, rank + world_size, ...``. With one process, all of this does nothing.

This is the only module of the library that reads environment variables: those that torchrun sets.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed

from ..paths import expand
from ..utils import pick_device

Result = TypeVar("Result")


@dataclass(frozen=True)
class Processes:
    """The processes that share a run, as one of them sees them.

    Args:
        rank: Number of this process, from 0.
        world_size: Number of processes.
        device: Device that this process works on.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")

    @classmethod
    def join(cls, device: str | torch.device) -> Processes:
        """Join the processes that torchrun started, or be the only one.

        Args:
            device: Name of a device, see ``pick_device``. Several processes on CUDA use one device
                each, ``cuda:LOCAL_RANK``, and nccl; elsewhere they use gloo. A process of its own
                works on exactly the device that was asked for.

        Returns:
            The processes, of which this one is ``rank``.

        Raises:
            ValueError: If this machine lacks the device.
            RuntimeError: If the other processes cannot be reached.
        """
        found, world_size = pick_device(device), int(os.environ.get("WORLD_SIZE", "1"))
        if world_size == 1 or not distributed.is_available():
            return cls(device=found)
        if found.type == "cuda":
            found = pick_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
            torch.cuda.set_device(found)
        if not distributed.is_initialized():
            distributed.init_process_group("nccl" if found.type == "cuda" else "gloo")
            atexit.register(_leave)
        return cls(distributed.get_rank(), world_size, found)

    def shard(self, value: Tensor) -> Tensor:
        """Return this process's rows of a tensor (B, ...) that every process has."""
        return value if self.world_size == 1 else value[self.rank :: self.world_size]

    def gather(self, value: Tensor) -> Tensor:
        """Return all rows, given this process's own, as ``shard`` deals them."""
        if self.world_size == 1:
            return value
        parts = [torch.empty_like(value) for _ in range(self.world_size)]
        distributed.all_gather(parts, value.contiguous())
        return torch.stack(parts, dim=1).flatten(0, 1)

    def fetch(self, read: Callable[[Tensor], Tensor], index: Tensor) -> Tensor:
        """Return examples of something that the processes keep in shares.

        Args:
            read: Gives rows of this process's share, by their place in it. The share is not empty.
            index: Numbers of the examples (B,), the same in every process.

        Returns:
            The examples, float32 (B, ...), the same in every process.
        """
        if self.world_size == 1:
            return read(index)
        own = index % self.world_size == self.rank
        # read as many rows as are asked for: counting this process's own would make a GPU wait
        rows = read(torch.where(own, index // self.world_size, 0)).to(self.device, torch.float32)
        out = torch.where(expand(own.to(self.device), rows), rows, 0)
        distributed.all_reduce(out)
        return out.to(index.device)

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of every process's value."""
        if self.world_size == 1:
            return value
        value = value.detach().clone()
        distributed.all_reduce(value)
        return value

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of every process's value."""
        return value if self.world_size == 1 else self.sum(value) / self.world_size

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether any process has set it."""
        if self.world_size == 1:
            return list(flags)
        return [bool(v) for v in self.sum(torch.tensor(flags, device=self.device).float()).tolist()]

    def on_first(self, action: Callable[[], Result]) -> Result:
        """Call ``action`` in the first process alone, and tell every process how that went.

        Without it, an error in the first process would leave the others waiting for ever.

        Args:
            action: What only the first process may do, such as writing a file.

        Returns:
            What ``action`` returned, in every process.

        Raises:
            Exception: What ``action`` raised, in every process.
        """
        if self.world_size == 1:
            return action()
        outcome: list = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = action()
            except Exception as error:
                outcome[1] = error
        distributed.broadcast_object_list(outcome, device=self.device)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()
