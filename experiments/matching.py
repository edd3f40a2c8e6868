"""What does distribution matching without a teacher gain, and what does it cost? ``python -m experiments.matching --jobs 2``

Integral identity on the rectified path, and as its last steps ``EnergyMatching`` in each space, against the identity alone
for the same total of network calls (``calls_per_step``), in one schedule and in two stages as the others have. Three seeds.
In the plane two sets, network and training of ``zoo.System``: 4,000 steps, then 1,000 of matching. Of images digits and
Fashion-MNIST, a U-Net of width 16 and batches of 64: 1,500 steps, then 300. The second stage starts from the averaged
weights with a quarter of the learning rate. Matching in one and in two jumps costs more a step, and has fewer.

Measured at one and two jumps. In the plane: W2 of 2,000 samples to fresh points, mean of ten draws, and "w2_ratio", over the
mean floor of the same draws; "off", the share of samples off the modes of eight Gaussians (more than three standard
deviations from each), or off the squares of the checkerboard. Of images ``zoo.image_distances`` to the test images.
Of all precision, recall, density and coverage (of Fashion-MNIST on the features of the classifier); "nearest", the mean
distance of a sample to the nearest training example over that of fresh data (1: no nearer); "copies", the share of samples
that are nearer to one than all but a twentieth of the fresh data are (0.05 for fresh data, 1 for training data). Floors:
fresh points, and training images, in the place of samples.

Writes matching.csv, a tidy table, and its manifest into --out (results/reference/bench). What is in the table already is
not run again, and neither is what --runs keeps, the first stages too; --minutes stops it by itself.
"""

import copy
import itertools
import math
from functools import lru_cache, partial
from pathlib import Path

import torch
from filelock import FileLock

import iflow_lib as ifl
from experiments import images
from experiments.common import calls_per_step, choices, command_line, excerpt, finished
from experiments.store import Store, extend_table
from iflow_lib import data, metrics, zoo

PLANE, IMAGES = ("eight_gaussians", "checkerboard"), ("digits", "fashion_mnist")
#: name -> settings of ``EnergyMatching`` in the second stage; None: the identity there too
VARIANTS = {
    "identity": None,
    "identity in two stages": None,
    "matching, data": {"space": "data"},
    "matching, whitened": {"space": "whitened"},
    "matching, whitened, small ridge": {"space": "whitened", "ridge": 1e-3},
    "matching, random": {"space": "random"},
    "matching, data, one and two jumps": {"space": "data", "calls": (1, 2)},
}
#: The learning rate of the second stage, as a share of that of the first.
LAST_LR = 0.25


# ---------------------------------------------------------------- setups


def system_of(dataset: str) -> zoo.System:
    """The system whose objective and settings a set has: digits those of Fashion-MNIST."""
    return zoo.System("rectified", "integral", "fashion_mnist" if dataset == "digits" else dataset)


def make_model(dataset: str, seed: int, width: int) -> ifl.FlowMap:
    """A fresh model."""
    if dataset in PLANE:
        return system_of(dataset).model(seed)
    size = {"size": 8} if dataset == "digits" else {}
    return system_of(dataset).model(seed, width=width, **size)


def settings_of(dataset: str, steps: int, seed: int, device: str, lr: float = 1, **more):
    """Configuration of a stage. lr: as a share of that of the system."""
    known = system_of(dataset).settings | ({} if dataset in PLANE else {"ema": 0.99})
    known["lr"] *= lr
    return ifl.TrainConfig(**known, steps=steps, seed=seed, device=device, progress=False, **more)


def length(variant: str, objective: ifl.Objective, first: int, last: int) -> int:
    """Steps of the last stage, so that all variants make equally many calls.

    As many as ``first`` steps of the identity and ``last`` of matching in one jump.
    """
    plain = getattr(objective, "base", objective)
    calls = last * calls_per_step(ifl.EnergyMatching(plain))
    if variant == "identity":
        calls += first * calls_per_step(plain)
    return max(1, round(calls / calls_per_step(objective)))


