"""How good samples in the plane are: W2 and its floor on the same draws, and what lies beside the data.

``search`` chooses settings with it, on draws of the split "train"; ``defaults`` measures what was chosen, on "test". The draws of a
training seed s have the seeds 1000 (s + 1) + i, and the training set the seed 0.
"""

import math
from collections.abc import Callable
from functools import cache

import torch

import iflow_lib as ifl
from iflow_lib import data, metrics, zoo

#: Samples whose place is looked at, and the standard deviations within which a mode ends.
PLACED, DEVIATIONS = 10_000, 3.0
#: Where the draws of a training seed begin, among its thousand: of samples and data, of the data's other half for floors, and
#: of the points that are placed.
_OTHER, _PLACED = 500, 900


def make_path(name: str) -> ifl.Path:
    """A path of ``zoo.PATH_NAMES``, as in every comparison in the plane."""
    return zoo.System(name, "integral", data.PLANE[0]).make_path()


def _seeds(seed: int, draws: int, first: int = 0) -> list[int]:
    return [1000 * (seed + 1) + first + i for i in range(draws)]


def off_modes(dataset: str, x: torch.Tensor) -> float | None:
    """Share of points farther than three standard deviations from every centre, 1.1 % of real ones; None without centres."""
    known = data.modes(dataset)
    if known is None:
        return None
    away = torch.cdist(x, known.centres.to(x)).amin(1)
    return float((away > DEVIATIONS * known.std).double().mean())


def _placed(dataset: str, x: torch.Tensor) -> dict[str, float]:
    found = {"off_support": metrics.off_support(x, dataset), "off_modes": off_modes(dataset, x)}
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
    placed = {"off_support": 1.0} | ({"off_modes": 1.0} if data.modes(dataset) else {})
    return {"w2": math.inf, **placed}
