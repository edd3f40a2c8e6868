"""How many samples lie where no data are: what a distance of whole sets hardly sees."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from ..data import entry, load, names
from .transport import point_sets

#: Data that stand for the support of a set, and fresh data that its border is measured by.
SUPPORT, FRESH = 100_000, 20_000
#: Seed of the fresh data; the data themselves are those that models are trained on, of seed 0.
FRESH_SEED = 1900


class Support:
    """The surroundings of data in which 99 % of fresh data lie.

    A point is on the support if it is no farther from the nearest of the data than 99 % of fresh
    data are. In few dimensions, where neighbours are near, that is a sharp border.

    Args:
        data: Data (m, ...), many of them.
        fresh: Other data of the same law, (k, ...), at least 100.
        inside: The share of fresh data that is inside, by definition.

    Attributes:
        radius: The distance from the nearest of the data up to which a point is on the support.

    Raises:
        ValueError: For fewer than 100 fresh data, or as ``w2``.
    """

    def __init__(self, data: Any, fresh: Any, inside: float = 0.99) -> None:
        import numpy as np
        from scipy.spatial import cKDTree

        known, fresh = point_sets(data, fresh)
        if len(fresh) < 100:
            raise ValueError(f"a border needs at least 100 fresh data, got {len(fresh)}")
        self._tree, self._one = cKDTree(known.numpy()), known[:1]
        self.radius = float(np.quantile(self._tree.query(fresh.numpy())[0], inside))

    def off(self, x: Any) -> float:
        """Return the share of points (n, ...) that lie off the support."""
        points, _ = point_sets(x, self._one)
        return float((self._tree.query(points.numpy())[0] > self.radius).mean())


def off_support(x: Any, name: str) -> float:
    """Compute the share of samples off the support of a set in the plane.

    That is the share that is farther from the nearest of 100,000 data points, those that models are
    trained on, than 99 % of fresh ones are. So it is 0.01 for real points. W2 hardly sees a thin
    bridge of samples between two modes: few points, moved a short way. This counts them.

    Args:
        x: Samples (n, 2).
        name: The set, a law: its draws are points. The first call for a set takes a second.

    Returns:
        The share, from 0 to 1.

    Raises:
        ValueError: For another set, or as ``w2``. For data of your own there is ``Support``.
    """
    return _support_of(name).off(x)


@lru_cache
def _support_of(name: str) -> Support:
    if entry(name).compared_by != "points":
        laws = ", ".join(one for one in names() if entry(one).compared_by == "points")
        raise ValueError(f"no support is known for {name!r}; expected one of {laws}, or Support")
    fresh = load(name, FRESH, seed=FRESH_SEED).x
    return Support(load(name, SUPPORT).x, fresh)
