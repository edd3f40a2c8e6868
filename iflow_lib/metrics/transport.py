"""Exact and sliced optimal transport between two sets of points."""

from __future__ import annotations

import math
import warnings
from types import ModuleType
from typing import Any

from torch import Tensor

from ..data import checked
from ..utils import check_int, check_seed


def w2(x: Any, y: Any) -> float:
    """Compute the exact 2-Wasserstein distance between two sets of equally weighted points.

        W2(x, y)^2 = min over couplings P of sum_ij P_ij |x_i - y_j|^2

    (Peyre and Cuturi 2019, Computational Optimal Transport, proposition 2.2 with p = 2), by the
    network simplex of POT, in float64 on the CPU, with memory for n x m numbers.

    Args:
        x: Points (n, ...) of any rank, flattened.
        y: Points (m, ...) of as many dimensions.

    Returns:
        The distance, in the units of the points.

    Raises:
        ValueError: For whole numbers, NaN, empty sets or differing dimensions.
        RuntimeError: If the simplex does not finish.
    """
    ot = _pot()
    x, y = point_sets(x, y)
    centre = x.mean(0)  # POT expands the square, which loses digits far from the origin
    cost = ot.dist((x - centre).numpy(), (y - centre).numpy(), metric="sqeuclidean")
    value, log = ot.emd2([], [], cost, numItermax=10_000_000, log=True)
    if log["warning"] is not None:
        raise RuntimeError(
            f"exact transport of {len(x)} to {len(y)} points did not finish: {log['warning']}"
        )
    return math.sqrt(max(0.0, float(value)))


def sliced_w2(x: Any, y: Any, n_projections: int = 256, seed: int = 0) -> float:
    """Compute the sliced 2-Wasserstein distance, which is cheap for many points or dimensions.

        SW2(x, y)^2 = E_u W2(u . x, u . y)^2,  u uniform on the unit sphere

    (Bonneel et al. 2015, J. Math. Imaging Vis. 51, 22-45), by POT.

    Args:
        x: Points (n, ...) of any rank, flattened.
        y: Points (m, ...) of as many dimensions.
        n_projections: Number of random directions u.
        seed: Seed of the directions.

    Returns:
        The distance, in the units of the points.

    Raises:
        ValueError: As ``w2``, and for ``n_projections`` below 1.
    """
    ot = _pot()
    n_projections, seed = check_int("n_projections", n_projections), check_seed(seed)
    x, y = point_sets(x, y)
    distance = ot.sliced_wasserstein_distance(
        x.numpy(), y.numpy(), n_projections=n_projections, p=2, seed=seed
    )
    return float(distance)


def point_sets(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Flatten two sets of examples to points in one space, in float64 on the CPU.

    Args:
        x: Examples (n, ...).
        y: Examples (m, ...).

    Returns:
        Points (n, d) and (m, d).

    Raises:
        ValueError: For whole numbers, NaN, empty sets or differing dimensions.
    """
    for value, name in ((x, "x"), (y, "y")):
        if getattr(value, "scaling", None) is not None:
            raise ValueError(
                f"{name} is standardized data, while sample returns the original units: give the data as they "
                "were, or the tensor .x to compare in the scale of the network"
            )
    x, y = (checked(v, name).cpu().double().flatten(1) for v, name in ((x, "x"), (y, "y")))
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x has {x.shape[1]} dimensions and y has {y.shape[1]}; they must agree")
    return x, y


def _pot() -> ModuleType:
    """POT, without what Python 3.12 and later say of its docstrings when they first compile it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        try:
            import ot
        except ImportError:
            raise ImportError(
                "w2 and sliced_w2 need POT: pip install 'iflow-lib[notebooks]', or pip install POT"
            ) from None
    return ot
