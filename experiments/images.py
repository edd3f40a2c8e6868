"""The shipped models of images, with 10,000 samples: ``python experiments/images.py``

The models in --checkpoints (results/reference/checkpoints, those that ship; one that is missing there is trained first, on
a GPU if there is one): on every path the velocity by Euler steps, 1 to 32, and the Integration Flow by jumps, 1 to 8.
Fashion-MNIST: against all 10,000 official test images, on the features of the package's classifier, which are not those of
the published FID: Frechet and kernel distance; precision, recall, density and coverage. Emoji, rectified: the distances of
``studies.image_distances`` to the 386 test images.
Floor: the vendored training images, which the classifier has not seen, against the same.

Writes images.csv, a tidy table, and its manifest into --out (results/reference), where the rows of systems that are not
named stay. What was measured with the same weights is kept in results/runs/images and not measured again.
"""

import json
from functools import partial
from pathlib import Path

import pandas as pd
import torch

import iflow_lib as ifl
from experiments.common import ROOT, kept, parser
from iflow_lib import data as data_sets
from iflow_lib import metrics
from iflow_lib import metrics as diagnostics
from iflow_lib import zoo as studies
from iflow_lib.io import write_together
from iflow_runner.provenance import git_state, machine, sha256
from iflow_runner.recorder import csv_text

CHECKPOINTS, SYSTEMS = (
    ROOT / "results" / "reference" / "checkpoints",
    (*studies.SYSTEMS, *studies.EMOJI_SYSTEMS),
)


def distances(dataset: str, x: torch.Tensor) -> dict:
    """{metric: value} of images against the test images."""
    found = studies.image_distances(dataset, x, 10_000)
    if dataset == "fashion_mnist":
        found |= diagnostics.precision_recall(
            metrics.embed(x), metrics.fashion_reference(10_000)
        )._asdict()
    return found


def measured(folder: Path, system: str, method: str, nfe: int, n: int, seed: int) -> dict:
    """Rows of one model at one number of calls."""
    model, dataset = (
        studies.pretrained(system, folder, device=ifl.pick_device("auto")),
        studies.image_set(system),
    )
    manifest = studies.training_manifest(system, folder)
    result, seconds = studies.timed_sample(model, n, nfe, method, seed)
    row = studies._row(model, system, manifest, dataset, nfe, method) | {
        "n_samples": n,
        "seconds": seconds,
    }
    return {
        "rows": [
            row | {"metric": name, "value": value}
            for name, value in distances(dataset, result.x).items()
        ]
    }


def floor(dataset: str, n: int) -> dict:
    x = data_sets.load(dataset).x
    x = x[
        torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:n]
    ]  # emoji are sorted by category
    return {
        "rows": [
            {
                "dataset": dataset,
                "objective": "data",
                "anchor": "none",
                "method": "floor",
                "n_samples": len(x),
                "seed": 0,
                "metric": name,
                "value": value,
            }
            for name, value in distances(dataset, x).items()
        ]
    }


def others(folder: Path, systems) -> tuple[list[dict], dict]:
    """Rows and manifests that the table in a folder has of other systems."""
    if not (folder / "images.csv").is_file():
        return [], {}
    table = pd.read_csv(folder / "images.csv", dtype=str, keep_default_na=False)
    manifests = json.loads((folder / "images.manifest.json").read_text(encoding="utf-8"))["systems"]
    stay = [name for name in manifests if name not in systems]
    sets = {studies.image_set(name) for name in stay} - {
        studies.image_set(name) for name in systems
    }
    keep = table.run_id.str.split("/").str[0].isin([*stay, *sets])
    return table[keep].to_dict("records"), {name: manifests[name] for name in stay}


def main() -> None:
    options = parser(__doc__, samples=10_000, seeds=1)
    options.set_defaults(out=ROOT / "results" / "reference")
    options.add_argument("--systems", nargs="+", default=SYSTEMS, choices=SYSTEMS)
    options.add_argument("--nfes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    options.add_argument(
        "--checkpoints", type=Path, default=CHECKPOINTS, help="folder of the models"
    )
    options.add_argument(
        "--steps", type=int, default=None, help="of a model that has to be trained first"
    )
    given = options.parse_args()
    for system in given.systems:
        if not (given.checkpoints / system).is_dir():
            studies.train_images(system, given.checkpoints / system, steps=given.steps)
    n, sets = given.samples, {studies.image_set(system) for system in given.systems}
    jobs = {
        f"{dataset}/floor": (f"floor-{dataset}-{n}", partial(floor, dataset, n))
        for dataset in sorted(sets)
    }
    for system in given.systems:
        weights = json.loads((given.checkpoints / system / "config.json").read_text())["sha256"][
            :12
        ]
        for method, nfe in studies.methods(studies.parse_system(system)[1], given.nfes):
            for seed in range(given.seeds):
                name = f"{system}-{method}-{nfe}-n{n}-seed{seed}-{weights}"
                if method != "heun":
                    jobs[f"{system}/{method}{nfe}/sampling-seed-{seed}"] = (
                        name,
                        partial(measured, given.checkpoints, system, method, nfe, n, 77 + seed),
                    )
    rows, systems = others(given.out, given.systems)
    for run_id, (name, job) in jobs.items():
        found = kept(given.runs / "images", name, job)["rows"]
        rows += [{**row, "run_id": run_id} for row in found]
        print(run_id, {row["metric"]: round(row["value"], 3) for row in found}, flush=True)
    systems |= {
        system: {**git_state(ROOT), **studies.training_manifest(system, given.checkpoints)}
        for system in given.systems
    }
    manifest = {
        "lock_sha256": sha256(ROOT / "requirements.lock"),
        "environment": machine("cpu"),
        "systems": systems,
    }
    write_together(
        {
            given.out / "images.csv": csv_text(rows),
            given.out / "images.manifest.json": json.dumps(manifest, indent=1) + "\n",
        }
    )
    table = pd.read_csv(given.out / "images.csv").query("metric in ('frechet', 'frechet_pca')")
    print(
        table.pivot_table(index=["dataset", "path", "method"], columns="nfe", values="value")
        .round(2)
        .to_string()
    )


if __name__ == "__main__":
    main()
