"""How far samples are from data. Every distance has a floor: the same distance between two real draws.

In the plane: the exact 2-Wasserstein distance. On Fashion-MNIST: Frechet and kernel distances between the
features of a small classifier that comes with the package, trained on 50,000 images of which none is in the
package's own subset. These are not the published Inception distances: their values compare only with values
made by this same classifier.
"""
from __future__ import annotations

import functools
import json
import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .data import ASSETS, PLANE, checked, load

TEST_SHA256 = "f10079d1c2d2f7b23942a2237993bd3caa8d676df249c36e2bc60b78653ef64f"  # of fashion_test.safetensors

# ---- optimal transport


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
        raise RuntimeError(f"exact transport of {len(x)} to {len(y)} points did not finish: {log['warning']}")
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


# ---- distances between features


class FashionFeatures(nn.Module):
    """The classifier whose features are compared: images (B, 1, 28, 28) in [-1, 1] to (B, 64) features.

    Three convolutions, a linear layer to 64 and a standardisation, so that each feature has mean 0 and
    variance 1 on its training images; ``logits`` adds a ReLU and the last layer. Values outside [-1, 1] are
    clamped, as they would be when a picture is stored, but not rounded to 256 levels. ``pretrained=False``
    leaves the weights random (to train it: tools/make_assets.py).

    Raises FileNotFoundError or ValueError if the shipped weights are missing or fail their checksum, and
    ValueError for inputs of another shape.
    """

    num_features = 64

    def __init__(self, pretrained: bool = True):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(24, 48, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(48, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(64 * 3 * 3, self.num_features),
            nn.BatchNorm1d(self.num_features, affine=False),  # before the ReLU: no feature can die
        )
        self.head = nn.Linear(self.num_features, 10)
        if pretrained:
            self.load_state_dict(_classifier_weights())
            self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1:] != (1, 28, 28):
            raise ValueError(f"images have shape {tuple(x.shape)}; the classifier takes (n, 1, 28, 28) "
                             "in [-1, 1]; give features= for others")
        return self.body(x.clamp(-1, 1))

    def logits(self, x: Tensor) -> Tensor:
        return self.head(self(x).relu())


def _classifier_weights() -> dict[str, Tensor]:
    from safetensors.torch import load as from_bytes

    from .checkpoints import read_checked

    card = ASSETS / "classifier.json"
    if not card.is_file():
        raise FileNotFoundError(f"{card} is missing; reinstall the package")
    try:
        digest = json.loads(card.read_text())["sha256"].lower()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{card} is damaged: {error!r}; reinstall the package") from error
    return from_bytes(read_checked(ASSETS / "classifier.safetensors", digest))


@functools.lru_cache(maxsize=1)
def _shipped() -> FashionFeatures:
    return FashionFeatures()


@torch.no_grad()
def embed(x, features: nn.Module | None = None, batch_size: int = 500) -> Tensor:
    """Features (n, d) in float64 of x, in batches, with ``features`` in evaluation mode, on the CPU.

    features=None: the shipped classifier for images, while points (n, d) are taken as features already. So a
    set that is compared often needs its features only once: ``r = embed(real)``, ``frechet_distance(samples,
    r)``. Raises ValueError for whole numbers, NaN, empty sets, or images that the classifier does not take.
    """
    x = checked(x, "images").cpu()
    if features is None:
        if x.ndim == 2:
            return x.double()
        features = _shipped()
    training = features.training
    features.eval()
    try:
        found = torch.cat([features(batch.float()) for batch in x.split(batch_size)]).double()
    finally:
        features.train(training)
    if found.ndim != 2 or len(found) != len(x):
        raise ValueError(f"features returned shape {tuple(found.shape)} for {len(x)} images; expected (n, d)")
    return checked(found, "features of the images")


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
        raise ValueError(f"a Frechet distance on {d} features needs more than {d} samples of each, "
                         f"got {len(x)} and {len(y)}")
    return max(0.0, _run(FrechetInceptionDistance(feature=_Given(d), sync_on_compute=False), x, y).item())


def kernel_distance(x, y, features: nn.Module | None = None, subset_size: int | None = None,
                    subsets: int = 20, seed: int = 0) -> float:
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
        raise ValueError(f"subset_size must be between 2 and the number of samples, {fewest}; got {size}")
    if subsets < 1:
        raise ValueError(f"subsets must be at least 1, got {subsets}")
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance`")  # on memory
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reset the GPUs' too
        metric = KernelInceptionDistance(feature=_Given(x.shape[1]), subsets=subsets, subset_size=size,
                                         sync_on_compute=False)
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
            return load(name, n, "test", seed=10_000 + 2 * i).x, load(name, n, "test", seed=10_001 + 2 * i).x
    elif name == "fashion_mnist":
        def pair(i: int):
            train = _fashion_features("train")
            if n > len(train):
                raise ValueError(f"fashion_mnist has {len(train)} training images, {n} were asked for")
            order = torch.randperm(len(train), generator=torch.Generator().manual_seed(i))
            return train[order[:n]], fashion_reference()
    else:
        raise ValueError(f"no pairs for {name!r}; expected fashion_mnist or one of {', '.join(PLANE)}")
    return pair


def fashion_reference(n: int = 2000) -> Tensor:
    """Features (n, 64) of test images, made once: what samples are compared with. Do not change it.

    n: 2,000, the vendored test images; or 10,000, all official ones, whose features (not the images) come with the
    package as float16. Raises ValueError for another n or a damaged file, FileNotFoundError for a missing one.
    """
    if n not in (2000, 10_000):
        raise ValueError(f"there are features of 2,000 or of 10,000 test images, {n} were asked for")
    return _fashion_features("test") if n == 2000 else _all_test_features()


@functools.lru_cache(maxsize=1)
def _all_test_features() -> Tensor:
    from safetensors.torch import load as from_bytes

    from .checkpoints import read_checked

    return from_bytes(read_checked(ASSETS / "fashion_test.safetensors", TEST_SHA256))["features"].double()


@functools.lru_cache(maxsize=2)
def _fashion_features(split: str) -> Tensor:
    return embed(load("fashion_mnist", split=split))


def interval(values) -> float:
    """Half the 95 % interval of the mean of independent values (n,), by Student's t. NaN for fewer than two."""
    import numpy as np
    from scipy.stats import t as student

    values = np.asarray(values, dtype=float)
    n = len(values)
    return float(values.std(ddof=1) * student.ppf(0.975, n - 1) / n**0.5) if n > 1 else math.nan


# ---- checks


def _two_sets(x, y) -> tuple[Tensor, Tensor]:
    x, y = (checked(v, name).cpu().double().flatten(1) for v, name in ((x, "x"), (y, "y")))
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x has {x.shape[1]} dimensions and y has {y.shape[1]}; they must agree")
    return x, y


def _two_embedded(x, y, features) -> tuple[Tensor, Tensor]:
    x, y = embed(x, features), embed(y, features)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x has {x.shape[1]} features and y has {y.shape[1]}; they must agree")
    return x, y
