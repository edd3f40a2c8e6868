"""Comparisons of two samples: can they be told apart, does one cover the other or copy it?

All of them work on points or features (n, d); for images give ``metrics.embed(images)``. As
everywhere, show ``metrics.real_floor(distance, metrics.real_pairs(name))`` beside them.
Each raises ValueError for whole numbers, NaN, too few points or differing dimensions.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..utils import check_seed
from .transport import point_sets


def energy_distance(x: Any, y: Any) -> float:
    """Compute the energy distance with unbiased means.

        2 E|a - b| - E|a - a'| - E|b - b'|,  a, a' from x and b, b' from y

    (Szekely and Rizzo 2013, J. Stat. Plan. Inference 143). It is 0 between real draws on average,
    so it may be negative.

    Args:
        x: Samples (n, ...), n >= 2.
        y: Data (m, ...), m >= 2.

    Returns:
        The distance, in the units of the points.
    """
    x, y = point_sets(x, y)
    between = 2 * torch.cdist(x, y).mean()
    return float(
        between - _mean_over_pairs(torch.cdist(x, x)) - _mean_over_pairs(torch.cdist(y, y))
    )


def mmd(x: Any, y: Any, bandwidth: float | None = None) -> float:
    """Compute the squared maximum mean discrepancy with a Gaussian kernel, unbiased.

        E k(a, a') + E k(b, b') - 2 E k(a, b),  k(a, b) = exp(-|a - b|^2 / (2 h^2))

    (Gretton et al. 2012, JMLR 13, eq. 3). It may be negative.

    Args:
        x: Samples (n, ...), n >= 2.
        y: Data (m, ...), m >= 2.
        bandwidth: The width h of the kernel, in the units of the points. None takes the median
            distance within the data y, so that different samples are measured by the same kernel.

    Returns:
        The squared discrepancy.

    Raises:
        ValueError: For a bandwidth that is not positive.
    """
    x, y = point_sets(x, y)
    inside = torch.cdist(y, y)
    h = float(inside[inside > 0].median()) if bandwidth is None else float(bandwidth)
    if not h > 0:
        raise ValueError(f"bandwidth must be positive, got {bandwidth!r}")

    def kernel(distances: Tensor) -> Tensor:
        return torch.exp(-distances.square() / (2 * h * h))

    return float(
        _mean_over_pairs(kernel(torch.cdist(x, x)))
        + _mean_over_pairs(kernel(inside))
        - 2 * kernel(torch.cdist(x, y)).mean()
    )


def _mean_over_pairs(matrix: Tensor) -> Tensor:
    """Mean of a square matrix without its diagonal, where each point meets itself."""
    n = len(matrix)
    if n < 2:
        raise ValueError(f"at least 2 points of each set are needed, got {n}")
    return (matrix.sum() - matrix.diagonal().sum()) / (n * (n - 1))


def c2st(x: Any, y: Any, seed: int = 0) -> float:
    """Compute how often a small network tells samples from data: the classifier two-sample test.

    (Lopez-Paz and Oquab 2017, arXiv 1610.06545.) The network is scikit-learn's MLP with two hidden
    layers of ``10 d`` (20 to 200) on standardized features; the value is its mean accuracy on the
    folds left out of 5. The larger set is cut to the size of the smaller.

    Args:
        x: Samples (n, ...), n >= 10.
        y: Data (m, ...), m >= 10.
        seed: Seed of the network and the folds.

    Returns:
        The accuracy: 0.5 is perfect, 1 is a full separation.
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = point_sets(x, y)
    n, seed = min(len(x), len(y)), check_seed(seed)
    if n < 10:
        raise ValueError(f"c2st needs at least 10 points of each set, got {n}")
    points = torch.cat([x[:n], y[:n]]).numpy()
    is_data = [0] * n + [1] * n
    width = min(200, max(20, 10 * x.shape[1]))
    network = MLPClassifier((width, width), max_iter=300, early_stopping=True, random_state=seed)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    classifier = make_pipeline(StandardScaler(), network)
    return float(cross_val_score(classifier, points, is_data, cv=folds).mean())


