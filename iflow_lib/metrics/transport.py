"""Exact and sliced optimal transport."""

from __future__ import annotations

import math
import warnings

from torch import Tensor

from ..data import checked


def w2(x, y) -> float:
    """Exact 2-Wasserstein distance between two sets of equally weighted points, by POT's network simplex.

    W2(x, y)^2 = min over couplings P of sum_ij P_ij |x_i - y_j|^2
    (Peyre and Cuturi 2019, Computational Optimal Transport, proposition 2.2 with p = 2)

    x: (n, ...), y: (m, ...), any rank, flattened; computed in float64 on the CPU, in memory for n x m
    numbers. Raises ValueError for whole numbers, NaN, empty sets or differing dimensions.
    """
    ot = _pot()
    x, y = _two_sets(x, y)
    centre = x.mean(0)  # POT expands the square, which loses digits far from the origin
    cost = ot.dist((x - centre).numpy(), (y - centre).numpy(), metric="sqeuclidean")
    value, log = ot.emd2([], [], cost, numItermax=10_000_000, log=True)
    if log["warning"] is not None:
        raise RuntimeError(
            f"exact transport of {len(x)} to {len(y)} points did not finish: {log['warning']}"
        )
    return math.sqrt(max(0.0, float(value)))


def sliced_w2(x, y, n_projections: int = 256, seed: int = 0) -> float:
    """Sliced 2-Wasserstein distance: root mean square of W2 over projections on random lines, by POT.

    SW2(x, y)^2 = E_u W2(u . x, u . y)^2, u uniform on the unit sphere
    (Bonneel et al. 2015, J. Math. Imaging Vis. 51, 22-45)

    x: (n, ...), y: (m, ...), any rank, flattened. Cheap for many points or dimensions; the same ``seed``
    gives the same directions. Raises as ``w2``, and ValueError for n_projections < 1.
    """
    ot = _pot()
    if n_projections < 1:
        raise ValueError(f"n_projections must be at least 1, got {n_projections}")
    x, y = _two_sets(x, y)
    x, y = x.numpy(), y.numpy()
    return float(ot.sliced_wasserstein_distance(x, y, n_projections=n_projections, p=2, seed=seed))


def _pot():
    """POT, without what Python 3.12 and later say of its docstrings when they first compile it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        import ot
    return ot


def _two_sets(x, y) -> tuple[Tensor, Tensor]:
    x, y = (checked(v, name).cpu().double().flatten(1) for v, name in ((x, "x"), (y, "y")))
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x has {x.shape[1]} dimensions and y has {y.shape[1]}; they must agree")
    return x, y
