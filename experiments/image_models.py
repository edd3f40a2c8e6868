"""The models of images, each trained three times: ``python -m experiments.image_models --jobs 2 --minutes 150``

On every path an Integration Flow of Fashion-MNIST with the velocity model that teaches it, for each training seed; for seed 0 also
a velocity model that costs as many network calls as both together; and one pair of emoji in colour, on the rectified path. What is
trained is kept in --models, a folder for each seed, and continues where it was stopped; each run that is done adds its rows.

Measured by 10,000 samples, means of three sampling seeds: the velocity by 1 to 32 Euler steps, the Integration Flow by 1 to 8
jumps. Of Fashion-MNIST against all 10,000 official test images, in the features of both classifiers of the package, which are not
those of the published FID: Frechet and kernel distance (``zoo.image_distances``); on those of the first also precision, recall,
density and coverage. Of emoji ``zoo.image_distances``. Of both "nearest" and "copies": how near samples are to the training
images, beside test images (``metrics.copies``). Floor: training images, which no classifier has seen, against the same.

``--ship``: on each path the Integration Flow with the median Frechet distance at one jump goes into --checkpoints
(results/reference/checkpoints), with its teacher; that of emoji as well.

Writes image_models.csv, a tidy table, and its manifest into --out (results/reference). What is in the table already is not done again.
"""

import itertools
import shutil
from functools import partial
from pathlib import Path

import pandas as pd
import torch

import iflow_lib as ifl
from experiments import models
from experiments.common import CHECKPOINTS, REFERENCE, RUNS, calls_per_step, choices, command_line
from experiments.store import Store, extend_table
from iflow_lib import data as data_sets
from iflow_lib import metrics, zoo

REAL = 10_000  # test images of Fashion-MNIST
#: Of emoji one pair is trained, on this path.
COLOUR = "rectified"
EULER, JUMPS = (1, 2, 4, 8, 16, 32), (1, 2, 4, 8)


# ---------------------------------------------------------------- measures


def distances(dataset: str, x: torch.Tensor) -> dict:
    """{metric: value} of images against the test images."""
    found = zoo.image_distances(dataset, x, REAL)
    if dataset == "fashion_mnist":
        real = metrics.fashion_reference(REAL)
        found |= metrics.precision_recall(metrics.embed(x), real)._asdict()
    fresh = data_sets.load(dataset, split="test").x
    return found | metrics.copies(x, data_sets.load(dataset).x, fresh)._asdict()


def measure(model: ifl.FlowMap, system: zoo.System, manifest: dict, samples: int, draws: int):
    """Rows of a model: means over sampling seeds."""
    rows = []
    ways = (
        [("map", n) for n in JUMPS] if system.kind == "integral" else [("euler", n) for n in EULER]
    )
    for method, nfe in ways:
        drawn = [zoo.timed_sample(model, samples, nfe, method, 77 + seed) for seed in range(draws)]
        found = [distances(system.data, result.x) for result, _ in drawn]
        row = zoo.result_row(model, system, manifest, method, nfe)
        row |= {"n_samples": samples, "seconds": sum(took for _, took in drawn) / draws}
        for metric in found[0]:
            value = sum(one[metric] for one in found) / draws
            rows.append(row | {"metric": metric, "value": value})
    return rows


def floor(dataset: str, samples: int) -> tuple[list[dict], dict]:
    """Rows of training images, chosen at random."""
    x = data_sets.load(dataset).x
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:samples]]
    row = {"dataset": dataset, "objective": "data", "anchor": "none", "method": "floor"}
    row |= {"n_samples": len(x), "seed": 0}
    found = distances(dataset, x)
    return [row | {"metric": name, "value": value} for name, value in found.items()], {}


# ---------------------------------------------------------------- trainings


def calls_of(system: zoo.System, steps: int | None) -> float:
    """Network calls for each example of a batch, in the whole training of an Integration Flow: teacher, flow map, last stage."""
    velocity = zoo.System(system.path, "velocity", system.data)
    first, second = steps or velocity.steps, steps or system.steps
    teacher = velocity.model()
    return (
        first * calls_per_step(velocity.objective())
        + second * calls_per_step(system.objective(teacher))
        + models.last_steps(second) * calls_per_step(system.objective(teacher, zoo.FINISH_MATCHING))
    )


