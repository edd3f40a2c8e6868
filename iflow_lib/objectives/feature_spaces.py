"""Spaces in which distributions of examples are compared, without a trained network.

Each is a module without weights that are trained: it is no part of a model or of a checkpoint, and
a new run makes the same one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data import TensorData
from ..data.mapped import row_blocks, spaced_rows

SPACES = ("data", "whitened", "random")
#: Largest number of elements of an example whose covariance is still taken.
MOST_ELEMENTS = 4096
#: Rows of the data that stand for all of them where distances are scaled.
ROWS = 1024
#: Random features of vectors: frequencies at each length, and the lengths in mean distances of examples.
FREQUENCIES, LENGTHS = 64, (1.0, 0.5, 0.25)
#: Random features of images: filters at each size, and places a side at which they are kept.
FILTERS, PLACES, SIZES = 32, 4, 3


def mean_distance(points: Tensor) -> float:
    """Return the mean distance between two of some points (n, ...); 0 for one point."""
    n, far = len(points), torch.pdist(points.flatten(1).double())
    return float(far.mean()) if n > 1 else 0.0


def mean_of_examples(data: TensorData) -> Tensor:
    """Return the mean of all examples, float64 (N,), in one pass over the data."""
    total = torch.zeros(data.x[0].numel(), dtype=torch.float64)
    for block in row_blocks(data.x, data.mapped):
        total += block.cpu().double().flatten(1).sum(0)
    return total / len(data)


def covariance(data: TensorData) -> Tensor:
    """Return the covariance of all examples, float64 (N, N), in two passes over the data."""
    mean = mean_of_examples(data)
    total = mean.new_zeros(len(mean), len(mean))
    for block in row_blocks(data.x, data.mapped):
        centred = block.cpu().double().flatten(1) - mean
        total.addmm_(centred.T, centred)
    return total / len(data)


def inverse_root(matrix: Tensor, ridge: float) -> Tensor:
    """Return ``(C + ridge c I)^(-1/2)``, where c is the largest eigenvalue of C.

    Args:
        matrix: A covariance C (N, N), float64.
        ridge: What is added to its eigenvalues, as a share of the largest.

    Raises:
        ValueError: If C is zero.
    """
    variances, axes = torch.linalg.eigh(matrix)
    most = float(variances[-1])
    if not most > 0:
        raise ValueError(
            "space='whitened' divides by the variance of the data, and all examples are the same: give "
            "other data, or space='data'"
        )
    return (axes / (variances.clamp(min=0) + ridge * most).sqrt()) @ axes.T


class Whitened(nn.Module):
    """Multiply examples by the inverse square root of the covariance of all data.

    Args:
        data: The data set. It is read twice, in blocks.
        ridge: See ``inverse_root``.

    Raises:
        ValueError: For examples of more than 4,096 elements, or that are all the same.
    """

    matrix: Tensor

    def __init__(self, data: TensorData, ridge: float) -> None:
        super().__init__()
        n = data.x[0].numel()
        if n > MOST_ELEMENTS:
            raise ValueError(
                f"space='whitened' needs a covariance of {n:,} x {n:,}, and takes examples of at most "
                f"{MOST_ELEMENTS:,} elements: give space='random'"
            )
        self.register_buffer("matrix", inverse_root(covariance(data), ridge).float())

    def forward(self, x: Tensor) -> Tensor:
        """Return the whitened examples (B, N) of x (B, ...)."""
        return x.flatten(1) @ self.matrix.to(x.dtype)


class RandomWaves(nn.Module):
    """Cosines and sines of random projections, at three lengths (Rahimi and Recht 2007, NIPS).

    Their distance grows like that of the points up to the length, and no further: the short ones
    see what is near.

    Args:
        elements: Elements N of an example.
        distance: Mean distance of two examples, the longest length.
        generator: Source of the projections.
    """

    frequencies: Tensor

    def __init__(self, elements: int, distance: float, generator: torch.Generator) -> None:
        super().__init__()
        draws = torch.randn(len(LENGTHS), elements, FREQUENCIES, generator=generator)
        lengths = distance * torch.tensor(LENGTHS)[:, None, None]
        self.register_buffer("frequencies", torch.cat((draws / lengths).unbind(), dim=1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (B, 384) of x (B, ...)."""
        phases = x.flatten(1) @ self.frequencies.to(x.dtype)
        return torch.cat([phases.cos(), phases.sin()], 1)


class RandomFilters(nn.Module):
    """Random convolutions of images at three sizes, each half of the one before.

    Args:
        channels: Channels of an image.
        generator: Source of the filters.
    """

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        inputs = channels
        for i in range(SIZES):
            shape = (FILTERS, inputs, 3, 3)
            filters = torch.randn(shape, generator=generator) * math.sqrt(2 / (9 * inputs))
            self.register_buffer(f"filters_{i}", filters)
            inputs = FILTERS

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (B, d) of images x (B, C, H, W): means over about 4 x 4 places."""
        found, h = [], x
        for i in range(SIZES):
            if i:
                h = F.avg_pool2d(h, 2)
            h = F.leaky_relu(F.conv2d(h, getattr(self, f"filters_{i}").to(x.dtype), padding=1), 0.2)
            part = [max(1, math.ceil(side / PLACES)) for side in h.shape[2:]]
            places = F.avg_pool2d(h, part, ceil_mode=True, count_include_pad=False)
            found.append(places.flatten(1))
            if min(h.shape[2:]) < 4:
                break
        return torch.cat(found, 1)


def feature_space(
    space: str, data: TensorData, ridge: float, seed: int
) -> tuple[nn.Module, float, float]:
    """Make a space for the examples of a data set.

    Args:
        space: "data", "whitened" or "random".
        data: The data set.
        ridge: See ``inverse_root``.
        seed: Seed of the random features.

    Returns:
        The module, from examples (B, ...) to points (B, d); by what its distances are to be
        multiplied, so that two examples are as far apart as in the data, on average; and how far
        that is.

    Raises:
        ValueError: If the space cannot be made for these data.
    """
    rows = spaced_rows(data.x, ROWS, data.mapped).cpu()
    distance = mean_distance(rows)
    if space == "data":
        return nn.Flatten(), 1.0, distance
    generator = torch.Generator().manual_seed(seed)
    module: nn.Module
    if space == "whitened":
        module = Whitened(data, ridge)
    elif rows.ndim == 4:
        module = RandomFilters(rows.shape[1], generator)
    else:
        module = RandomWaves(rows[0].numel(), distance or 1.0, generator)
    with torch.no_grad():
        there = mean_distance(module(rows))
    if not there > 0:
        raise ValueError(
            f"space={space!r} is scaled by the distances of the data, and all examples are the same: give "
            "other data, or space='data'"
        )
    return module, distance / there, distance
