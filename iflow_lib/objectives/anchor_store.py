"""The state of per-example anchors: one estimate of x_0 for each example of a data set."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class AnchorStore:
    """Keep one estimate of x_0 for each example, in memory. It starts as N(0, I).

    Args:
        examples: Number of examples.
        shape: Shape of one example.
        seed: Seed of the first estimates.
        device: Where they are kept: where the run computes, so that no step waits for a copy.

    Attributes:
        estimates: The estimates, float32 (examples, *shape).
    """

    def __init__(
        self,
        examples: int,
        shape: tuple[int, ...],
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        draws = np.random.default_rng(seed).standard_normal((examples, *shape), dtype=np.float32)
        self.estimates = torch.from_numpy(draws).to(device)

    def __len__(self) -> int:
        return len(self.estimates)

    def read(self, index: Tensor) -> Tensor:
        """Return the estimates of examples.

        Args:
            index: Their numbers (B,).

        Returns:
            The estimates, float32 (B, ...), on the device of ``index``.
        """
        return self.estimates[index.to(self.estimates.device)].to(index.device)

    def update(self, index: Tensor, estimate: Tensor) -> None:
        """Store new estimates. Of an index that comes twice, the last estimate stays.

        Args:
            index: Numbers of the examples (B,).
            estimate: Their new estimates (B, ...).

        Raises:
            IndexError: For an index out of range.
            ValueError: For estimates of another shape.
        """
        expected = (len(index), *self.estimates.shape[1:])
        if tuple(estimate.shape) != expected:
            raise ValueError(f"estimates must have shape {expected}, got {tuple(estimate.shape)}")
        index = index.to(self.estimates.device)
        # torch leaves open which value of a repeated index stays: so all of them are the last
        self.estimates[index] = estimate.detach().to(self.estimates)[last_of_each(index)]


def last_of_each(index: Tensor) -> Tensor:
    """Return for each entry of ``index`` (B,) the last place where the same number stands, (B,).

    It is found by sorting, because a search for what is equal would make a GPU wait.
    """
    order = index.argsort(stable=True)
    return order[torch.searchsorted(index[order], index, right=True) - 1]
