"""Every objective, path and anchor rule in the plane: ``python experiments/plane.py --jobs 2``

Five sets, three paths, seeds, one network and training (``studies.train_plane``), two comparisons, each at the same number
of gradient steps for all in it (``calls_per_step`` in the manifest says what a step costs each):

- methods: ways to few calls without an anchor, and the velocity that they are measured by, 10,000 steps;
- anchors: the published recipe in every reading of its anchor, beside the integral identity without and with its own
  estimate as the anchor, 2,500 steps. So that nobody has to ask whether the recipe needs more: it has 10,000 too, on the
  eight Gaussians, rectified.

--steps runs all kinds that long instead. Measured as exact W2 of 2,000 samples to 2,000 fresh points, mean of ``--draws``
draws (one draw for the recipe, whose distances are many floors and not a matter of the draw), at 1 to 100 network calls:
see ``studies.methods``. A value is empty where samples were not finite. Floors: pairs of independent draws of the data.

Writes plane.csv, a tidy table, and plane.manifest.json into --out (results/reference). What is in the table already is not
run again, so it can be stopped at any time and continued; --minutes stops it by itself.
"""

import argparse
import itertools
from pathlib import Path

import torch

from experiments.common import ROOT, calls_per_step, grow
from iflow_lib import data
from iflow_lib import zoo as studies

METHODS = ("integral", "velocity", "additivity", "consistency")


def planned(sets, systems, seeds: int, steps: int) -> dict:
    """Name -> (set, system or "floor", seed, steps): floors, the methods of every seed, the anchors of every seed."""
    runs = [(dataset, "floor", 0, 0) for dataset in sets]
    for seed, dataset, system in itertools.product(range(seeds), sets, systems):
        kind = studies.parse_system(system, studies.PLANE_SYSTEMS)[1]
        longer = (
            kind.startswith("x0_")
            and system.startswith("rectified")
            and dataset == "eight_gaussians"
        )
        lengths = [studies.PLANE_STEPS] * (kind in METHODS or longer)
        lengths += [studies.ANCHOR_STEPS] * (kind == "integral" or kind not in METHODS)
        runs += [(dataset, system, seed, length) for length in ([steps] if steps else lengths)]
    runs.sort(key=lambda run: (run[3] not in (0, studies.PLANE_STEPS), run[2]))
    return {
        f"{dataset}/{system}" + (f"/steps{steps}/seed{seed}" if steps else ""): (
            dataset,
            system,
            seed,
            steps,
        )
        for dataset, system, seed, steps in runs
    }


def one(
    dataset: str, system: str, seed: int, steps: int, draws: int, nfes, pairs: int
) -> tuple[list[dict], dict]:
    """Rows and manifest of one run."""
    torch.set_num_threads(1)
    if system == "floor":
        return studies.floor_rows(dataset, pairs=pairs), {}
    try:
        run = studies.train_plane(system, dataset, seed=seed, steps=steps)
    except FloatingPointError as error:
        return [], {"diverged": str(error)}
    manifest = run.manifest
    draws = 1 if manifest["objective"]["name"] == "X0Regression" else draws
    rows = studies.evaluate_plane(run, system, dataset, nfes=nfes, draws=draws)
    kept = {
        name: manifest[name]
        for name in ("objective", "path", "data", "seconds", "hardware", "versions")
    }
    kind = studies.parse_system(system, studies.PLANE_SYSTEMS)[1]
    return rows, {**kept, "calls_per_step": calls_per_step(studies.KINDS[kind]()), "draws": draws}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--sets", nargs="+", default=data.PLANE, choices=data.PLANE)
    options.add_argument(
        "--systems", nargs="+", default=studies.PLANE_SYSTEMS, choices=studies.PLANE_SYSTEMS
    )
    for name, default in (
        ("seeds", 3),
        ("steps", 0),
        ("draws", 3),
        ("floor-pairs", 50),
        ("jobs", 1),
        ("minutes", 0),
    ):
        options.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    options.add_argument("--nfes", type=int, nargs="+", default=studies.NFES)
    options.add_argument("--out", type=Path, default=ROOT / "results" / "reference")
    given = options.parse_args()
    runs = {
        name: (*run, given.draws, given.nfes, given.floor_pairs)
        for name, run in planned(given.sets, given.systems, given.seeds, given.steps).items()
    }
    grow(
        given.out / "plane.csv",
        runs,
        one,
        given.jobs,
        given.minutes,
        {"floor_pairs": given.floor_pairs},
    )


if __name__ == "__main__":
    main()
