"""What ``experiments.search`` searches: settings in the plane, and on images (docs/protocol.md).

A ``Search`` is all in which the two differ: the settings that there are, the data, the budgets, the first candidates, how a run
is trained and measured, and what a step costs. How candidates go up from rung to rung is the same, and stands in search.py.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

import iflow_lib as ifl
from experiments import plane_quality
from experiments.common import calls_per_step, finished
from experiments.plane_quality import make_path
from iflow_lib import data, zoo

#: Seeds of a result. Weight of each number of jumps in the score.
SEEDS, WEIGHTS = 3, {1: 0.6, 2: 0.2, 4: 0.2}
#: A candidate's step costs at most so many times FlowMatching's; equal cost is that of so many.
DEAREST, EQUAL_COST = 2.0, 1.5
#: What a setting of the objective may be: a list of choices, or (least, largest), drawn on a logarithmic scale if "log" is said.
OBJECTIVE = {
    "times": ["logit", "uniform"],
    "times_mean": (-1.0, 0.5),
    "times_std": (0.6, 1.8),
    "equal_share": [0.25, 0.5, 0.75],
    "start_share": (0.0, 0.5),
    "end_share": (0.0, 0.5),
    "power": [0.0, 0.5, 1.0],
    "derivative": ["exact", "gap"],
    "gap": (0.005, 0.3, "log"),
    "tangent": ["network", "conditional"],
    "velocity": ["pair", "batch"],
}
#: Settings that mean something only where another one has a value.
ONLY_WITH = {
    "times_mean": ("times", "logit"),
    "times_std": ("times", "logit"),
    "gap": ("derivative", "gap"),
}


@dataclass(frozen=True)
class Candidate:
    number: int
    settings: dict
    cost: float

    @property
    def refused(self) -> bool:
        return self.cost > DEAREST


@dataclass(frozen=True)
class Search:
    """A search.

    Args:
        name: Of its table.
        space: What each setting may be.
        first: The first candidates: the defaults before the search, by which the cells are made comparable, and what was tried.
        candidates: How many there are to be.
        sets: Of data. With each of the paths they make the cells.
        stride: From path to path, a first look goes on by so many sets.
        short, long: Gradient steps of a first look and of a result.
        draws: Jumps -> draws behind each distance.
        metric: The distance.
        train: ``train(settings, dataset, path, seed, steps, draws)`` -> rows of a run, and how it was made.
        cost_of: Network multiplications of a step with these settings, over those of FlowMatching; infinite if they are refused.
        floor: ``floor(dataset, seed, draws)`` -> rows of what a distance is divided by; None: by that of the first candidate in
            the same cell, with the same seed and budget.
    """

    name: str
    space: dict
    first: tuple[dict, ...]
    candidates: int
    sets: tuple[str, ...]
    stride: int
    short: int
    long: int
    draws: dict[int, int]
    metric: str
    train: Callable
    cost_of: Callable[[dict], float]
    floor: Callable | None = None

    @property
    def cells(self) -> list[tuple[str, str]]:
        return [(dataset, path) for path in zoo.PATH_NAMES for dataset in self.sets]

    def runs(self, candidate: Candidate, rung: int) -> list[tuple[str, str, int, int]]:
        """(set, path, seed, steps) of each run of a rung. The defaults run on all cells at once."""
        if rung == 0 and candidate.number:
            places = range(candidate.number, candidate.number + 3 * self.stride, self.stride)
            sets = [self.sets[place % len(self.sets)] for place in places]
            return [(one, path, 0, self.short) for one, path in zip(sets, zoo.PATH_NAMES)]
        if rung < 2:
            return [(*cell, 0, self.short) for cell in self.cells]
        if rung == 2:
            return [(*cell, seed, self.long) for seed in range(SEEDS) for cell in self.cells]
        return [(*cell, 0, int(self.long * EQUAL_COST / candidate.cost)) for cell in self.cells]

    def budget(self, steps: int) -> int:
        """The one of the two budgets with which a run is compared."""
        return self.short if steps == self.short else self.long


# ---------------------------------------------------------------- of a candidate


def known(settings: dict) -> dict:
    """Settings without those that this library does not have, or that mean nothing beside the others."""
    fields = {field.name for field in dataclasses.fields(ifl.IntegralIdentity)}
    return {
        name: value
        for name, value in settings.items()
        if (name != "velocity" or name in fields)
        and (name not in ONLY_WITH or settings[ONLY_WITH[name][0]] == ONLY_WITH[name][1])
    }


def objective_of(settings: dict, exact: Callable | None = None) -> ifl.IntegralIdentity:
    """exact: makes an objective without a gap, in place of the library's."""
    names = ("equal_share", "start_share", "end_share", "power", "tangent", "velocity")
    own = {name: settings[name] for name in names if name in settings}
    logit = settings["times"] == "logit"
    own["time_density"] = (settings["times_mean"], settings["times_std"]) if logit else "uniform"
    if "gap" in settings:
        return ifl.IntegralIdentity(**own, gap=settings["gap"])
    return exact(**own) if exact else ifl.IntegralIdentity(**own, gap=None)


