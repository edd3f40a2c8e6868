"""How far samples are from data. Every distance has a floor: the same distance between two real draws.

In the plane: the exact 2-Wasserstein distance. On Fashion-MNIST: Frechet and kernel distances between the
features of a small classifier that comes with the package, trained on 50,000 images of which none is in the
package's own subset. These are not the published Inception distances: their values compare only with values
made by this same classifier.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..data import PLANE, load
from .features import _fashion_features, _two_embedded, fashion_reference


class _Given(nn.Module):
    """Feature module for torchmetrics: hands on what ``embed`` found, so that no image is turned to bytes."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(x, y, features: nn.Module | None = None) -> float:
    """Frechet distance between Gaussians fitted to the features of x (samples) and y (data), by torchmetrics.

    |mu_x - mu_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2))
    (Dowson and Landau 1982, J. Multivar. Anal. 12; on features: Heusel et al. 2017, arXiv 1706.08500, eq. 6)

    x: (n, ...), y: (m, ...): images in [-1, 1], or features (n, d); ``features`` as for ``embed``. Images
    reach the features as floats: nothing is resized or rounded. The published distance of this form uses the
    Inception network; on the shipped classifier the scale is another one. Biased upward for small sets:
    always print ``real_floor`` at the same counts beside it.
    Raises as ``embed``, and ValueError unless there are more samples than features (the fit would be
    singular).
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    x, y = _two_embedded(x, y, features)
    d = x.shape[1]
    if min(len(x), len(y)) <= d:
        raise ValueError(
            f"a Frechet distance on {d} features needs more than {d} samples of each, "
            f"got {len(x)} and {len(y)}"
        )
    return max(
        0.0, _run(FrechetInceptionDistance(feature=_Given(d), sync_on_compute=False), x, y).item()
    )


def kernel_distance(
    x,
    y,
    features: nn.Module | None = None,
    subset_size: int | None = None,
    subsets: int = 20,
    seed: int = 0,
) -> float:
    """Squared maximum mean discrepancy between the features of x (samples) and y (data), by torchmetrics.

    E k(a, a') + E k(b, b') - 2 E k(a, b), k(a, b) = (a . b / d + 1)^3
    (Binkowski et al. 2018, arXiv 1801.01401, section 4)

    The mean of the unbiased estimate over ``subsets`` random subsets of ``subset_size``: 0 on average between
    real draws, so it may be negative. subset_size=None: 1,000, or all samples where there are fewer. The same
    ``seed`` gives the same subsets; the global random state is left alone. Otherwise as ``frechet_distance``.
    Raises as ``embed``, and ValueError for fewer samples than ``subset_size``, or a size below 2.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    x, y = _two_embedded(x, y, features)
    fewest = min(len(x), len(y))
    size = min(1000, fewest) if subset_size is None else subset_size
    if not 2 <= size <= fewest:
        raise ValueError(
            f"subset_size must be between 2 and the number of samples, {fewest}; got {size}"
        )
    if subsets < 1:
        raise ValueError(f"subsets must be at least 1, got {subsets}")
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance`")  # on memory
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reset the GPUs' too
        metric = KernelInceptionDistance(
            feature=_Given(x.shape[1]), subsets=subsets, subset_size=size, sync_on_compute=False
        )
        return _run(metric, x, y)[0].item()


def _run(metric, x: Tensor, y: Tensor):
    metric.update(x, real=False)
    metric.update(y, real=True)
    return metric.compute()


# ---- floors


class Floor(NamedTuple):
    """Mean and standard deviation of a distance over pairs of real draws, and how many pairs."""

    mean: float
    std: float
    pairs: int


def real_floor(metric: Callable, make_pair: Callable[[int], tuple], pairs: int = 10) -> Floor:
    """The distance between real and real: what a perfect sampler would score. One pair varies too much.

    metric(x, y) -> float; make_pair(i) -> (x, y), the i-th pair of real draws (see ``real_pairs``).
    Raises ValueError for fewer than two pairs.
    """
    if pairs < 2:
        raise ValueError(f"a floor needs at least 2 pairs, better 10; got {pairs}")
    values = torch.tensor([metric(*make_pair(i)) for i in range(pairs)], dtype=torch.float64)
    return Floor(values.mean().item(), values.std().item(), pairs)


def real_pairs(name: str, n: int = 2000) -> Callable[[int], tuple[Tensor, Tensor]]:
    """``make_pair`` for ``real_floor`` on a data set.

    In the plane: two independent draws of n points. fashion_mnist: the features of n random images of the
    10,000 for training against those of the 2,000 test images, the reference for samples
    (``fashion_reference``); the classifier saw neither. Raises ValueError for another data set, or n >
    10,000 on fashion_mnist.
    """
    if name in PLANE:

        def pair(i: int):  # seeds far from those that a reader would choose
            return load(name, n, "test", seed=10_000 + 2 * i).x, load(
                name, n, "test", seed=10_001 + 2 * i
            ).x
    elif name == "fashion_mnist":

        def pair(i: int):
            train = _fashion_features("train")
            if n > len(train):
                raise ValueError(
                    f"fashion_mnist has {len(train)} training images, {n} were asked for"
                )
            order = torch.randperm(len(train), generator=torch.Generator().manual_seed(i))
            return train[order[:n]], fashion_reference()
    else:
        raise ValueError(
            f"no pairs for {name!r}; expected fashion_mnist or one of {', '.join(PLANE)}"
        )
    return pair


def interval(values) -> float:
    """Half the 95 % interval of the mean of independent values (n,), by Student's t. NaN for fewer than two."""
    import numpy as np
    from scipy.stats import t as student

    values = np.asarray(values, dtype=float)
    n = len(values)
    return float(values.std(ddof=1) * student.ppf(0.975, n - 1) / n**0.5) if n > 1 else math.nan
