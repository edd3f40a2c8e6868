"""Every objective, path and anchor rule on images: ``python -m experiments.image_methods --jobs 2``

As experiments/plane.py in the plane: ten kinds on three paths, three seeds, one network and training, no teachers, equally
many gradient steps for all. Small, for CPUs: a U-Net of width 16 (see the table for its weights), 1,500 steps of batch 64,
and 2,000 samples at 1 to 32 network calls. It tells methods apart; for how good they get with more training, see
experiments/images.py. ``--full`` is the version for a GPU: width 32, 10,000 steps, 10,000 samples.

Fashion-MNIST, or emoji, 32x32 in colour, for --systems that you name. Distances to the test images (of Fashion-MNIST to all
10,000 official ones): ``zoo.image_distances``. For the published recipe also "spread" and "copy" (``zoo.evaluate``).
A distance is NaN where samples were not finite. Floors: training images against the same.

Writes image_methods.csv, a tidy table, and its manifest into --out (results/reference). What is in the table already is not
run again, and neither is what --runs keeps; --minutes stops it by itself.
"""

import itertools
import math

import torch

import iflow_lib as ifl
from experiments.common import REFERENCE, calls_per_step, choices, command_line, excerpt, finished
from experiments.plane import SYSTEMS
from experiments.store import Store, extend_table
from iflow_lib import data, zoo

REAL = 10_000  # test images of Fashion-MNIST
METRICS = {
    "fashion_mnist": ("frechet", "kernel", "frechet_second", "kernel_second"),
    "emoji": ("frechet_pca", "sliced_w2"),
}


def floor(dataset: str, seed: int, samples: int) -> tuple[list[dict], dict]:
    """Rows of the floor, and nothing for the manifest."""
    torch.set_num_threads(1)
    x = data.load(dataset).x
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:samples]]
    base = {"dataset": dataset, "objective": "data", "method": "floor"}
    base |= {"seed": seed, "n_samples": len(x)}
    found = zoo.image_distances(dataset, x, REAL)
    return [base | {"metric": name, "value": value} for name, value in found.items()], {}


def train(
    system: str, seed: int, steps: int, width: int, samples: int, nfes, device: str
) -> tuple[list[dict], dict]:
    """Rows and manifest of one run."""
    torch.set_num_threads(1)
    system = zoo.System.parse(system)
    images, objective = data.load(system.data), system.objective()
    config = ifl.TrainConfig(
        **system.settings | {"ema": 0.99}, steps=steps, seed=seed, device=device, progress=False
    )
    try:
        run = finished(ifl.fit(system.model(seed, width=width), objective, images, config))
    except FloatingPointError as error:
        return [], {"diverged": str(error)}
    rows = []
    for method, nfe in system.methods(nfes):
        if method == "heun":
            continue
        refined = method == "anchor"
        result, seconds = zoo.timed_sample(
            run.model, samples, nfe, method, 1000 + seed, trajectory=refined
        )
        finite = bool(torch.isfinite(result.x).all())
        found = dict.fromkeys(METRICS[system.data], math.nan)
        if finite:
            found = zoo.image_distances(system.data, result.x, REAL)
        if finite and system.kind.startswith("x0_"):
            found["spread"] = float(result.x.std(0).mean() / images.x.std(0).mean())
            if refined:
                found["copy"] = zoo.copied(result)
        row = zoo.result_row(run.model, system, run.manifest, method, nfe)
        row |= {"n_samples": samples, "seconds": seconds}
        rows += [row | {"metric": name, "value": value} for name, value in found.items()]
    how = excerpt(run.manifest, "objective", "path", "data", "seconds", "hardware", "versions")
    return rows, {**how, "calls_per_step": calls_per_step(objective)}


def main(arguments=None) -> None:
    numbers = {"seeds": 3, "steps": 1500, "width": 16, "samples": 2000, "jobs": 1, "minutes": 0}
    options = command_line(__doc__, REFERENCE, **numbers)
    choices(options, "--sets", METRICS, ["fashion_mnist"])
    choices(options, "--systems", SYSTEMS)
    options.add_argument("--full", action="store_true", help="width 32, 10,000 steps and samples")
    options.add_argument("--nfes", type=int, nargs="+", default=(1, 2, 8, 32))
    options.add_argument("--device", default="auto")
    given = options.parse_args(arguments)
    if given.full:
        given.steps, given.width, given.samples = 10_000, 32, 10_000
    runs = {
        f"{dataset}/floor-n{given.samples}/seed{seed}": (
            floor,
            {"dataset": dataset, "seed": seed, "samples": given.samples},
        )
        for dataset, seed in itertools.product(given.sets, range(given.seeds))
    }
    settings = {name: getattr(given, name) for name in ("steps", "width", "samples", "device")}
    settings["nfes"] = list(given.nfes)
    for seed, dataset, name in itertools.product(range(given.seeds), given.sets, given.systems):
        system = zoo.System.parse(f"{dataset}_{name}").name
        runs[f"{dataset}/{name}/width{given.width}/steps{given.steps}/seed{seed}"] = (
            train,
            {"system": system, "seed": seed, **settings},
        )
    store, about = Store(given.runs / "image_methods"), {"samples": given.samples}
    extend_table(given.out, "image_methods", store, runs, given.jobs, given.minutes, **about)


if __name__ == "__main__":
    main()