def train(
    folder: Path,
    dataset: str,
    path: str,
    what: str,
    seed: int,
    samples: int,
    draws: int,
    device: str,
    steps: int | None,
) -> tuple[list[dict], dict]:
    """Rows and manifests of a pair of models, or of a velocity model for the cost of both.

    what: "pair" or "velocity". steps: of each stage, in place of the usual numbers.
    """
    if device == "cpu":
        torch.set_num_threads(1)
    velocity, integral = (zoo.System(path, kind, dataset) for kind in ("velocity", "integral"))
    settings = {"seed": seed, "device": device, "progress": False}
    place = folder / f"{what}-seed{seed}"
    if what == "pair":
        numbers = {velocity: steps, integral: steps}
    else:
        calls = calls_of(integral, steps)
        numbers = {velocity: round(calls / calls_per_step(velocity.objective()))}
    rows, how = [], {}
    for system, number in numbers.items():
        if not models.complete(system, place):
            models.train(system, place, steps=number, **settings)
        model = zoo.pretrained(system, place, device=ifl.pick_device(device))
        manifest = zoo.training_manifest(system, place)
        rows += measure(model, system, manifest, samples, draws)
        how[system.kind] = manifest
    return rows, {**how, "calls": calls_of(integral, steps)}


def planned(given) -> dict:
    """run_id -> (function, settings): floors, whole seeds one after another, then what costs as much, then emoji."""
    measured = {"samples": given.samples, "draws": given.draws, "device": given.device}
    runs = {
        f"{dataset}/floor": (floor, {"dataset": dataset, "samples": given.samples})
        for dataset in given.sets
    }
    make = partial(train, given.models)
    cells = list(itertools.product(["pair"], range(given.seeds), given.paths))
    cells += list(itertools.product(["velocity"], [0], given.paths))
    for dataset in given.sets:
        for what, seed, path in cells:
            if dataset == "emoji" and (what, seed, path) != ("pair", 0, COLOUR):
                continue
            own = {"dataset": dataset, "path": path, "what": what, "seed": seed}
            runs[f"{dataset}/{path}/{what}/seed{seed}"] = (
                make,
                own | measured | {"steps": given.steps},
            )
    return runs


def median_seed(table: pd.DataFrame, dataset: str, path: str) -> int:
    """The training seed whose Integration Flow has the median distance at one jump; of an even number the better one."""
    first = "frechet" if dataset == "fashion_mnist" else "frechet_pca"
    rows = table[(table.dataset == dataset) & (table.path == path) & (table.metric == first)]
    rows = rows[(rows.method == "map") & (rows.nfe == 1)].sort_values(["value", "seed"])
    return int(rows.seed.iloc[(len(rows) - 1) // 2])


def ship(folder: Path, checkpoints: Path, table: pd.DataFrame) -> None:
    """Put the models of the median seeds into checkpoints, each whole or not at all."""
    pairs = table[table.method == "map"][["dataset", "path"]].drop_duplicates()
    for dataset, path in pairs.itertuples(index=False):
        place = folder / f"pair-seed{median_seed(table, dataset, path)}"
        for kind in ("velocity", "integral"):
            name = zoo.System(path, kind, dataset).name
            new, old = checkpoints / f"{name}.new", checkpoints / name
            shutil.rmtree(new, ignore_errors=True)
            shutil.copytree(place / name, new)
            shutil.rmtree(old, ignore_errors=True)
            new.rename(old)
            print(f"{name}: {place.name}", flush=True)


def main(arguments=None) -> None:
    options = command_line(__doc__, REFERENCE, samples=10_000, seeds=3, draws=3, jobs=1, minutes=0)
    choices(options, "--sets", zoo.IMAGE_SETS)
    choices(options, "--paths", zoo.PATH_NAMES)
    options.add_argument("--models", type=Path, default=RUNS / "image_models", help="kept here")
    options.add_argument("--checkpoints", type=Path, default=CHECKPOINTS, help="that ship")
    options.add_argument("--ship", action="store_true", help="put the median seeds there")
    options.add_argument("--steps", type=int, help="of each stage, in place of the usual numbers")
    options.add_argument("--device", default="cpu")
    given = options.parse_args(arguments)
    store, about = (
        Store(given.runs / "image_models_done"),
        {"samples": given.samples, "draws": given.draws},
    )
    extend_table(
        given.out, "image_models", store, planned(given), given.jobs, given.minutes, **about
    )
    table = pd.read_csv(given.out / "image_models.csv")
    shown = table.query("metric in ('frechet', 'frechet_second', 'frechet_pca')")
    by = ["dataset", "metric", "path", "method", "step"]
    wide = shown.pivot_table(index=by, columns="nfe", values="value", aggfunc=["mean", "std"])
    print(wide.round(2).to_string())
    if given.ship:
        ship(given.models, given.checkpoints, table)


if __name__ == "__main__":
    main()