def started(net: Callable, path: ifl.Path, seed: int) -> ifl.FlowMap:
    """A model whose network has weights by a seed. net: makes it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ifl.FlowMap(net(), path)


def rows_of(
    model: ifl.FlowMap, objective: ifl.Objective, row: dict, config, draws: dict, quality, far: dict
) -> tuple[list[dict], dict]:
    """Train, and make the rows of a run.

    Args:
        model, objective, config: What is trained and how.
        row: Says which run it is.
        draws: Jumps, as text, -> draws.
        quality: ``quality(model, draws, nfe)`` -> the value of each metric.
        far: What stands for that of a training that diverged.
    """
    row = row | {"steps": config.steps, "calls_per_step": calls_per_step(objective)}
    start, how = time.perf_counter(), {}
    try:
        run = finished(ifl.fit(model, objective, data.load(row["dataset"]), config))
    except FloatingPointError as error:
        how, found = {"diverged": str(error)}, dict.fromkeys(draws, far)
    row |= {"seconds": time.perf_counter() - start}
    if not how:
        found = {nfe: quality(run.model, number, int(nfe)) for nfe, number in draws.items()}
    rows = [
        row | {"nfe": int(nfe), "metric": metric, "value": value}
        for nfe, values in found.items()
        for metric, value in values.items()
    ]
    return rows, how


# ---------------------------------------------------------------- in the plane

#: The split of all draws in the plane.
SPLIT = "train"
#: The library's defaults before the search, and the trial that led to it.
DEFAULTS = {
    "lr": 1e-3, "ema": 0.999, "clip": 1.0, "hidden": 256, "layers": 4, "features": 0, "frequencies": 4,
    "times": "logit", "times_mean": 0.0, "times_std": 1.6, "equal_share": 0.5, "start_share": 0.1,
    "end_share": 0.1, "power": 0.0, "derivative": "exact", "tangent": "network", "velocity": "pair",
}  # fmt: skip
TRIED = DEFAULTS | {
    "lr": 8e-3, "hidden": 128, "features": 3, "frequencies": 2, "times_mean": -0.4, "times_std": 1.0,
    "start_share": 0.3, "end_share": 0.3, "derivative": "gap", "gap": 0.02, "tangent": "conditional",
    "velocity": "batch",
}  # fmt: skip


def network_of(settings: dict) -> ifl.MLP:
    names = ("hidden", "layers", "features", "frequencies")
    return ifl.MLP(2, **{name: settings[name] for name in names})


def multiplications(net: ifl.MLP) -> int:
    """Of one call, for each example."""
    return sum(p.numel() for p in net.parameters() if p.ndim == 2)


def cost_of(settings: dict) -> float:
    """Network multiplications of a step over those of FlowMatching with an MLP of 256 x 4; the same on every machine."""
    try:
        objective = objective_of(settings)
    except ValueError:
        return math.inf
    own = calls_per_step(objective) * multiplications(network_of(settings))
    return own / (calls_per_step(ifl.FlowMatching()) * multiplications(network_of(DEFAULTS)))


def training_of(settings: dict) -> dict:
    """Settings of TrainConfig. A largest norm of 0 stands for none."""
    return {"lr": settings["lr"], "ema": settings["ema"], "clip": settings["clip"] or None}


def train(
    settings: dict, dataset: str, path: str, seed: int, steps: int, draws: dict
) -> tuple[list[dict], dict]:
    """Rows of one run. draws: jumps, as text, -> draws."""
    torch.set_num_threads(1)
    model = started(partial(network_of, settings), make_path(path), seed)
    own = training_of(settings) | {"batch_size": 512}
    config = ifl.TrainConfig(steps, **own, seed=seed, device="cpu", progress=False)
    row = {"dataset": dataset, "path": path, "seed": seed}

    def quality(trained: ifl.FlowMap, number: int, nfe: int) -> dict[str, float]:
        return plane_quality.quality(trained, dataset, SPLIT, seed, number, nfe)

    far = plane_quality.far(dataset)
    return rows_of(model, objective_of(settings), row, config, draws, quality, far)


def floor(dataset: str, seed: int, draws: dict) -> tuple[list[dict], dict]:
    """Rows of the floor on the draws of a training seed."""
    torch.set_num_threads(1)
    row = {"dataset": dataset, "seed": seed, "metric": "floor"}
    found = {
        number: plane_quality.floor(dataset, SPLIT, seed, number)["w2"]
        for number in set(draws.values())
    }
    return [row | {"nfe": int(nfe), "value": found[number]} for nfe, number in draws.items()], {}


PLANE = Search(
    name="search",
    space={
        "lr": (1e-3, 2e-2, "log"),
        "ema": [0.99, 0.999, 0.9995],
        "clip": [0.0, 1.0, 10.0],
        "hidden": [64, 128, 192, 256],
        "layers": [3, 4, 5, 6],
        "features": [0, 1, 2, 3, 4, 5],
        "frequencies": [1, 2, 3, 4],
        **OBJECTIVE,
    },
    first=(DEFAULTS, TRIED, TRIED | {"lr": 4e-3, "start_share": 0.1, "end_share": 0.1}),
    candidates=64,
    sets=data.PLANE,
    stride=2,
    short=1000,
    long=4000,
    draws={1: 10, 2: 5, 4: 5},
    metric="w2",
    train=train,
    cost_of=cost_of,
    floor=floor,
)

# ---------------------------------------------------------------- on images

#: Sets that are searched -> channels and side. Nothing is chosen on Fashion-MNIST.
SHAPES = {"digits": (1, 8), "emoji": (3, 32)}
#: Of the U-Net; its blocks are those of ``zoo``.
WIDTH, BATCH = 16, 64
#: Settings of ``zoo.System`` before the search, without a teacher, and the trial on Fashion-MNIST.
IMAGE_DEFAULTS = {
    "lr": 1e-3, "ema": 0.999, "clip": 1.0, "frequencies": 6, "gap_frequencies": 2,
    "times": "logit", "times_mean": 0.0, "times_std": 1.0, "equal_share": 0.5, "start_share": 0.1,
    "end_share": 0.1, "power": 0.5, "derivative": "exact", "tangent": "network", "velocity": "pair",
}  # fmt: skip
IMAGE_TRIED = IMAGE_DEFAULTS | {
    "lr": 4e-3, "equal_share": 0.75, "derivative": "gap", "gap": 0.02, "tangent": "conditional",
    "velocity": "batch",
}  # fmt: skip
#: What stands for a training that diverged.
IMAGE_FAR = {"frechet_pca": math.inf, "sliced_w2": math.inf}


def image_objective_of(settings: dict) -> ifl.IntegralIdentity:
    """With a derivative, that of ``zoo``: its difference is wider than the library's."""
    return objective_of(settings, zoo.KINDS["integral"])


