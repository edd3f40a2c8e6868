"""The state of per-example anchors: one estimate of x_0 for each example of a data set."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class AnchorStore:
    """Keep one estimate of x_0 for each example, in memory. It starts as N(0, I).

    Args:
        examples: Number of examples, at least 1.
        shape: Shape of one example.
        seed: Seed of the first estimates.

    Attributes:
        estimates: The estimates, float32 (examples, *shape).
    """

    def __init__(self, examples: int, shape: tuple[int, ...], seed: int = 0) -> None:
        if examples < 1:
            raise ValueError(f"an anchor store needs at least one example, got {examples!r}")
        draws = np.random.default_rng(seed).standard_normal((examples, *shape), dtype=np.float32)
        self.estimates = torch.from_numpy(draws)

    def __len__(self) -> int:
        return len(self.estimates)

    def read(self, index: Tensor) -> Tensor:
        """Return the estimates of the examples ``index`` (B,), float32 (B, ...), on the device of ``index``.

        Raises:
            IndexError: For an index out of range.
            ValueError: For an index that is not whole numbers of shape (B,).
        """
        self._check_index(index)
        return self.estimates[index.cpu()].to(index.device)

    def update(self, index: Tensor, estimate: Tensor) -> None:
        """Store new estimates. Where an index comes twice, the last one stays. What is refused changes nothing.

        Args:
            index: Examples (B,).
            estimate: Their new estimates (B, ...).

        Raises:
            IndexError: For an index out of range.
            ValueError: For estimates of another shape, whole numbers, NaN or infinity.
        """
        self._check_index(index)
        expected = (len(index), *self.estimates.shape[1:])
        if tuple(estimate.shape) != expected:
            raise ValueError(f"estimates must have shape {expected}, got {tuple(estimate.shape)}")
        if not estimate.is_floating_point():
            raise ValueError(f"estimates must be floats, got {estimate.dtype}")
        if not bool(torch.isfinite(estimate).all()):
            raise ValueError("estimates hold NaN or infinite values: the store is left as it was")
        # numpy, whose last value of a repeated index stays; torch leaves that open
        self.estimates.numpy()[index.cpu().numpy()] = estimate.detach().float().cpu().numpy()

    def _check_index(self, index: Tensor) -> None:
        if index.ndim != 1 or index.is_floating_point() or index.dtype == torch.bool:
            raise ValueError(
                f"index must be whole numbers of shape (B,), got {index.dtype} {tuple(index.shape)}"
            )
        if len(index) and not (0 <= int(index.min()) and int(index.max()) < len(self)):
            raise IndexError(
                f"index must lie in [0, {len(self)}), got {int(index.min())} to {int(index.max())}"
            )
