"""Several processes, one run: ``torchrun`` starts them, ``fit`` spreads a batch over them. Alone, this does nothing.

Every process draws the same random numbers from the same generator and works on the rows ``rank, rank + world, ...`` of
each batch, so that a run has the same batches, times and noise however many processes share it. Data sets and anchor
stores are too large to be held by everyone: each process keeps the examples ``rank, rank + world, ...``.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from ..utils import pick_device


@dataclass(frozen=True)
class Team:
    """``rank``: of this process; ``world``: number of processes; ``device``: where this one works."""

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")

    @classmethod
    def assemble(cls, device: str) -> Team:
        """The processes that torchrun started (nccl on CUDA, one device each; else gloo), or this one alone.

        Raises ValueError for a device that is not there, RuntimeError if the others cannot be reached.
        """
        found, world = pick_device(device), int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1 or not distributed.is_available():
            return cls(device=found)
        if found.type == "cuda":
            found = pick_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
            torch.cuda.set_device(found)
        if not distributed.is_initialized():
            distributed.init_process_group("nccl" if found.type == "cuda" else "gloo")
            atexit.register(
                lambda: distributed.is_initialized() and distributed.destroy_process_group()
            )
        return cls(distributed.get_rank(), world, found)

    def rows(self, value: Tensor | None) -> Tensor | None:
        """This process's rows of a tensor that all have."""
        return value if value is None or self.world == 1 else value[self.rank :: self.world]

    def gather(self, value: Tensor) -> Tensor:
        """All rows, from everyone's own, of which all have the same number."""
        if self.world == 1:
            return value
        parts = [torch.empty_like(value) for _ in range(self.world)]
        distributed.all_gather(parts, value.contiguous())
        return torch.stack(parts, dim=1).flatten(0, 1)

    def fetch(
        self, read: Callable[[Tensor], Tensor], index: Tensor, shape: tuple[int, ...]
    ) -> Tensor:
        """Examples ``index`` (B,) of something that is kept in shares: float32 (B, *shape), the same for everyone.

        read: gives rows of this process's share, by their place in it.
        """
        if self.world == 1:
            return read(index)
        own = index % self.world == self.rank
        out = torch.zeros(len(index), *shape, device=self.device)
        out[own.to(self.device)] = read(index[own] // self.world).to(out)
        distributed.all_reduce(out)
        return out.to(index.device)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of everyone's value."""
        if self.world == 1:
            return value
        value = value.detach().clone()
        distributed.all_reduce(value)
        return value / self.world

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether anyone has set it."""
        if self.world == 1:
            return list(flags)
        seen = torch.tensor(flags, dtype=torch.float32, device=self.device)
        distributed.all_reduce(seen)
        return [bool(v) for v in seen.tolist()]

    def wait(self) -> None:
        """Until everyone is here."""
        if self.world > 1:
            self.any(False)