class Coverage(NamedTuple):
    """How realistic samples are, and how much of the data they cover.

    Precision and recall: Kynkaanniemi et al. 2019, arXiv 1904.06991. Density and coverage: Naeem et
    al. 2020, arXiv 2002.09797.

    Attributes:
        precision: Share of samples inside a ball of the data.
        recall: Share of the data inside a ball of the samples.
        density: Mean number of the data's balls that hold a sample, divided by k.
        coverage: Share of the data's balls that hold a sample.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(x: Any, y: Any, k: int = 5) -> Coverage:
    """Compute precision, recall, density and coverage by balls around points.

    The ball of a point reaches to its k-th nearest neighbour in its own set.

    Args:
        x: Samples (n, ...), n > k.
        y: Data (m, ...), m > k.
        k: Number of neighbours.

    Returns:
        The four shares; two real draws give about (0.95, 0.95, 1, 1 - 2^-k).
    """
    x, y = point_sets(x, y)
    if not 1 <= k < min(len(x), len(y)):
        raise ValueError(
            f"k must be at least 1 and smaller than both sets, got {k} for {len(x)} and {len(y)}"
        )
    data_radii, sample_radii = _radii(y, k), _radii(x, k)
    balls_per_sample = []  # how many balls of the data hold each sample
    data_recalled = torch.zeros(len(y), dtype=torch.bool)
    nearest_sample = torch.full((len(y),), math.inf, dtype=y.dtype)
    # in blocks of samples, so that memory does not grow with both sets
    for samples, radii in zip(x.split(1000), sample_radii.split(1000)):
        distances = torch.cdist(samples, y)
        balls_per_sample.append((distances < data_radii[None]).sum(1).double())
        data_recalled |= (distances < radii[:, None]).any(0)
        nearest_sample = torch.minimum(nearest_sample, distances.amin(0))
    balls = torch.cat(balls_per_sample)
    return Coverage(
        precision=float((balls > 0).double().mean()),
        recall=float(data_recalled.double().mean()),
        density=float(balls.mean() / k),
        coverage=float((nearest_sample < data_radii).double().mean()),
    )


def _radii(points: Tensor, k: int) -> Tensor:
    """The distance of each point to its k-th nearest neighbour."""
    nearest = [
        torch.cdist(rows, points).topk(k + 1, dim=1, largest=False).values[:, k]
        for rows in points.split(1000)
    ]  # k + 1, because the nearest is the point itself
    return torch.cat(nearest)


class Copies(NamedTuple):
    """How near samples are to the training data, beside fresh data.

    Attributes:
        nearest: Mean distance of a sample to the nearest training example over that of fresh data;
            1 is no nearer.
        copies: Share of samples that are nearer to one than all but a twentieth of fresh data are:
            0.05 for fresh data, 1 for training data.
    """

    nearest: float
    copies: float


def copies(x: Any, train: Any, fresh: Any) -> Copies:
    """Compare how near samples and fresh data are to the training data: are samples copies of it?

    Args:
        x: Samples (n, ...).
        train: The training data (m, ...).
        fresh: Data (k, ...) that were not trained on.

    Returns:
        The two figures.
    """
    (x, train), (fresh, _) = point_sets(x, train), point_sets(fresh, train)
    ours, theirs = (_to_nearest(points.float(), train.float()) for points in (x, fresh))
    close = ours < theirs.quantile(0.05)
    return Copies(float(ours.mean() / theirs.mean()), float(close.double().mean()))


def _to_nearest(points: Tensor, others: Tensor) -> Tensor:
    """The distance of each point to the nearest of others."""
    return torch.cat([torch.cdist(part, others).amin(1) for part in points.split(200)])
