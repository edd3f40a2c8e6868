"""More ways to look: is a sample distinguishable, does it cover, are trajectories straight, is a jump the flow map?

Distances between two samples work on points or features (n, d); give images as ``metrics.embed(images)``. As everywhere,
show ``metrics.real_floor(distance, metrics.real_pairs(name))`` beside them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .transport import _two_sets


def energy_distance(x, y) -> float:
    """``2 E|a - b| - E|a - a'| - E|b - b'|`` with unbiased means: 0 between real draws on average, so it may be negative.

    (Szekely and Rizzo 2013, J. Stat. Plan. Inference 143.) x: (n, ...), y: (m, ...), n, m >= 2. Raises ValueError.
    """
    x, y = _two_sets(x, y)
    return float(
        2 * torch.cdist(x, y).mean() - _between(torch.cdist(x, x)) - _between(torch.cdist(y, y))
    )


def mmd(x, y, bandwidth: float | None = None) -> float:
    """Squared maximum mean discrepancy, Gaussian kernel ``exp(-|a - b|^2 / (2 h^2))``, unbiased: may be negative.

    (Gretton et al. 2012, JMLR 13, eq. 3.) bandwidth: h, by default the median distance within y, the data, so that
    different samples are measured by the same kernel. x: (n, ...), y: (m, ...), n, m >= 2. Raises ValueError.
    """
    x, y = _two_sets(x, y)
    inside = torch.cdist(y, y)
    h = float(inside[inside > 0].median()) if bandwidth is None else float(bandwidth)
    if not h > 0:
        raise ValueError(f"bandwidth must be positive, got {bandwidth!r}")

    def kernel(distances: Tensor) -> Tensor:
        return torch.exp(-distances.square() / (2 * h * h))

    return float(
        _between(kernel(torch.cdist(x, x)))
        + _between(kernel(inside))
        - 2 * kernel(torch.cdist(x, y)).mean()
    )


def _between(matrix: Tensor) -> Tensor:
    """Mean of a square matrix without its diagonal."""
    n = len(matrix)
    if n < 2:
        raise ValueError(f"at least 2 points of each set are needed, got {n}")
    return (matrix.sum() - matrix.diagonal().sum()) / (n * (n - 1))


def c2st(x, y, seed: int = 0) -> float:
    """Classifier two-sample test: how often a small network, cross-validated, tells samples from data. 0.5 is perfect.

    (Lopez-Paz and Oquab 2017, arXiv 1610.06545.) scikit-learn's MLP with two hidden layers of ``10 d`` (20 to 200) on
    standardised features, 5 folds, mean accuracy on the folds left out; the larger set is cut to the size of the smaller.
    x: (n, ...), y: (m, ...), at least 10 of each. Raises ValueError.
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = _two_sets(x, y)
    n = min(len(x), len(y))
    if n < 10:
        raise ValueError(f"c2st needs at least 10 points of each set, got {n}")
    features = torch.cat([x[:n], y[:n]]).numpy()
    which = [0] * n + [1] * n
    width = min(200, max(20, 10 * x.shape[1]))
    network = MLPClassifier((width, width), max_iter=300, early_stopping=True, random_state=seed)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    return float(
        cross_val_score(make_pipeline(StandardScaler(), network), features, which, cv=folds).mean()
    )


class Coverage(NamedTuple):
    """Precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991), density and coverage (Naeem et al. 2020, arXiv
    2002.09797). Precision and density ask whether samples are realistic, recall and coverage whether all is there."""

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(x, y, k: int = 5) -> Coverage:
    """Share of samples x inside the k-nearest-neighbour balls of the data y, and the reverse; see ``Coverage``.

    x: (n, ...), y: (m, ...), more than k of each (else ValueError). Real draws give about (0.95, 0.95, 1, 1 - 2^-k).
    """
    x, y = _two_sets(x, y)
    if not 1 <= k < min(len(x), len(y)):
        raise ValueError(
            f"k must be at least 1 and smaller than both sets, got {k} for {len(x)} and {len(y)}"
        )

    def radius(points: Tensor) -> Tensor:  # the first neighbour is the point itself
        return torch.cat(
            [
                torch.cdist(rows, points).topk(k + 1, dim=1, largest=False).values[:, k]
                for rows in points.split(1000)
            ]
        )

    real, fake, found = radius(y), radius(x), []
    recalled, nearest = (
        torch.zeros(len(y), dtype=torch.bool),
        torch.full((len(y),), math.inf, dtype=y.dtype),
    )
    for rows, near in zip(
        x.split(1000), fake.split(1000)
    ):  # in blocks: memory does not grow with both sets
        apart = torch.cdist(rows, y)
        found.append((apart < real[None]).sum(1).double())
        recalled |= (apart < near[:, None]).any(0)
        nearest = torch.minimum(nearest, apart.amin(0))
    inside = torch.cat(found)
    return Coverage(
        float((inside > 0).double().mean()),
        float(recalled.double().mean()),
        float(inside.mean() / k),
        float((nearest < real).double().mean()),
    )
