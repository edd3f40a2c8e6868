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

    Attributes:
        estimates: The estimates, float32 (examples, *shape).
    """

    def __init__(self, examples: int, shape: tuple[int, ...], seed: int = 0) -> None:
        draws = np.random.default_rng(seed).standard_normal((examples, *shape), dtype=np.float32)
        self.estimates = torch.from_numpy(draws)

    def __len__(self) -> int:
        return len(self.estimates)

    def read(self, index: Tensor) -> Tensor:
        """Return the estimates of examples.

        Args:
            index: Their numbers (B,).

        Returns:
            The estimates, float32 (B, ...), on the device of ``index``.
        """
        return self.estimates[index.cpu()].to(index.device)

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
        # numpy, whose last value of a repeated index stays; torch leaves that open
        self.estimates.numpy()[index.cpu().numpy()] = estimate.detach().float().cpu().numpy()