def first_stage(folder: Path, dataset: str, seed: int, steps: int, width: int, device: str):
    """The run of the first stage, which the variants share: trained once, and kept."""
    name = f"{dataset}-seed{seed}-steps{steps}-width{width}-{device}"
    folder.mkdir(parents=True, exist_ok=True)
    objective, points = system_of(dataset).objective(), data.load(dataset)
    with FileLock(folder / f"{name}.lock"):
        config = settings_of(dataset, steps, seed, device, out_dir=folder / name)
        model = make_model(dataset, seed, width)
        return finished(ifl.fit(model, objective, points, config, resume="auto"))


# ---------------------------------------------------------------- measures


def off_support(dataset: str, x: torch.Tensor) -> float:
    """Share of points (n, 2) off the modes of eight Gaussians, or off the squares of the checkerboard."""
    if known := data.modes(dataset):
        return float((torch.cdist(x, known.centres.to(x)).amin(1) > 3 * known.std).double().mean())
    board = (x / math.sqrt(3 / 4) + 2).floor()
    inside = ((board >= 0) & (board < 4)).all(1) & (board.sum(1) % 2 == 0)
    return float((~inside).double().mean())


@lru_cache(maxsize=200)
def floor_of(dataset: str, n: int, i: int) -> float:
    """W2 of the i-th pair of real draws of n points."""
    return metrics.w2(*metrics.real_pairs(dataset, n)(i))


def of_points(dataset: str, draws: list[int], make) -> dict:
    """Measures in the plane. draws: numbers of real pairs; make(i): samples to be compared with the i-th."""
    samples = [make(i) for i in draws]
    real = [metrics.real_pairs(dataset, zoo.POINTS)(i)[1] for i in draws]
    distances = [metrics.w2(x, y) for x, y in zip(samples, real)]
    floors = [floor_of(dataset, zoo.POINTS, i) for i in draws]
    shares = torch.tensor([metrics.precision_recall(x, y) for x, y in zip(samples, real)]).mean(0)
    return {
        "w2": sum(distances) / len(draws),
        "w2_ratio": sum(distances) / sum(floors),
        "off": sum(off_support(dataset, x) for x in samples) / len(draws),
        **dict(zip(metrics.Coverage._fields, shares.tolist())),
        **metrics.copies(samples[0], data.load(dataset).x, real[0])._asdict(),
    }


def of_images(dataset: str, x: torch.Tensor) -> dict:
    """Measures of images (n, C, H, W)."""
    real = data.load(dataset, split="test").x
    found = images.distances(dataset, x)
    if "precision" not in found:
        found |= metrics.precision_recall(x, real)._asdict()
    return found | metrics.copies(x, data.load(dataset).x, real)._asdict()


def draws_of(seed: int, draws: int) -> list[int]:
    """Numbers of the real pairs that a training seed is compared with: others for each, as ``zoo.evaluate`` has them."""
    return list(range(seed * draws, (seed + 1) * draws))


# ---------------------------------------------------------------- runs


def floor(dataset: str, seed: int, draws: int) -> tuple[list[dict], dict]:
    """Rows of real data in the place of samples, and nothing for the manifest."""
    torch.set_num_threads(1)
    if dataset in PLANE:
        pairs = metrics.real_pairs(dataset, zoo.POINTS)
        found = of_points(dataset, draws_of(seed, draws), lambda i: pairs(i)[0])
    else:
        x = data.load(dataset).x
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        found = of_images(dataset, x[order[: zoo.POINTS]])
    row = {"dataset": dataset, "objective": "data", "method": "floor", "seed": seed}
    row |= {"n_samples": zoo.POINTS}
    return [row | {"metric": name, "value": value} for name, value in found.items()], {}


