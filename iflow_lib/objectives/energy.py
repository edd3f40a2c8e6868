"""What distribution matching is made of: the end of a jump, and the distance of two sets of points."""

from __future__ import annotations

import torch
from torch import Tensor

from ..model import FlowMap
from ..paths import expand


def end_of_jump(
    model: FlowMap, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None = None
) -> Tensor:
    """Return where one network call carries points on the line: ``x_t - (t - s) u(x_t, t, s)``.

    Args:
        model: The model that jumps.
        x: Points (B, ...) at the times t.
        t: Line times (B,).
        s: Line times (B,), at most t.
        labels: Classes (B,), for a network with classes.

    Returns:
        The ends, shape of x, with gradient.
    """
    return x - expand(t - s, x) * model(x, t, s, labels=labels)


def paired_energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """Return the energy distance of two sets of points, unbiased.

    ``2 E|x - y| - E|x - x'| - E|y - y'|`` (Szekely and Rizzo 2013, J. Stat. Plan. Inference 143).
    Pairs of the same row are left out, since one may have been made from the other.

    Args:
        x: Points (n, ...), n at least 2.
        y: Points of the same shape.

    Returns:
        A scalar that can be trained.
    """
    between = 1 - torch.eye(len(x), dtype=x.dtype, device=x.device)
    xx, yy, xy = (torch.cdist(a.flatten(1), b.flatten(1)) for a, b in ((x, x), (y, y), (x, y)))
    return ((2 * xy - xx - yy) * between).sum() / between.sum()
