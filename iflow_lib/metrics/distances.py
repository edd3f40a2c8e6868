"""Distances between features, and the floor of every distance: the same between two real draws.

On Fashion-MNIST, Frechet and kernel distances compare the features of a small classifier that comes
with the package. It was trained on 50,000 images, of which none is in the package's own subset.
These are not the published Inception distances: their values compare only with values made by this
same classifier.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..data import entry, load, names
from ..utils import check_int, check_seed
from .features import embed_both, fashion_features, fashion_reference


def frechet_distance(x: Any, y: Any, features: nn.Module | None = None) -> float:
    """Compute the Frechet distance between Gaussians that are fitted to the features of two sets.

        |mu_x - mu_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2))

    (Dowson and Landau 1982, J. Multivar. Anal. 12; on features: Heusel et al. 2017, arXiv
    1706.08500, eq. 6), by torchmetrics. Images reach the features as floats: nothing is resized or
    rounded. The published distance of this form uses the Inception network; on the shipped
    classifier the scale is another one. The estimate is biased upward for small sets: show
    ``real_floor`` at the same counts beside it.

    Args:
        x: Samples (n, ...): images in [-1, 1], or features (n, d).
        y: Data (m, ...).
        features: A module from images to features; None takes the shipped classifier for images.

    Returns:
        The distance, 0 for equal fits.

    Raises:
        ValueError: As ``embed``, and unless both sets have more samples than features, because the
            fit would be singular.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    x, y = embed_both(x, y, features)
    d = x.shape[1]
    if min(len(x), len(y)) <= d:
        raise ValueError(
            f"a Frechet distance on {d} features needs more than {d} samples of each, "
            f"got {len(x)} and {len(y)}"
        )
    metric = FrechetInceptionDistance(feature=_KnownFeatures(d), sync_on_compute=False)
    return max(0.0, _computed(metric, x, y).item())


def kernel_distance(
    x: Any,
    y: Any,
    features: nn.Module | None = None,
    subset_size: int | None = None,
    subsets: int = 20,
    seed: int = 0,
) -> float:
    """Compute the squared maximum mean discrepancy between the features of two sets.

        E k(a, a') + E k(b, b') - 2 E k(a, b),  k(a, b) = (a . b / d + 1)^3

    (Binkowski et al. 2018, arXiv 1801.01401, section 4), by torchmetrics: the mean of the unbiased
    estimate over random subsets. It is 0 on average between real draws, so it may be negative. The
    global random state is left alone.

    Args:
        x: Samples (n, ...): images in [-1, 1], or features (n, d).
        y: Data (m, ...).
        features: A module from images to features; None takes the shipped classifier for images.
        subset_size: Samples in a subset; None takes 1,000, or all where there are fewer.
        subsets: Number of subsets.
        seed: Seed of the subsets.

    Returns:
        The mean estimate.

    Raises:
        ValueError: As ``embed``, and for a ``subset_size`` below 2 or above the number of samples.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    x, y = embed_both(x, y, features)
    fewest = min(len(x), len(y))
    size = min(1000, fewest) if subset_size is None else subset_size
    if not 2 <= size <= fewest:
        raise ValueError(
            f"subset_size must be between 2 and the number of samples, {fewest}; got {size}"
        )
    subsets, seed = check_int("subsets", subsets), check_seed(seed)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance`")  # on memory
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reset the GPUs' too
        metric = KernelInceptionDistance(
            feature=_KnownFeatures(x.shape[1]),
            subsets=subsets,
            subset_size=int(size),
            sync_on_compute=False,
        )
        return _computed(metric, x, y)[0].item()


class _KnownFeatures(nn.Module):
    """A feature module for torchmetrics that returns its input: no image is turned to bytes."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def _computed(metric: Any, x: Tensor, y: Tensor) -> Any:
    metric.update(x, real=False)
    metric.update(y, real=True)
    return metric.compute()


# ---------------------------------------------------------------------------- floors and intervals


class Floor(NamedTuple):
    """The distance between real and real, which a perfect sampler would score.

    Attributes:
        mean: Mean over pairs of real draws.
        std: Standard deviation over the pairs.
        pairs: Number of pairs.
    """

    mean: float
    std: float
    pairs: int


def real_floor(
    metric: Callable[[Any, Any], float],
    make_pair: Callable[[int], tuple[Any, Any]],
    pairs: int = 10,
) -> Floor:
    """Compute a distance between real draws; one pair varies too much, so several are averaged.

    Args:
        metric: The distance, ``metric(x, y) -> float``.
        make_pair: ``make_pair(i)`` returns the i-th pair of real draws; see ``real_pairs``.
        pairs: Number of pairs.

    Returns:
        Mean, standard deviation and number of the distances.

    Raises:
        ValueError: For fewer than two pairs.
    """
    if pairs < 2:
        raise ValueError(f"a floor needs at least 2 pairs, better 10; got {pairs}")
    values = torch.tensor([metric(*make_pair(i)) for i in range(pairs)], dtype=torch.float64)
    return Floor(values.mean().item(), values.std().item(), pairs)


def real_pairs(name: str, n: int = 2000) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Return the ``make_pair`` of a data set, for ``real_floor``.

    For a law, such as those in the plane, a pair is two independent draws of n points. For
    fashion_mnist it is the features of n random images of the 10,000 for training, and those of the
    2,000 test images, which are the reference for samples (``fashion_reference``); the classifier
    saw neither.

    Args:
        name: The name of a data set whose entry says how its draws are compared.
        n: Number of examples in the first set of a pair.

    Returns:
        A function from i to the i-th pair.

    Raises:
        ValueError: For another data set, or an ``n`` above 10,000 on fashion_mnist.
    """
    n, known = check_int("n", n), entry(name)
    if known.compared_by is None:
        others = [other for other in names() if entry(other).compared_by]
        raise ValueError(f"no pairs for {name!r}; expected one of {', '.join(others)}")
    make = {"points": _pair_of_draws, "fashion_features": _pair_of_features}[known.compared_by]
    return lambda i: make(name, n, i)


def _pair_of_draws(name: str, n: int, i: int) -> tuple[Tensor, Tensor]:
    seed = 10_000 + 2 * i  # far from the seeds that a reader would choose
    return load(name, n, "test", seed=seed).x, load(name, n, "test", seed=seed + 1).x


def _pair_of_features(name: str, n: int, i: int) -> tuple[Tensor, Tensor]:
    train = fashion_features("train")
    if n > len(train):
        raise ValueError(f"{name} has {len(train)} training images, {n} were asked for")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(i))
    return train[order[:n]], fashion_reference()


def interval(values: Any) -> float:
    """Compute half the 95 % interval of the mean of independent values, by Student's t.

    Args:
        values: Numbers (n,).

    Returns:
        Half the width of the interval; NaN for fewer than two values.
    """
    from scipy.stats import t as student

    values = np.asarray(values, dtype=float)
    n = len(values)
    return float(values.std(ddof=1) * student.ppf(0.975, n - 1) / n**0.5) if n > 1 else math.nan