def image_network_of(settings: dict, channels: int, side: int) -> ifl.UNet:
    """A U-Net of width 16. Of t - s it sees at most the octaves that it sees of t."""
    octaves = {"frequencies": settings["frequencies"]}
    octaves["gap_frequencies"] = min(settings["gap_frequencies"], settings["frequencies"])
    return ifl.UNet(channels, side, WIDTH, blocks=1, **octaves)


def image_path(name: str) -> ifl.Path:
    """A path of ``zoo.PATH_NAMES``, as in every comparison on images."""
    return zoo.System(name, "integral", "fashion_mnist").make_path()


def image_cost_of(settings: dict) -> float:
    """Network calls of a step over those of FlowMatching: the network is the same, but for its first layer of the times."""
    try:
        objective = image_objective_of(settings)
    except ValueError:
        return math.inf
    return calls_per_step(objective) / calls_per_step(ifl.FlowMatching())


def image_quality(
    model: ifl.FlowMap, dataset: str, seed: int, draws: int, nfe: int
) -> dict[str, float]:
    """Mean distances of ``zoo.POINTS`` samples of nfe jumps to the test images; infinite if they are not finite."""
    found = []
    for sampling in range(1000 * (seed + 1), 1000 * (seed + 1) + draws):
        x = zoo.timed_sample(model, zoo.POINTS, nfe, "map", sampling)[0].x
        if not bool(x.isfinite().all()):
            return IMAGE_FAR
        found.append(zoo.image_distances(dataset, x))
    return {name: sum(one[name] for one in found) / draws for name in found[0]}


def train_on_images(
    settings: dict, dataset: str, path: str, seed: int, steps: int, draws: dict
) -> tuple[list[dict], dict]:
    """Rows of one run. draws: jumps, as text, -> draws."""
    torch.set_num_threads(1)
    net = partial(image_network_of, settings, *SHAPES[dataset])
    own = training_of(settings) | {"batch_size": BATCH}
    config = ifl.TrainConfig(steps, **own, seed=seed, device="cpu", progress=False)
    row = {"dataset": dataset, "path": path, "seed": seed}

    def quality(trained: ifl.FlowMap, number: int, nfe: int) -> dict[str, float]:
        return image_quality(trained, dataset, seed, number, nfe)

    model, objective = started(net, image_path(path), seed), image_objective_of(settings)
    return rows_of(model, objective, row, config, draws, quality, IMAGE_FAR)


IMAGES = Search(
    name="image_search",
    space={
        "lr": (5e-4, 1e-2, "log"),
        "ema": [0.99, 0.999, 0.9995],
        "clip": [0.0, 1.0, 10.0],
        "frequencies": [2, 3, 4, 5, 6],
        "gap_frequencies": [1, 2, 3, 4],
        **OBJECTIVE,
        "times": ["logit"],
        "equal_share": [0.25, 0.5, 0.75, 0.9],
        "power": [0.0, 0.25, 0.5, 0.75, 1.0],
    },
    first=(IMAGE_DEFAULTS, IMAGE_TRIED, IMAGE_TRIED | {"lr": 2e-3}),
    candidates=32,
    sets=tuple(SHAPES),
    stride=1,
    short=400,
    long=1500,
    draws={1: 1, 2: 1, 4: 1},
    metric="frechet_pca",
    train=train_on_images,
    cost_of=image_cost_of,
)

SEARCHES = {"plane": PLANE, "images": IMAGES}
