"""More ways to look: is a sample distinguishable, does it cover, are trajectories straight, is a jump the flow map?

Distances between two samples work on points or features (n, d); give images as ``metrics.embed(images)``. As everywhere,
show ``metrics.real_floor(distance, metrics.real_pairs(name))`` beside them.
"""
from __future__ import annotations

import hashlib
import io
import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .data import checked
from .metrics import _two_sets, frechet_distance
from .samplers import initial_noise, sample

#: Of torch-fidelity's Inception weights: the file's name holds this start of it.
INCEPTION_SHA256 = "6726825d"


# ---- between two samples

def energy_distance(x, y) -> float:
    """``2 E|a - b| - E|a - a'| - E|b - b'|`` with unbiased means: 0 between real draws on average, so it may be negative.

    (Szekely and Rizzo 2013, J. Stat. Plan. Inference 143.) x: (n, ...), y: (m, ...), n, m >= 2. Raises ValueError.
    """
    x, y = _two_sets(x, y)
    return float(2 * torch.cdist(x, y).mean() - _between(torch.cdist(x, x)) - _between(torch.cdist(y, y)))


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

    return float(_between(kernel(torch.cdist(x, x))) + _between(kernel(inside)) - 2 * kernel(torch.cdist(x, y)).mean())


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
    return float(cross_val_score(make_pipeline(StandardScaler(), network), features, which, cv=folds).mean())


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
        raise ValueError(f"k must be at least 1 and smaller than both sets, got {k} for {len(x)} and {len(y)}")

    def radius(points: Tensor) -> Tensor:  # the first neighbour is the point itself
        return torch.cat([torch.cdist(rows, points).topk(k + 1, dim=1, largest=False).values[:, k]
                          for rows in points.split(1000)])

    real, fake, found = radius(y), radius(x), []
    recalled, nearest = torch.zeros(len(y), dtype=torch.bool), torch.full((len(y),), math.inf, dtype=y.dtype)
    for rows, near in zip(x.split(1000), fake.split(1000)):  # in blocks: memory does not grow with both sets
        apart = torch.cdist(rows, y)
        found.append((apart < real[None]).sum(1).double())
        recalled |= (apart < near[:, None]).any(0)
        nearest = torch.minimum(nearest, apart.amin(0))
    inside = torch.cat(found)
    return Coverage(float((inside > 0).double().mean()), float(recalled.double().mean()), float(inside.mean() / k),
                    float((nearest < real).double().mean()))


def inception_fid(x, y, weights=None) -> float:
    """The FID of the literature: Frechet distance on the 2,048 Inception features, as torch-fidelity computes them.

    x: samples (n, C, H, W) in [-1, 1], C 1 or 3; y: data; more than 2,048 of each. weights: path of torch-fidelity's
    ``weights-inception-2015-12-05-6726825d.pth``, by default looked for in, else downloaded to, torch's hub folder.
    Raises ImportError without torch-fidelity, FileNotFoundError if the weights can neither be found nor downloaded,
    ValueError if they fail their checksum.
    """
    network = _inception(weights)
    return frechet_distance(_inception_features(network, x), _inception_features(network, y))