def train(
    folder: Path,
    dataset: str,
    variant: str,
    seed: int,
    steps: int,
    last: int,
    weight: float,
    width: int,
    draws: int,
    nfes,
    device: str,
) -> tuple[list[dict], dict]:
    """Rows and manifest of one run. folder: of the first stages."""
    torch.set_num_threads(1)
    system, points = system_of(dataset), data.load(dataset)
    objective: ifl.Objective = system.objective()
    if VARIANTS[variant] is not None:
        objective = ifl.EnergyMatching(objective, weight, **VARIANTS[variant])
    model, before, lr, done = make_model(dataset, seed, width), {}, 1.0, 0
    try:
        if variant != "identity":
            start = first_stage(folder, dataset, seed, steps, width, device)
            model = ifl.FlowMap(copy.deepcopy(start.model.net).requires_grad_(True), model.path)
            before, lr, done = {"before": excerpt(start.manifest, "seconds")}, LAST_LR, steps
        config = settings_of(dataset, length(variant, objective, steps, last), seed, device, lr)
        run = finished(ifl.fit(model, objective, points, config))
    except FloatingPointError as error:
        return [], {"diverged": str(error)}
    rows = []
    for nfe in nfes:
        row = zoo.result_row(run.model, system, run.manifest, "map", nfe) | {"dataset": dataset}
        row |= {"objective": objective.name, "step": done + config.steps, "n_samples": zoo.POINTS}
        if dataset in PLANE:
            times = zoo.jump_times(run.model.path, nfe)
            make = partial(ifl.sample, run.model, zoo.POINTS, nfe, "map", times=times)
            found = of_points(
                dataset, draws_of(seed, draws), lambda i, make=make: make(seed=1000 + i).x.cpu()
            )
        else:
            found = of_images(
                dataset, ifl.sample(run.model, zoo.POINTS, nfe, "map", 1000 + seed).x.cpu()
            )
        rows += [row | {"metric": name, "value": value} for name, value in found.items()]
    how = excerpt(run.manifest, "objective", "path", "data", "config", "seconds", "hardware")
    how |= excerpt(run.manifest, "versions") | before
    total = config.steps * calls_per_step(objective) + done * calls_per_step(system.objective())
    return rows, {**how, "calls_per_step": calls_per_step(objective), "calls": total}


def planned(given) -> dict:
    """run_id -> (function, settings): floors, then every seed of every variant."""
    measured = {"draws": given.draws}
    runs = {
        f"{dataset}/floor/seed{seed}": (floor, {"dataset": dataset, "seed": seed, **measured})
        for dataset, seed in itertools.product(given.sets, range(given.seeds))
    }
    measured |= {"nfes": list(given.nfes), "device": given.device, "width": given.width}
    make = partial(train, given.runs / "matching_first")
    # seeds innermost: two jobs then seldom want the same first stage
    for dataset, variant, seed in itertools.product(given.sets, given.variants, range(given.seeds)):
        if dataset in PLANE and "whitened" in variant:
            continue  # these sets have the covariance one
        stages = {"steps": given.steps, "last": given.last}
        if dataset in IMAGES:
            stages = {"steps": given.image_steps, "last": given.image_last}
        settings = {"dataset": dataset, "variant": variant, "seed": seed, "weight": given.weight}
        runs[f"{dataset}/{variant}/seed{seed}"] = (make, {**settings, **stages, **measured})
    return runs


def main(arguments=None) -> None:
    numbers = {"seeds": 3, "steps": 4000, "last": 1000, "image_steps": 1500, "image_last": 300}
    options = command_line(__doc__, **numbers, width=16, draws=10, jobs=1, minutes=0)
    choices(options, "--sets", PLANE + IMAGES)
    choices(options, "--variants", VARIANTS)
    options.add_argument("--weight", type=float, default=ifl.EnergyMatching.weight)
    options.add_argument("--nfes", type=int, nargs="+", default=(1, 2))
    options.add_argument("--device", default="cpu")
    given = options.parse_args(arguments)
    store, about = Store(given.runs / "matching"), {"points": zoo.POINTS}
    extend_table(given.out, "matching", store, planned(given), given.jobs, given.minutes, **about)


if __name__ == "__main__":
    main()
