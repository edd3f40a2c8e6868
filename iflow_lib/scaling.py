"""The scale of data: taken away before training, given back to samples.

This module imports nothing of ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: The coarsest spacing of float32 at the mean, in standard deviations, that samples may have.
COARSEST = 1e-3


@dataclass(frozen=True, eq=False)
class Standardization:
    """A shift and a scale that bring data to mean 0 and standard deviation 1.

    ``apply`` computes ``(x - mean) / std`` and ``undo`` computes ``x * std + mean``. Both tensors
    broadcast against one example: shape (N,) for vectors (B, N), (C, 1, 1) for images (B, C, H, W),
    (C,) for series (B, T, C).

    Both are float32, or float64 where float32 could not hold the data: where a deviation is below
    1/8,000 of its mean, as with timestamps, or outside the range of float32. ``undo`` then returns
    float64.

    Args:
        mean: The mean of the data, in the units of the data.
        std: The standard deviation of the data, in the units of the data; positive, the shape of
            ``mean``.

    Raises:
        ValueError: If the shapes differ, or a value is not finite, or a deviation is not positive.
    """

    mean: Tensor
    std: Tensor

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            value = getattr(self, name)
            value = value.detach().cpu() if isinstance(value, Tensor) else value
            object.__setattr__(self, name, torch.as_tensor(value, dtype=torch.float64))
        if self.mean.shape != self.std.shape:
            raise ValueError(
                f"mean and std must have one shape, got {tuple(self.mean.shape)} and "
                f"{tuple(self.std.shape)}"
            )
        if not bool(torch.isfinite(self.mean).all()):
            raise ValueError("mean must be finite everywhere: remove NaN and infinite values first")
        if not bool(((self.std > 0) & torch.isfinite(self.std)).all()):
            raise ValueError("std must be positive everywhere: use 1 where the data are constant")
        limits = torch.finfo(torch.float32)
        in_range = (self.std >= limits.tiny) & (
            torch.maximum(self.mean.abs(), self.std) <= limits.max
        )
        if bool((in_range & (limits.eps * self.mean.abs() <= COARSEST * self.std)).all()):
            for name in ("mean", "std"):
                object.__setattr__(self, name, getattr(self, name).float())

    def _wide(self, x: Tensor) -> Tensor:
        return x.double() if self.mean.dtype == torch.float64 else x

    def apply(self, x: Tensor) -> Tensor:
        """Return ``(x - mean) / std`` on the device and in the type of x.

        Args:
            x: Data (B, ...) in their own units.

        Returns:
            The standardized data, shape of x.
        """
        wide = self._wide(x)
        return ((wide - self.mean.to(wide)) / self.std.to(wide)).to(x)

    def undo(self, x: Tensor) -> Tensor:
        """Return ``x * std + mean`` on the device and in the type of x, or in float64 if std is.

        Args:
            x: Standardized values of shape (..., *example): a batch, or a trajectory of batches.

        Returns:
            The values in the units of the data, shape of x.
        """
        wide = self._wide(x)
        return wide * self.std.to(wide) + self.mean.to(wide)

    def config(self) -> dict[str, list]:
        """Return ``{"mean": ..., "std": ...}`` as nested lists, for JSON."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}
