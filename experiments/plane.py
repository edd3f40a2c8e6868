"""Every objective, path and anchor rule in the plane: ``python -m experiments.plane --jobs 2``

Five sets, three paths, seeds, one network and training (``iflow_lib.zoo``), two comparisons, each at the same number of
gradient steps for all in it (``calls_per_step`` in the manifest says what a step costs each):

- methods: ways to few calls without an anchor, and the velocity that they are measured by, 10,000 steps;
- anchors: the published recipe in every reading of its anchor, beside the integral identity without and with its own
  estimate as the anchor, 2,500 steps. So that nobody has to ask whether the recipe needs more: it has 10,000 too, on the
  eight Gaussians, rectified.

--steps runs all kinds that long instead. Measured as exact W2 of 2,000 samples to 2,000 fresh points, mean of ``--draws``
draws (one draw for the recipe, whose distances are many floors and not a matter of the draw), at 1 to 100 network calls:
see ``System.methods``. Beside it "off_support", the share of samples where no data lie, and on the eight Gaussians
"rms_to_exact", the distance to the exact ends of the same noise (``zoo.evaluate``). A value is NaN where samples were not
finite. Floors: real points on the draws that the models of each training seed are compared with (``zoo.floor_rows``).

Writes plane.csv, a tidy table, and plane.manifest.json into --out (results/reference). What is in the table already is not
run again, and neither is what --runs keeps; --minutes stops it by itself.
"""

import itertools

import torch

from experiments.common import REFERENCE, calls_per_step, choices, command_line, excerpt, finished
from experiments.store import Store, extend_table
from iflow_lib import data, zoo

METHODS = ("integral", "velocity", "additivity", "consistency")
SYSTEMS = tuple(f"{path}_{kind}" for kind in zoo.KINDS for path in zoo.PATH_NAMES)


def planned(sets, systems, seeds: int, steps: int) -> list[tuple[zoo.System, int, int]]:
    """(system, seed, steps): the methods of every seed, then the anchors of every seed."""
    runs = []
    for seed, dataset, name in itertools.product(range(seeds), sets, systems):
        system = zoo.System.parse(f"{dataset}_{name}")
        eight = dataset == "eight_gaussians" and system.path == "rectified"
        longer = system.kind.startswith("x0_") and eight
        lengths = [zoo.PLANE_STEPS] * (system.kind in METHODS or longer)
        lengths += [zoo.ANCHOR_STEPS] * (system.kind == "integral" or system.kind not in METHODS)
        runs += [(system, seed, length) for length in ([steps] if steps else lengths)]
    return sorted(runs, key=lambda run: (run[2] != zoo.PLANE_STEPS, run[1]))


def floor(dataset: str, seeds: int, draws: int) -> tuple[list[dict], dict]:
    """Rows of the floor, and nothing for the manifest."""
    torch.set_num_threads(1)
    return zoo.floor_rows(dataset, seeds, draws), {}


def train(system: str, seed: int, steps: int, draws: int, nfes) -> tuple[list[dict], dict]:
    """Rows and manifest of one run."""
    torch.set_num_threads(1)
    try:
        run = finished(zoo.train(system, seed, steps, device="cpu"))
    except FloatingPointError as error:
        return [], {"diverged": str(error)}
    kind = zoo.System.parse(system).kind
    draws = 1 if kind.startswith("x0_") else draws
    rows = zoo.evaluate(run.model, system, run.manifest, nfes=nfes, draws=draws)
    how = excerpt(run.manifest, "objective", "path", "data", "seconds", "hardware", "versions")
    return rows, {**how, "calls_per_step": calls_per_step(zoo.KINDS[kind]()), "draws": draws}


def main(arguments=None) -> None:
    options = command_line(__doc__, REFERENCE, seeds=3, steps=0, draws=3, jobs=1, minutes=0)
    choices(options, "--sets", data.PLANE)
    choices(options, "--systems", SYSTEMS)
    options.add_argument("--nfes", type=int, nargs="+", default=zoo.NFES)
    given = options.parse_args(arguments)
    of_floor = {"seeds": given.seeds, "draws": given.draws}
    runs = {f"{name}/floor": (floor, {"dataset": name, **of_floor}) for name in given.sets}
    measured = {"draws": given.draws, "nfes": list(given.nfes)}
    for system, seed, steps in planned(given.sets, given.systems, given.seeds, given.steps):
        name = f"{system.data}/{system.path}_{system.kind}/steps{steps}/seed{seed}"
        runs[name] = (train, {"system": system.name, "seed": seed, "steps": steps, **measured})
    store = Store(given.runs / "plane")
    about = {"floor_seeds": given.seeds, "draws": given.draws}
    extend_table(given.out, "plane", store, runs, given.jobs, given.minutes, **about)


if __name__ == "__main__":
    main()
