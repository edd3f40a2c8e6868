"""The shipped models of images, with 10,000 samples: ``python -m experiments.images``

The models in --checkpoints (results/reference/checkpoints, those that ship; one that is missing there is trained first, on
a GPU if there is one): on every path the velocity by Euler steps, 1 to 32, and the Integration Flow by jumps, 1 to 8.
Against all 10,000 official test images, on the features of the package's classifier, which are not those of
the published FID: Frechet and kernel distance; precision, recall, density and coverage. No model of emoji ships; one that
is named, such as emoji_rectified_velocity, is trained first too, and measured by ``zoo.image_distances``.
Floor: the vendored training images, which the classifier has not seen, against the same.

Writes images.csv, a tidy table, and its manifest into --out (results/reference), where the rows of systems that are not
named stay. What was measured with the same weights is not measured again.
"""

import json
from functools import partial
from pathlib import Path

import pandas as pd
import torch

import iflow_lib as ifl
from experiments import models
from experiments.common import CHECKPOINTS, IMAGE_MODELS, REFERENCE, ROOT, command_line, system
from experiments.store import Store, read_manifest, write_table
from iflow_lib import data as data_sets
from iflow_lib import metrics, zoo
from iflow_runner.provenance import git_state

REAL = 10_000  # test images of Fashion-MNIST


def distances(dataset: str, x: torch.Tensor) -> dict:
    """{metric: value} of images against the test images."""
    found = zoo.image_distances(dataset, x, REAL)
    if dataset == "fashion_mnist":
        real = metrics.fashion_reference(REAL)
        found |= metrics.precision_recall(metrics.embed(x), real)._asdict()
    return found


def measure(
    checkpoints: Path, system: str, method: str, nfe: int, samples: int, seed: int, weights: str
) -> tuple[list[dict], dict]:
    """Rows of one model at one number of calls. weights: their digest."""
    model = zoo.pretrained(system, checkpoints, device=ifl.pick_device("auto"))
    manifest = zoo.training_manifest(system, checkpoints)
    result, seconds = zoo.timed_sample(model, samples, nfe, method, seed)
    row = zoo.result_row(model, system, manifest, method, nfe)
    row |= {"n_samples": samples, "seconds": seconds}
    found = distances(row["dataset"], result.x)
    return [row | {"metric": name, "value": value} for name, value in found.items()], {}


def floor(dataset: str, samples: int) -> tuple[list[dict], dict]:
    """Rows of training images, chosen at random."""
    x = data_sets.load(dataset).x
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:samples]]
    row = {"dataset": dataset, "objective": "data", "anchor": "none", "method": "floor"}
    row |= {"n_samples": len(x), "seed": 0}
    found = distances(dataset, x)
    return [row | {"metric": name, "value": value} for name, value in found.items()], {}


def others(folder: Path, systems: list[zoo.System]) -> tuple[list[dict], dict]:
    """Rows and manifests that the table in a folder has of other systems."""
    file = folder / "images.csv"
    if not file.is_file():
        return [], {}
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    named = {one.name for one in systems}
    stay = {n: how for n, how in read_manifest(file)["systems"].items() if n not in named}
    floors = {zoo.System.parse(name).data for name in stay} - {one.data for one in systems}
    keep = table.run_id.str.split("/").str[0].isin([*stay, *floors])
    return table[keep].to_dict("records"), stay


def planned(given) -> dict:
    """run_id -> (function, settings): floors, then every system by its methods."""
    sets = sorted({one.data for one in given.systems})
    samples = {"samples": given.samples}
    runs = {f"{dataset}/floor": (floor, {"dataset": dataset, **samples}) for dataset in sets}
    for one in given.systems:
        config = (given.checkpoints / one.name / "config.json").read_text(encoding="utf-8")
        what = {"system": one.name, "weights": json.loads(config)["sha256"], **samples}
        for method, nfe in one.methods(given.nfes):
            for seed in range(given.seeds) if method != "heun" else ():
                runs[f"{one.name}/{method}{nfe}/sampling-seed-{seed}"] = (
                    partial(measure, given.checkpoints),
                    {**what, "method": method, "nfe": nfe, "seed": 77 + seed},
                )
    return runs


def main(arguments=None) -> None:
    options = command_line(__doc__, REFERENCE, samples=10_000, seeds=1)
    shipped = [system(name) for name in IMAGE_MODELS]
    options.add_argument(
        "--systems", nargs="+", type=system, default=shipped, help="default: all that ship"
    )
    options.add_argument("--nfes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    options.add_argument("--checkpoints", type=Path, default=CHECKPOINTS, help="of the models")
    options.add_argument("--steps", type=int, help="of a model that has to be trained first")
    given = options.parse_args(arguments)
    for one in given.systems:
        if not models.complete(one, given.checkpoints):
            models.train(one, given.checkpoints, steps=given.steps)
    rows, systems = others(given.out, given.systems)
    for run_id, run in Store(given.runs / "images").get_all(planned(given)).items():
        rows += [{**row, "run_id": run_id} for row in run.rows]
    for one in given.systems:
        manifest = zoo.training_manifest(one, given.checkpoints)
        systems[one.name] = {**git_state(ROOT), **manifest}
    write_table(given.out, "images", rows, tidy=True, systems=systems)
    table = pd.read_csv(given.out / "images.csv").query("metric in ('frechet', 'frechet_pca')")
    wide = table.pivot_table(index=["dataset", "path", "method"], columns="nfe", values="value")
    print(wide.round(2).to_string())


if __name__ == "__main__":
    main()
