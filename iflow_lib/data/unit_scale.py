"""Data of unit scale: the warning when they are far from it, and the remedy.

The noise of every path has standard deviation 1 in each coordinate. Where data are much wider, much
narrower or far off, a network spends its capacity on the scale, and a loss averaged over
coordinates sees little but the widest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..scaling import Standardization
from .mapped import SPACED_ROWS, row_blocks, spaced_rows
from .tensor_data import TensorData, resolved, values_and_labels
from .unpack import checked_floats

#: Beyond these, ``scale_warning`` speaks up.
WIDEST, NARROWEST, FARTHEST = 10.0, 0.1, 5.0
#: Sums of float64 are off by less than this share: a smaller deviation counts as none.
ROUNDING = 1e-12


def standardize(data: Any) -> TensorData:
    """Shift and scale data to mean 0 and standard deviation 1, and remember by how much.

    ``x -> (x - mean) / std``, with one mean and one deviation for each column of vectors (B, N),
    each channel of images (B, C, H, W), and each channel of series (B, T, C). The scale travels
    with the data into a model that is trained on them, and ``sample`` returns the original units. A
    column without variation is shifted and keeps its scale. Data that have a scaling already are
    returned as they are. ``standardize(train).scaling.apply(test)`` brings other data to the same
    scale. Give values with a large offset, such as timestamps, in float64: float32 has lost their
    digits.

    Args:
        data: What ``as_dataset`` takes, in any units.

    Returns:
        The standardized data, with ``scaling`` set.

    Raises:
        ValueError: As ``as_dataset``.
    """
    data = resolved(data)
    if isinstance(data, TensorData) and data.scaling is not None:
        return data
    values, labels = values_and_labels(data)
    name, noise = "tensor", None
    if isinstance(data, TensorData):
        name, noise = data.name, data.noise
    x = checked_floats(values, "data")  # in its own type: float64 is more exact here
    mapped = values if isinstance(values, np.memmap) else None
    mean, std, varies = _moments(x, mapped)
    scaling = Standardization(mean, torch.where(varies, std, 1.0))
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    for block, place in zip(row_blocks(x, mapped), row_blocks(out)):
        place.copy_(scaling.apply(block.cpu().double()))
    return TensorData(out, labels, name, noise, scaling)


def scale_warning(x: Tensor | TensorData) -> str | None:
    """Say in one line whether data are far from unit scale, and what to do about it.

    A column (a channel of images or series) is far if its mean is beyond 5 or its standard
    deviation beyond 10, or if it varies continuously with a deviation below 0.1. Columns that are
    constant, or constant for most examples (a pixel at the edge of a picture), are not. Up to 4,096
    evenly spaced examples are looked at.

    Args:
        x: Examples (B, ...), as a tensor or a ``TensorData``.

    Returns:
        One line that names the numbers and the remedy, or None if the scale is fine.
    """
    x, mapped = (x.x, x.mapped) if isinstance(x, TensorData) else (x.detach(), None)
    fewest, numbers = 16, 1 << 20  # enough examples, and not too many numbers
    count = min(SPACED_ROWS, max(fewest, numbers // max(1, x[0].numel())))
    rows = spaced_rows(x, count, mapped).cpu()
    mean, std, varies = (part.flatten() for part in _moments(rows))
    narrow = varies & (std < NARROWEST)
    narrow[narrow.clone()] = _spread_of_the_middle_half(rows, narrow) > 0
    far = (std > WIDEST) | (mean.abs() > FARTHEST) | narrow
    if not bool(far.any()):
        return None
    first, others = int(far.nonzero()[0]), int(far.sum()) - 1
    part = "column" if x.ndim == 2 else "channel"
    where = "the data have" if len(mean) == 1 else f"{part} {first} of the data has"
    among = f" (and {others} more are like it)" if others else ""
    return (
        f"{where} mean {float(mean[first]):.3g} and standard deviation {float(std[first]):.3g}{among}, "
        "far from the noise's 0 and 1: train on ifl.data.standardize(x), whose scale sample undoes"
    )


def _spread_of_the_middle_half(rows: Tensor, chosen: Tensor) -> Tensor:
    """Distance between the quartiles of the chosen columns."""
    columns = rows.movedim(_column_axis(rows), -1).flatten(0, -2)[:, chosen]
    in_order = columns.sort(0).values
    return in_order[len(in_order) * 3 // 4] - in_order[len(in_order) // 4]


def _column_axis(x: Tensor) -> int:
    """The axis of columns or channels: last of (B, N) and (B, T, C), second of (B, C, H, W)."""
    return x.ndim - 1 if x.ndim <= 3 else 1


def _moments(x: Tensor, mapped: Any = None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and standard deviation (population) in float64 and whether anything varies, by column.

    All three broadcast against one example: (N,), (C,) or (C, 1, 1).
    """
    axis = _column_axis(x)
    others = [i for i in range(x.ndim) if i != axis]
    columns, each = x.shape[axis], x.numel() // x.shape[axis]
    shape = (columns,) + (1,) * (x.ndim - 1 - axis)  # broadcasts against an example
    total = torch.zeros(columns, dtype=torch.float64)
    square = total.clone()
    for block in row_blocks(x, mapped):
        total += block.cpu().double().sum(others)
    mean = total / each
    for block in row_blocks(x, mapped):
        square += (block.cpu().double() - mean.reshape(shape)).square().sum(others)
    std = (square / each).sqrt()
    # a deviation below the spacing of x's own type is rounding: the column counts as constant
    varies = std > max(torch.finfo(x.dtype).eps, ROUNDING) * mean.abs()
    return mean.reshape(shape), std.reshape(shape), varies.reshape(shape)
