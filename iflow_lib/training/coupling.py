"""Which noise each example of a batch is paired with: the order that shortens the way between them.

For data x_0 and noise z, ``|x_0 - z|^2 = |x_0|^2 + |z|^2 - 2 x_0 . z``. Whatever the order of the
noise, the squares sum to the same, so the least sum of squared distances is the largest sum of
``x_0 . z``. A path that weighs data by alpha and noise by sigma multiplies that sum by
``alpha sigma``, at every time: one order is the best of them all, on every path, and so on the line.

The noise of a batch is put in another order and nothing else. Its law is that of the path, the
heavy tails of PFGM++ included, and that of the data stays too; only their joint law is another.
It is optimal transport within the batch (arXiv 2302.00482, 2304.14772), not of the two laws.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Rounds of ``swapped_order``. Batches of some thousands still gain from more, smaller ones do not.
ROUNDS = 32
#: The golden ratio less 1. The fractions of its multiples lie evenly in [0, 1).
GOLDEN = 0.6180339887498949


class Pairing:
    """Put drawn noise in the order of the examples that it is paired with.

    On CUDA the order is that of ``swapped_order``, which never makes the GPU wait. Elsewhere it is
    that of ``exact_order``.

    Args:
        x_0: Data (B, ...).
        labels: Classes (B,), or None. Noise stays within a class, so that the noise of each class
            keeps its law. An example that is alone in its class keeps its own.

    Attributes:
        used: Whether any noise has been paired.
    """

    def __init__(self, x_0: Tensor, labels: Tensor | None = None) -> None:
        self.x_0, self.labels, self.used = x_0, labels, False

    def __call__(self, z: Tensor) -> Tensor:
        """Return the rows of z (B, ...) in another order."""
        self.used = True
        find = swapped_order if z.is_cuda else exact_order
        return z.index_select(0, find(self.x_0, z, self.labels))


def exact_order(x_0: Tensor, z: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return the order of the noise with the least sum of squared distances, exactly.

    The assignment is solved on the CPU (``scipy.optimize.linear_sum_assignment``), in time that
    grows with about the cube of the batch.

    Args:
        x_0: Data (B, ...).
        z: Noise (B, ...).
        labels: Classes (B,): noise stays within a class. None for one class.

    Returns:
        For each example, the row of its noise (B,), on the device of z.
    """
    from scipy.optimize import linear_sum_assignment  # late: it takes a quarter of a second

    # the CPU first: mps has no float64
    x, noise = x_0.detach().flatten(1).cpu().double(), z.detach().flatten(1).cpu().double()
    order = torch.arange(len(x))
    known = torch.zeros(len(x)) if labels is None else labels.cpu()
    for label in known.unique():
        rows = (known == label).nonzero()[:, 0]
        gain = x[rows] @ noise[rows].T
        # a number less for a whole column or row moves no optimum, and the solver starts nearer to it
        gain -= gain.max(0).values
        gain -= gain.max(1, keepdim=True).values
        order[rows] = rows[torch.from_numpy(linear_sum_assignment(gain.numpy(), maximize=True)[1])]
    return order.to(z.device)


def swapped_order(x_0: Tensor, z: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return an order of the noise that is nearly as good, without any wait for the device.

    Each round looks at all pairs of examples (2-opt, many swaps at once). Two that are each other's
    best partners swap their noise, if that shortens the sum of squared distances. A weight for each pair, another in each
    round, keeps all from wanting the same partner. Where nothing is left to swap, the sum is the
    least that swaps reach: within about a tenth, nearly nothing in the plane, of what the exact
    order gains over chance (``tests/test_coupling.py`` holds it to that).

    Args:
        x_0: Data (B, ...).
        z: Noise (B, ...), on the same device.
        labels: Classes (B,): noise stays within a class. None for one class.

    Returns:
        For each example, the row of its noise (B,).
    """
    gain = x_0.detach().flatten(1) @ z.detach().flatten(1).T
    rows = torch.arange(len(gain), device=gain.device)
    order, place = rows, rows.double()
    spread = (torch.outer(place, place) * GOLDEN).frac().to(gain.dtype)
    for i in range(ROUNDS):
        more = gain - gain.diagonal()[:, None]  # what each example gains from each one's noise
        more = more + more.T
        if labels is not None:
            more = more.masked_fill(labels[:, None] != labels, -1.0)
        most, best = (more * (spread + i * GOLDEN).frac()).max(1)
        swap = (best.index_select(0, best) == rows) & (most > 0)
        new = torch.where(swap, best, rows)
        order, gain = order.index_select(0, new), gain.index_select(1, new)
    return order
