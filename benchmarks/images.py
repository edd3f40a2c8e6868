"""Fashion-MNIST with 10,000 samples: ``python benchmarks/images.py``

The models in --checkpoints (results/reference/checkpoints, those that ship; one that is missing there is trained first, on
a GPU if there is one): on every path the velocity by Euler steps, 1 to 32, and the Integration Flow by jumps, 1 to 8.
10,000 samples against all 10,000 official test images, on the features of the package's classifier, which are not those of
the published FID: Frechet and kernel distance; precision, recall, density and coverage.
Floor: the 10,000 vendored training images, which the classifier has not seen, against the same.

Writes images.csv, a tidy table, and its manifest into --out (results/reference), where the rows of systems that are not
named stay. What was measured with the same weights is kept in results/runs/images and not measured again.
"""
import json
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from common import ROOT, kept, parser

import iflow_lib as ifl
from iflow_lib import data as data_sets
from iflow_lib import diagnostics, metrics, studies
from iflow_lib.checkpoints import write_together
from iflow_lib.results import csv_text, git_state, machine, sha256

CHECKPOINTS = ROOT / "results" / "reference" / "checkpoints"


def distances(features: torch.Tensor, real: torch.Tensor) -> dict:
    """{metric: value} of features (n, 64) against those of the data."""
    near = diagnostics.precision_recall(features, real)
    return {"frechet": metrics.frechet_distance(features, real), "kernel": metrics.kernel_distance(features, real),
            **near._asdict()}


def measured(folder: Path, system: str, method: str, nfe: int, n: int, seed: int) -> dict:
    """Rows of one model at one number of calls."""
    model = studies.pretrained(system, folder, device=ifl.samplers.pick_device("auto"))
    manifest = studies.training_manifest(system, folder)
    result, seconds = studies.timed_sample(model, n, nfe, method, seed)
    row = studies._row(model, system, manifest, "fashion_mnist", nfe, method) | {"n_samples": n, "seconds": seconds}
    found = distances(metrics.embed(result.x), metrics.fashion_reference(10_000))
    return {"rows": [row | {"metric": name, "value": value} for name, value in found.items()]}


def floor(n: int) -> dict:
    found = distances(metrics.embed(data_sets.load("fashion_mnist", n=n).x), metrics.fashion_reference(10_000))
    return {"rows": [{"dataset": "fashion_mnist", "objective": "data", "anchor": "none", "method": "floor", "n_samples": n,
                      "seed": 0, "metric": name, "value": value} for name, value in found.items()]}


def others(folder: Path, systems) -> tuple[list[dict], dict]:
    """Rows and manifests that the table in a folder has of other systems."""
    if not (folder / "images.csv").is_file():
        return [], {}
    table = pd.read_csv(folder / "images.csv", dtype=str, keep_default_na=False)
    manifests = json.loads((folder / "images.manifest.json").read_text(encoding="utf-8"))["systems"]
    stay = [name for name in manifests if name not in systems]
    return table[table.run_id.str.split("/").str[0].isin(stay)].to_dict("records"), {name: manifests[name] for name in stay}


def main() -> None:
    options = parser(__doc__, samples=10_000, seeds=1)
    options.set_defaults(out=ROOT / "results" / "reference")
    options.add_argument("--systems", nargs="+", default=studies.SYSTEMS, choices=studies.SYSTEMS)
    options.add_argument("--nfes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    options.add_argument("--checkpoints", type=Path, default=CHECKPOINTS, help="folder of the models")
    options.add_argument("--steps", type=int, default=studies.IMAGE_STEPS, help="of a model that has to be trained first")
    given = options.parse_args()
    for system in given.systems:
        if not (given.checkpoints / system).is_dir():
            studies.train_images(system, given.checkpoints / system, steps=given.steps)
    jobs, n = {"fashion_mnist/floor": (f"floor-{given.samples}", partial(floor, given.samples))}, given.samples
    for system in given.systems:
        weights = json.loads((given.checkpoints / system / "config.json").read_text())["sha256"][:12]
        for method, nfe in studies.methods(studies.parse_system(system)[1], given.nfes):
            for seed in range(given.seeds):
                name = f"{system}-{method}-{nfe}-n{n}-seed{seed}-{weights}"
                if method != "heun":
                    jobs[f"{system}/{method}{nfe}/sampling-seed-{seed}"] = (
                        name, partial(measured, given.checkpoints, system, method, nfe, n, 77 + seed))
    rows, systems = others(given.out, given.systems)
    for run_id, (name, job) in jobs.items():
        found = kept(given.runs / "images", name, job)["rows"]
        rows += [{**row, "run_id": run_id} for row in found]
        print(run_id, {row["metric"]: round(row["value"], 3) for row in found}, flush=True)
    systems |= {system: {**git_state(ROOT), **studies.training_manifest(system, given.checkpoints)}
                for system in given.systems}
    manifest = {"lock_sha256": sha256(ROOT / "requirements.lock"), "environment": machine("cpu"), "systems": systems}
    write_together({given.out / "images.csv": csv_text(rows),
                    given.out / "images.manifest.json": json.dumps(manifest, indent=1) + "\n"})
    table = pd.read_csv(given.out / "images.csv").query("metric == 'frechet'")
    print(table.pivot_table(index=["path", "method"], columns="nfe", values="value").round(2).to_string())


if __name__ == "__main__":
    main()
