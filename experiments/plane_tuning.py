"""What are the defaults in the plane worth? ``python -m experiments.plane_tuning --jobs 2``

IntegralIdentity on the checkerboard, the hardest of the five sets, on three paths: network and training of
``zoo.System``, 1,500 steps, three seeds, one thing changed at a time: times, weight, shares, what the network sees
of times, EMA, learning rate, batch, capacity, an anchor, a warm start. Measured as exact W2 of 2,000 samples of one and of
four jumps to fresh points, mean of three draws, beside the floor.

Writes plane_tuning.csv, a tidy table, and its manifest into --out (results/reference/bench). What is in the table already is
not run again, and neither is what --runs keeps.
"""

import dataclasses
import itertools

import torch

import iflow_lib as ifl
from experiments.common import calls_per_step, choices, command_line, excerpt, finished
from experiments.store import Store, extend_table
from iflow_lib import data, metrics, zoo

#: name -> changes of the objective, of the network, of the configuration
VARIANTS = {
    "defaults": ({}, {}, {}),
    "times uniform": ({"time_density": "uniform"}, {}, {}),
    "times (-0.4, 1), MeanFlow's": ({"time_density": (-0.4, 1.0)}, {}, {}),
    "power 0.5": ({"power": 0.5}, {}, {}),
    "power 1": ({"power": 1.0}, {}, {}),
    "equal 0.25": ({"equal_share": 0.25}, {}, {}),
    "equal 0.75": ({"equal_share": 0.75}, {}, {}),
    "ends 0": ({"start_share": 0.0, "end_share": 0.0}, {}, {}),
    "ends 0.3": ({"start_share": 0.3, "end_share": 0.3}, {}, {}),
    "conditional tangent": ({"tangent": "conditional"}, {}, {}),
    "octaves 2": ({}, {"frequencies": 2}, {}),
    "octaves 6": ({}, {"frequencies": 6}, {}),
    "no features of x": ({}, {"features": 0}, {}),
    "EMA 0.9": ({}, {}, {"ema": 0.9}),
    "EMA 0.99": ({}, {}, {"ema": 0.99}),
    "EMA 0.9999": ({}, {}, {"ema": 0.9999}),
    "lr 5e-4": ({}, {}, {"lr": 5e-4}),
    "lr 4e-3": ({}, {}, {"lr": 4e-3}),
    "batch 128": ({}, {}, {"batch_size": 128}),
    "width 32": ({}, {"hidden": 32}, {}),
    "width 64": ({}, {"hidden": 64}, {}),
    "width 256": ({}, {"hidden": 256}, {}),
    "anchor: its own estimate": ({"anchor": "self"}, {"anchor": True}, {}),
    "warm: half the steps FlowMatching": ({}, {}, {}),
}
SET = "checkerboard"
#: Draws that the samples of a training are compared with.
DRAWS = 3


def floor(seeds: int) -> tuple[list[dict], dict]:
    """Rows of the floor, on the draws of the trainings, and nothing for the manifest."""
    return zoo.floor_rows(SET, seeds, DRAWS, zoo.POINTS), {}


def train(variant: str, path: str, seed: int, steps: int, nfes) -> tuple[list[dict], dict]:
    """Rows and manifest of one run."""
    torch.set_num_threads(1)
    of_objective, of_network, of_config = VARIANTS[variant]
    system = zoo.System(path, "integral", SET)
    model = system.model(seed, **of_network)
    objective = dataclasses.replace(system.objective(), **of_objective)
    config = ifl.TrainConfig(
        **system.settings | of_config, steps=steps, seed=seed, device="cpu", progress=False
    )
    points = data.load(SET)
    try:
        if variant.startswith("warm"):
            config = dataclasses.replace(config, steps=steps // 2)
            finished(ifl.fit(model, ifl.FlowMatching(velocity="pair"), points, config))
        run = finished(ifl.fit(model, objective, points, config))
    except FloatingPointError as error:
        return [], {"diverged": str(error)}
    real, rows = metrics.real_pairs(SET, zoo.POINTS), []
    row = {"dataset": SET, "path": path, "objective": objective.name, "seed": seed, "step": steps}
    row |= {"params": model.parameter_count, "anchor": objective.anchor or "none"}
    row |= {"method": "map", "metric": "w2", "n_samples": zoo.POINTS}
    for nfe in nfes:
        times = None if model.anchored else zoo.jump_times(model.path, nfe)
        for i in range(DRAWS * seed, DRAWS * (seed + 1)):
            x = ifl.sample(run.model, zoo.POINTS, nfe, "map", 1000 + i, times=times).x
            rows.append(row | {"nfe": nfe, "value": metrics.w2(x, real(i)[1])})
    how = excerpt(run.manifest, "objective", "path", "data", "config", "seconds", "versions")
    return rows, {**how, "calls_per_step": calls_per_step(objective)}


def main(arguments=None) -> None:
    options = command_line(__doc__, seeds=3, steps=1500, jobs=1)
    choices(options, "--variants", VARIANTS)
    options.add_argument("--nfes", type=int, nargs="+", default=(1, 4))
    given = options.parse_args(arguments)
    runs = {"floor": (floor, {"seeds": given.seeds})}
    for seed, variant, path in itertools.product(
        range(given.seeds), given.variants, zoo.PATH_NAMES
    ):
        settings = {"variant": variant, "path": path, "seed": seed, "steps": given.steps}
        settings["nfes"] = list(given.nfes)
        runs[f"{variant}/{path}/steps{given.steps}/seed{seed}"] = (train, settings)
    store, about = Store(given.runs / "plane_tuning"), {"set": SET, "points": zoo.POINTS}
    extend_table(given.out, "plane_tuning", store, runs, given.jobs, **about)


if __name__ == "__main__":
    main()
