"""How good samples in the plane are: W2 and its floor on the same draws, and what lies beside the data.

``search`` chooses settings with it, on draws of the split "train"; ``defaults`` measures what was chosen, on "test". The draws of a
training seed s have the seeds 1000 (s + 1) + i, and the training set the seed 0.
"""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from scipy.spatial import cKDTree

import iflow_lib as ifl
from iflow_lib import data, metrics, zoo

#: Points of the training set that stand for the support, and samples whose place is looked at.
SUPPORT, PLACED = 100_000, 10_000
#: Share of real points that lie within the support, by definition; standard deviations within which a mode ends.
INSIDE, DEVIATIONS = 0.99, 3.0
#: Where the draws of a training seed begin, among its thousand: of samples and data, of the data's other half for floors, and
#: of the points that are placed.
_OTHER, _PLACED = 500, 900


def make_path(name: str) -> ifl.Path:
    """A path of ``zoo.PATH_NAMES``, as in every comparison in the plane."""
    return zoo.System(name, "integral", data.PLANE[0]).make_path()


def _seeds(seed: int, draws: int, first: int = 0) -> list[int]:
    return [1000 * (seed + 1) + first + i for i in range(draws)]


@cache
def _support(dataset: str) -> tuple[cKDTree, float]:
    """The training points, and the distance to the nearest of them within which 99 % of fresh points lie."""
    tree = cKDTree(data.load(dataset, SUPPORT).x.numpy())
    fresh = data.load(dataset, 2 * PLACED, seed=_seeds(0, 1, _PLACED)[0]).x.numpy()
    return tree, float(np.quantile(tree.query(fresh)[0], INSIDE))


def off_support(dataset: str, x: torch.Tensor) -> float:
    """Share of points that are farther from the nearest training point than 99 % of fresh real ones are; 1 % of real ones."""
    tree, radius = _support(dataset)
    return float((tree.query(x.numpy())[0] > radius).mean())


def _centres(dataset: str) -> tuple[torch.Tensor, float] | None:
    """Centres (k, 2) and standard deviation of the modes of a set that is a mixture of Gaussians."""
    if dataset == "eight_gaussians":
        angle = torch.arange(8) * (math.pi / 4)
        return math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], 1), 0.1
    if dataset == "twenty_five_gaussians":
        scale, side = math.sqrt(2 + 0.1**2), torch.arange(5) - 2.0
        return torch.cartesian_prod(side, side) / scale, 0.1 / scale
    return None


def off_modes(dataset: str, x: torch.Tensor) -> float | None:
    """Share of points farther than three standard deviations from every centre, 1.1 % of real ones; None without centres."""
    known = _centres(dataset)
    if known is None:
        return None
    centres, deviation = known
    return float((torch.cdist(x, centres).amin(1) > DEVIATIONS * deviation).double().mean())


def _placed(dataset: str, x: torch.Tensor) -> dict[str, float]:
    found = {"off_support": off_support(dataset, x), "off_modes": off_modes(dataset, x)}
    return {name: value for name, value in found.items() if value is not None}


@cache
def _apart(dataset: str, n: int, split: str, one: int, other: int) -> float:
    """W2 of two draws of n points with these seeds."""
    return metrics.w2(*(data.load(dataset, n, split, seed).x for seed in (one, other)))


def floor(dataset: str, split: str, seed: int, draws: int) -> dict[str, float]:
    """Mean W2 of fresh points to the very draws that samples of this training seed are compared with, and where they lie."""
    pairs = zip(_seeds(seed, draws, _OTHER), _seeds(seed, draws))
    w2 = [_apart(dataset, zoo.POINTS, split, other, own) for other, own in pairs]
    real = data.load(dataset, PLACED, split, seed=_seeds(seed, 1, _PLACED)[0]).x
    return {"w2": sum(w2) / draws, **_placed(dataset, real)}


def quality(
    model: ifl.FlowMap, dataset: str, split: str, seed: int, draws: int, nfe: int
) -> dict[str, float]:
    """``quality_of`` the samples of nfe jumps, on ``sample``'s own grid."""

    def drawn(n: int, sampling: int) -> torch.Tensor:
        return zoo.timed_sample(model, n, nfe, "map", sampling)[0].x

    return quality_of(drawn, dataset, split, seed, draws)


def quality_of(
    drawn: Callable[[int, int], torch.Tensor], dataset: str, split: str, seed: int, draws: int
) -> dict[str, float]:
    """Mean W2 of ``zoo.POINTS`` samples to the draws of a training seed, and where 10,000 of them lie.

    drawn: gives so many samples of a sampling seed, (n, 2). Samples that are not finite are infinitely far away.
    """
    placed = drawn(PLACED, _seeds(seed, 1, _PLACED)[0])
    samples = {own: drawn(zoo.POINTS, own) for own in _seeds(seed, draws)}
    if not all(bool(x.isfinite().all()) for x in (placed, *samples.values())):
        return far(dataset)
    w2 = [
        metrics.w2(x, data.load(dataset, zoo.POINTS, split, seed=own).x)
        for own, x in samples.items()
    ]
    return {"w2": sum(w2) / draws, **_placed(dataset, placed)}


def far(dataset: str) -> dict[str, float]:
    """What stands for a training that diverged."""
    placed = {"off_support": 1.0} | ({"off_modes": 1.0} if _centres(dataset) else {})
    return {"w2": math.inf, **placed}
