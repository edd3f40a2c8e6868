"""What are the defaults in the plane worth? ``python experiments/plane_tuning.py --jobs 2``

IntegralIdentity on the checkerboard, the hardest of the five sets, on three paths: network and training of
``studies.plane_setup``, 1,500 steps, three seeds, one thing changed at a time: times, weight, shares, what the network sees
of times, EMA, learning rate, batch, capacity, an anchor, a warm start. Measured as exact W2 of 2,000 samples of one and of
four jumps to fresh points, mean of three draws, beside the floor.

Writes plane_tuning.csv, a tidy table, and its manifest into --out (results/reference/bench). What is in the table is not
run again; stop it at any time and continue.
"""

import argparse
import dataclasses
import itertools
from pathlib import Path

import torch

import iflow_lib as ifl
from experiments.common import BENCH, calls_per_step, grow
from iflow_lib import data, metrics
from iflow_lib import zoo as studies

#: name -> changes of the objective, of the network (``frequencies``: octaves of the times), of the configuration
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
SET, POINTS = "checkerboard", 2000


def one(variant: str, path: str, seed: int, steps: int, nfes) -> tuple[list[dict], dict]:
    """Rows and manifest of one run."""
    torch.set_num_threads(1)
    if variant == "floor":
        return studies.floor_rows(SET, pairs=50), {}
    of_objective, of_network, of_config = VARIANTS[variant]
    octaves = {"frequencies": of_network.get("frequencies", ifl.MLP.frequencies)}
    model, objective, settings = studies.plane_setup(
        f"{path}_integral",
        seed=seed,
        network=type("MLP", (ifl.MLP,), octaves),
        **{name: value for name, value in of_network.items() if name not in octaves},
    )
    objective = dataclasses.replace(objective, **of_objective)
    config = ifl.TrainConfig(**settings | of_config, steps=steps, device="cpu", progress=False)
    train, half = data.load(SET), dataclasses.replace(config, steps=steps // 2)
    try:
        if variant.startswith("warm"):
            ifl.fit(model, ifl.FlowMatching(), train, half)
            run = ifl.fit(model, objective, train, half)
        else:
            run = ifl.fit(model, objective, train, config)
    except FloatingPointError as error:
        return [], {"diverged": str(error)}
    real, rows = metrics.real_pairs(SET, POINTS), []
    for nfe in nfes:
        times = None if model.anchored else studies.plane_jumps(model.path, nfe)
        for i in range(3 * seed, 3 * seed + 3):
            x = studies.timed_sample(run.model, POINTS, nfe, "map", 1000 + i, times, False)[0].x
            rows.append(
                {
                    "dataset": SET,
                    "path": path,
                    "objective": objective.name,
                    "params": model.parameter_count,
                    "anchor": objective.anchor or "none",
                    "seed": seed,
                    "step": steps,
                    "nfe": nfe,
                    "method": "map",
                    "metric": "w2",
                    "value": metrics.w2(x, real(i)[1]),
                    "n_samples": POINTS,
                }
            )
    kept = {
        name: run.manifest[name]
        for name in ("objective", "path", "data", "config", "seconds", "versions")
    }
    return rows, {**kept, "calls_per_step": calls_per_step(objective)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--variants", nargs="+", default=tuple(VARIANTS), choices=VARIANTS)
    for name, default in (("seeds", 3), ("steps", 1500), ("jobs", 1)):
        options.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    options.add_argument("--nfes", type=int, nargs="+", default=(1, 4))
    options.add_argument("--out", type=Path, default=BENCH)
    given = options.parse_args()
    runs = {"floor": ("floor", "", 0, 0, ())}
    runs |= {
        f"{variant}/{path}/steps{given.steps}/seed{seed}": (
            variant,
            path,
            seed,
            given.steps,
            given.nfes,
        )
        for seed, variant, path in itertools.product(
            range(given.seeds), given.variants, studies.PATH_NAMES
        )
    }
    grow(given.out / "plane_tuning.csv", runs, one, given.jobs, 0, {"set": SET, "points": POINTS})


if __name__ == "__main__":
    main()
