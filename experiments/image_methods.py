"""Every objective, path and anchor rule on images: ``python experiments/image_methods.py --jobs 2``

As experiments/plane.py in the plane: ten kinds (``studies.image_objective``) on three paths, three seeds, one network and
training, no teachers, equally many gradient steps for all. Small, for CPUs: a U-Net of width 16 (see the table for its
weights), 1,500 steps of batch 64, and 2,000 samples at 1 to 32 network calls. It tells methods apart; for how good they get
with more training, see experiments/images.py. ``--full`` is the version for a GPU: width 32, 10,000 steps, 10,000 samples.

Fashion-MNIST, or emoji, 32x32 in colour, for --systems that you name. Distances to the test images (of Fashion-MNIST to all
10,000 official ones): ``studies.image_distances``. For the published recipe also "spread" and "copy"
(``studies.evaluate_plane``). A distance is empty where samples were not finite. Floors: training images against the same.

Writes image_methods.csv, a tidy table, and its manifest into --out (results/reference). What is in the table is not run
again; stop it at any time and continue, or let --minutes stop it.
"""

import argparse
import itertools
import math
from pathlib import Path

import torch

import iflow_lib as ifl
from experiments.common import ROOT, calls_per_step, grow
from iflow_lib import data
from iflow_lib import zoo as studies

REAL, METRICS = (
    10_000,
    {"fashion_mnist": ("frechet", "kernel"), "emoji": ("frechet_pca", "sliced_w2")},
)


def one(
    dataset: str, system: str, seed: int, steps: int, width: int, n: int, nfes, device: str
) -> tuple[list, dict]:
    """Rows and manifest of one run."""
    torch.set_num_threads(1)
    if system == "floor":
        x = data.load(dataset).x
        x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:n]]
        return [
            {
                "dataset": dataset,
                "objective": "data",
                "method": "floor",
                "seed": seed,
                "n_samples": len(x),
                "metric": name,
                "value": value,
            }
            for name, value in studies.image_distances(dataset, x, REAL).items()
        ], {}
    path, kind = studies.parse_system(system, studies.PLANE_SYSTEMS)
    objective, train = studies.image_objective(kind), data.load(dataset)
    torch.manual_seed(seed)
    net = ifl.UNet(
        channels=train.x.shape[1],
        size=train.x.shape[-1],
        width=width,
        blocks=1,
        anchor=studies.sees_anchor(objective),
    )
    model = ifl.FlowMap(net, studies.make_path(path, images=True))
    try:
        run = ifl.fit(
            model,
            objective,
            train,
            ifl.TrainConfig(
                steps=steps,
                batch_size=64,
                lr=1e-3,
                ema=0.99,
                seed=seed,
                device=device,
                progress=False,
            ),
        )
    except FloatingPointError as error:
        return [], {"diverged": str(error)}
    rows = []
    for method, nfe in studies.methods(kind, nfes):
        if method == "heun":
            continue
        result, seconds = studies.timed_sample(
            run.model, n, nfe, method, 1000 + seed, trajectory=method == "anchor"
        )
        finite = bool(torch.isfinite(result.x).all())
        found = (
            studies.image_distances(dataset, result.x, REAL)
            if finite
            else dict.fromkeys(METRICS[dataset], math.nan)
        )
        if finite and kind.startswith("x0_"):
            found["spread"] = float(result.x.std(0).mean() / train.x.std(0).mean())
            if method == "anchor":
                found["copy"] = studies.copied(result)
        rows += [
            studies._row(run.model, system, run.manifest, dataset, nfe, method)
            | {"n_samples": n, "seconds": seconds, "metric": name, "value": value}
            for name, value in found.items()
        ]
    kept = {
        name: run.manifest[name]
        for name in ("objective", "path", "data", "seconds", "hardware", "versions")
    }
    return rows, {**kept, "calls_per_step": calls_per_step(objective)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--sets", nargs="+", default=["fashion_mnist"], choices=METRICS)
    options.add_argument(
        "--systems", nargs="+", default=studies.PLANE_SYSTEMS, choices=studies.PLANE_SYSTEMS
    )
    options.add_argument(
        "--full", action="store_true", help="width 32, 10,000 steps, 10,000 samples"
    )
    for name, default in (
        ("seeds", 3),
        ("steps", 1500),
        ("width", 16),
        ("samples", 2000),
        ("jobs", 1),
        ("minutes", 0),
    ):
        options.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    options.add_argument("--nfes", type=int, nargs="+", default=(1, 2, 8, 32))
    options.add_argument("--device", default="auto")
    options.add_argument("--out", type=Path, default=ROOT / "results" / "reference")
    given = options.parse_args()
    if given.full:
        given.steps, given.width, given.samples = 10_000, 32, 10_000
    rest = (given.steps, given.width, given.samples, given.nfes, given.device)
    runs = {
        f"{dataset}/floor-n{given.samples}/seed{seed}": (dataset, "floor", seed, *rest)
        for dataset in given.sets
        for seed in range(given.seeds)
    }
    runs |= {
        f"{dataset}/{system}/width{given.width}/steps{given.steps}/seed{seed}": (
            dataset,
            system,
            seed,
            *rest,
        )
        for seed, dataset, system in itertools.product(
            range(given.seeds), given.sets, given.systems
        )
    }
    grow(
        given.out / "image_methods.csv",
        runs,
        one,
        given.jobs,
        given.minutes,
        {"samples": given.samples},
    )


if __name__ == "__main__":
    main()