def _inception(weights=None):
    """torch-fidelity's network. Its weights are a pickle, so it is given a copy of what loads without running code."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
    except ImportError as error:
        raise ImportError("the Inception FID needs torch-fidelity: pip install 'iflow-lib[fid]'") from error
    name = URL_INCEPTION_V3.rsplit("/", 1)[1]
    file = Path(weights) if weights else Path(torch.hub.get_dir()) / "checkpoints" / name
    if not file.is_file() and weights is None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(file), hash_prefix=INCEPTION_SHA256, progress=False)
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(f"the Inception weights could not be downloaded ({error}): put {name} from "
                                    f"{URL_INCEPTION_V3} at {file}") from error
    if not file.is_file():
        raise FileNotFoundError(f"no Inception weights at {file}: put {name} from {URL_INCEPTION_V3} there")
    if not hashlib.sha256(file.read_bytes()).hexdigest().startswith(INCEPTION_SHA256):
        raise ValueError(f"{file} is damaged: its sha256 does not start with {INCEPTION_SHA256}; download {name} again")
    copy = io.BytesIO()
    torch.save(torch.load(file, map_location="cpu", weights_only=True), copy)
    copy.seek(0)
    return FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=copy)


@torch.no_grad()
def _inception_features(network, images) -> Tensor:
    """(n, C, H, W) in [-1, 1] -> (n, 2048), by way of whole bytes, as the FID is defined."""
    images = checked(images, "images").clamp(-1, 1)
    images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
    pixels = ((images + 1) * 127.5).round().to(torch.uint8)
    return torch.cat([network(batch)[0] for batch in pixels.split(50)]).double()


# ---- of a model

def straightness(model, n: int = 1000, steps: int = 100, seed: int = 0) -> float:
    """``S(Z) = int_0^1 E |(Z_1 - Z_0) - dZ_t/dt|^2 dt`` along the model's own ODE on the line; 0 iff it is straight.

    (Rectified Flow, arXiv 2209.03003, eq. 8, per example, summed over its elements.) Euler, ``steps`` steps: with one
    step any velocity looks straight, with 100 the value is right to about a per cent. On every path, read on the line.
    """
    if steps < 2:
        raise ValueError(f"straightness needs at least 2 steps, got {steps}")
    walk = sample(model, n, steps, "euler", seed, trajectory=True)
    scale = model.path.scale(walk.times).to(walk.trajectory).reshape(-1, *[1] * (walk.trajectory.ndim - 1))
    points, tau = walk.trajectory / scale, model.path.tau(walk.times).to(walk.trajectory)
    gaps = (tau[1:] - tau[:-1]).reshape(-1, *[1] * (points.ndim - 1))
    velocity = (points[1:] - points[:-1]) / gaps
    chord = (points[-1] - points[0]) / (tau[-1] - tau[0])
    square = (velocity - chord).flatten(2).square().sum(2).mean(1)
    return float((square * gaps.flatten().abs()).sum() / (tau[-1] - tau[0]).abs())


def jump_error(model, flow, n: int = 1000, *, t: float | None = None, s: float = 0.0, seed: int = 0) -> float:
    """Relative RMS distance of the learned jump from the exact flow map: ``RMS(jump - exact) / RMS(exact - E exact)``.

    flow: from ``analytic``, for the model's path. Points are drawn from the prior (t = t_max) if t is None, and carried
    there by the exact flow otherwise. The divisor is the spread of the exact end points: 1 is as bad as their mean.
    """
    path = model.path
    x = torch.cat(list(initial_noise(model, n, seed))).double() / path.tau_max
    x = x * float(path.sigma(torch.tensor(path.t_max, dtype=torch.float64)))
    start = path.t_max if t is None else float(t)

    def exact(x: Tensor, t: float, s: float) -> Tensor:
        if hasattr(flow, "jump"):
            return flow.jump(x=x, t=torch.full((n,), t).double(), s=torch.full((n,), s).double())
        return flow.flow_map(x=x, t=t, s=s)

    if start != path.t_max:
        x = exact(x, path.t_max, start)
    end = exact(x, start, float(s))
    like = next(model.parameters())
    with torch.no_grad():
        found = model.jump(x=x.to(like), t=torch.full((n,), start).to(like), s=torch.full((n,), float(s)).to(like))
    spread = (end - end.mean(0)).square().mean().sqrt()
    return float((found.double().cpu() - end).square().mean().sqrt() / spread)


class AnchorVariance(NamedTuple):
    """Mean squared error per element of the best guess of x_0, and what is left of it when the anchor is known too.

    ``without``: E Var(x_0 | x_t); ``knowing``: E Var(x_0 | x_t, a) <= ``without`` (law of total variance).
    ``at_sampling``: the same as ``knowing`` for an anchor drawn from N(0, I), which knows nothing: it equals ``without``.
    """

    without: float
    knowing: float
    at_sampling: float


def anchor_variance(x_0: Tensor, anchor: Tensor, x_t: Tensor, *, neighbours: int = 20, seed: int = 0) -> AnchorVariance:
    """Estimate the variances of the paper's accuracy theorem from draws, by nearest neighbours.

        Var(x_0 | x_t) = E[Var(x_0 | x_t, a) | x_t] + Var(E[x_0 | x_t, a] | x_t)

    x_0, anchor, x_t: (n, ...), n joint draws. Each conditional mean is that of the ``neighbours`` nearest other draws in
    standardised (x_t) or (x_t, a), with the factor k / (k + 1) that undoes the noise of the mean. Biased upward in many
    dimensions, where neighbours are far; meant for the plane and for low-dimensional features.
    """
    from sklearn.neighbors import NearestNeighbors

    (x_t, x_0), (anchor, _) = _two_sets(x_t, x_0), _two_sets(anchor, x_0)
    if not (len(x_0) == len(anchor) == len(x_t)) or not 1 <= neighbours < len(x_0):
        raise ValueError(f"need equally many x_0, anchors and x_t, and more than {neighbours} neighbours; got "
                         f"{len(x_0)}, {len(anchor)}, {len(x_t)}")

    def error(*known: Tensor) -> float:
        parts = [(a - a.mean(0)) / a.std(0).clamp(min=1e-12) / math.sqrt(a.shape[1]) for a in known]
        given = torch.cat(parts, dim=1).numpy()
        index = NearestNeighbors(n_neighbors=neighbours + 1).fit(given).kneighbors(given, return_distance=False)[:, 1:]
        mean = x_0[torch.from_numpy(index)].mean(1)
        return float((x_0 - mean).square().mean() * neighbours / (neighbours + 1))

    generator = torch.Generator().manual_seed(seed + 1_000_003)  # not the seed that the caller drew x_0 with
    nothing = torch.randn(anchor.shape, generator=generator, dtype=anchor.dtype)
    return AnchorVariance(error(x_t), error(x_t, anchor), error(x_t, nothing))


