"""One step after a brief training on images that no setting was chosen on: ``python -m experiments.brief --tune --confirm``

Fashion-MNIST, a U-Net of width 16, no teacher, 1,500 and 4,500 steps of batch 64, three paths, three seeds: the identity with the
settings that ``experiments.search --of images`` chose, the same with its last tenth under ``EnergyMatching`` of random features,
and the other objectives. All have the network, the averaging and the kind of velocity that were chosen. Each is trained for as many
steps as cost the same, the network calls of consistency training (``calls_per_step``), and at the shorter budget also for equally
many; the one with matching at equal cost alone. Additivity and terminal velocity have no adaptive weight, which gained them
nothing on digits (docs/findings.md), and the times of ``zoo``; they are there at the shorter budget.

--tune finds the learning rates of the others on emoji, as an equal small search: four, the rectified path, 1,500 steps, seed 0. What
counts is "frechet_pca", with the weights of the search over jumps; of consistency training at one call; of the velocity the geometric
mean at 8, 16 and 32 Euler steps. --confirm then measures, once (docs/protocol.md), by 2,000 samples against all 10,000 test images
of Fashion-MNIST: ``zoo.image_distances`` at one, two and four calls, and the velocity by up to 32 Euler steps. A training that
diverged is infinitely far away. Floors: training images against the same.

Writes brief.csv, a tidy table, and its manifest into --out (results/reference/bench). What is in the table already is not run again,
and neither is what --runs keeps; --minutes stops it by itself.
"""

import itertools
import math
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import iflow_lib as ifl
from experiments.common import calls_per_step, choices, command_line, excerpt, finished
from experiments.image_methods import METRICS, REAL, floor
from experiments.matching import LAST_LR
from experiments.searches import (
    BATCH,
    IMAGE_TRIED,
    WEIGHTS,
    image_network_of,
    image_objective_of,
    image_path,
    known,
    started,
    training_of,
)
from experiments.store import Store, extend_table, read_manifest
from iflow_lib import data, zoo

#: The image settings that are confirmed. Until the search has chosen them they are those of the trial before it, and provisional:
#: no result may be made with them.
CHOSEN, PROVISIONAL = known(IMAGE_TRIED), True
#: Where learning rates are tuned, and where methods are compared.
TUNED_ON, HELD_OUT = "emoji", "fashion_mnist"
IDENTITY, MATCHED = "IntegralIdentity", "EnergyMatching"
METHODS = (
    IDENTITY,
    MATCHED,
    "ConsistencyTraining",
    "FlowMatching",
    "IntegralAdditivity",
    "TerminalVelocity",
)
#: Those that are trained for the longer budget too.
LONGER = METHODS[:4]
#: Those that have no search of their own, and what is tried of them.
TUNED, RATES = METHODS[2:], (1e-3, 2e-3, 4e-3, 8e-3)
#: The last steps of ``MATCHED`` that are matched, as a share.
LAST = 0.1


# ---------------------------------------------------------------- what is compared


def objective_of(method: str) -> ifl.Objective:
    velocity = {"velocity": CHOSEN["velocity"]}
    times = {"time_density": zoo.System("rectified", "integral", HELD_OUT).objective().time_density}
    return {
        IDENTITY: partial(image_objective_of, CHOSEN),
        MATCHED: lambda: ifl.EnergyMatching(image_objective_of(CHOSEN), space="random"),
        "ConsistencyTraining": partial(ifl.ConsistencyTraining, **velocity),
        "FlowMatching": partial(ifl.FlowMatching, **velocity),
        "IntegralAdditivity": partial(ifl.IntegralAdditivity, **velocity, **times),
        "TerminalVelocity": partial(ifl.TerminalVelocity, **velocity, **times),
    }[method]()


def stages(method: str, steps: int, lr: float) -> list[tuple[ifl.Objective, int, float]]:
    """(objective, steps, learning rate) of each stage of a training."""
    objective = objective_of(method)
    if method != MATCHED:
        return [(objective, steps, lr)]
    last = max(1, round(LAST * steps))
    return [(objective.base, steps - last, lr), (objective, last, LAST_LR * lr)]


def mean_calls(method: str) -> float:
    """Network calls for each example of a step, the mean over a training."""
    objective = objective_of(method).suited((1, 28, 28))
    if method != MATCHED:
        return calls_per_step(objective)
    return (1 - LAST) * calls_per_step(objective.base) + LAST * calls_per_step(objective)


def budgets(method: str, steps: int, shorter: bool) -> dict[str, int]:
    """How a method is compared with consistency training of so many steps -> its own. shorter: of the two budgets."""
    if not shorter and method not in LONGER:
        return {}
    found = {"cost": round(steps * mean_calls("ConsistencyTraining") / mean_calls(method))}
    return {"steps": steps} | found if shorter and method != MATCHED else found


def calls_of(method: str) -> list[tuple[str, int]]:
    """The ways in which a method is sampled."""
    if method == "FlowMatching":
        return [("euler", nfe) for nfe in (1, 2, 4, 8, 16, 32)]
    return [("map", nfe) for nfe in ((1,) if method == "ConsistencyTraining" else (1, 2, 4))]


# ---------------------------------------------------------------- runs


def train(
    dataset: str,
    method: str,
    path: str,
    seed: int,
    steps: int,
    lr: float,
    samples: int,
    chosen: dict,
) -> tuple[list[dict], dict]:
    """Rows and manifest of one run. chosen: ``CHOSEN``; with another one it is another run."""
    torch.set_num_threads(1)
    net = partial(image_network_of, chosen, *zoo.IMAGE_SETS[dataset])
    model, images, seconds = started(net, image_path(path), seed), data.load(dataset), 0.0
    row = {"dataset": dataset, "path": path, "objective": objective_of(method).name}
    row |= {"network": "UNet", "params": model.parameter_count, "seed": seed, "step": steps}
    row |= {"n_samples": samples, "device": "cpu"}
    how = {"calls": round(steps * mean_calls(method))}
    try:
        for objective, number, rate in stages(method, steps, lr):
            own = training_of(chosen) | {"batch_size": BATCH, "lr": rate, "seed": seed}
            config = ifl.TrainConfig(number, **own, device="cpu", progress=False)
            run = finished(ifl.fit(model, objective, images, config))
            model = ifl.FlowMap(run.model.net.requires_grad_(True), run.model.path)
            seconds += run.manifest["seconds"]
    except FloatingPointError as error:
        how |= {"diverged": str(error)}
    else:
        how |= {"seconds": seconds, **excerpt(run.manifest, "hardware", "versions")}
    rows = []
    for kind, nfe in calls_of(method):
        found, took = dict.fromkeys(METRICS[dataset], math.inf), math.nan
        if "diverged" not in how:
            result, took = zoo.timed_sample(run.model, samples, nfe, kind, 1000 * (seed + 1))
            if bool(result.x.isfinite().all()):
                found = zoo.image_distances(dataset, result.x, REAL)
        own = row | {"method": kind, "nfe": nfe, "seconds": took}
        rows += [own | {"metric": name, "value": value} for name, value in found.items()]
    return rows, how


def tuning(methods, steps: int, samples: int) -> dict[str, tuple]:
    """run_id -> (function, settings) of the small search."""
    fixed = {"dataset": TUNED_ON, "path": "rectified", "seed": 0, "steps": steps}
    fixed |= {"samples": samples, "chosen": CHOSEN}
    return {
        f"tune/{method}/steps{steps}/lr{lr}": (train, {**fixed, "method": method, "lr": lr})
        for method, lr in itertools.product(methods, RATES)
    }


def best_rates(runs: dict[str, tuple], file: Path) -> dict[str, float]:
    """Method -> the learning rate that did best in the small search, and that which was chosen of the identity.

    runs: those of the search. A method of which one is missing in the table is missing.
    """
    found = {IDENTITY: CHOSEN["lr"], MATCHED: CHOSEN["lr"]}
    if not file.is_file():
        return found
    done, table = read_manifest(file)["runs"], pd.read_csv(file)
    distances = table[table.metric == "frechet_pca"].set_index(["run_id", "nfe"]).value
    scores: dict[str, dict[float, float]] = {}
    for name, (_, settings) in runs.items():
        if name in done and done[name]["settings"] == settings:
            own = scores.setdefault(settings["method"], {})
            own[settings["lr"]] = tuning_score(settings["method"], distances[name].to_dict())
    whole = {method: own for method, own in scores.items() if len(own) == len(RATES)}
    return found | {method: min(own, key=own.__getitem__) for method, own in whole.items()}


def tuning_score(method: str, distances: dict[int, float]) -> float:
    """Of the distances by the number of calls: the mean logarithm at those that the method is made for."""
    weights = {"ConsistencyTraining": {1: 1}, "FlowMatching": {8: 1, 16: 1, 32: 1}}
    weights = weights.get(method, WEIGHTS)
    logs = np.log([distances[nfe] for nfe in weights])
    return float(np.average(logs, weights=list(weights.values())))


def comparison(given, rates: dict[str, float]) -> dict[str, tuple]:
    """run_id -> (function, settings) of the confirmation: whole seeds one after another, brief trainings first."""
    fixed = {"dataset": HELD_OUT, "samples": given.samples}
    runs = {
        f"{HELD_OUT}/floor/seed{seed}": (floor, {**fixed, "seed": seed})
        for seed in range(given.seeds)
    }
    each = itertools.product(range(given.seeds), given.steps, given.paths, given.methods)
    for seed, steps, path, method in each:
        for own in budgets(method, steps, steps == min(given.steps)).values():
            name = f"{HELD_OUT}/{method}/{path}/steps{own}/seed{seed}"
            settings = {"method": method, "path": path, "seed": seed, "steps": own}
            runs[name] = (train, {**fixed, **settings, "lr": rates[method], "chosen": CHOSEN})
    return runs


def used_before(manifest: dict, rates: dict[str, float]) -> str:
    """Why Fashion-MNIST cannot be measured, "" if it can: with other settings it was."""
    for name, how in manifest.get("runs", {}).items():
        settings = how["settings"]
        if settings["dataset"] == HELD_OUT and "method" in settings:
            now = (CHOSEN, rates.get(settings["method"], settings["lr"]))
            if (settings["chosen"], settings["lr"]) != now:
                return (
                    f"{name} in brief.csv was measured with other settings: these images cannot confirm what was chosen "
                    "after that (docs/protocol.md)"
                )
    return ""


# ---------------------------------------------------------------- the table


def summary(table: pd.DataFrame, steps) -> pd.DataFrame:
    """Mean Frechet distance over seeds and its standard deviation, by budget, comparison, path and method."""
    table = table[table.metric.eq("frechet") & table.objective.ne("data")]
    table = table.assign(name=table.run_id.str.split("/").str[1])
    parts = []
    for budget, method in itertools.product(steps, METHODS):
        for by, own in budgets(method, budget, budget == min(steps)).items():
            part = table[table.name.eq(method) & table.step.eq(own)]
            parts.append(part.assign(budget=budget, equal=by))
    by = ["budget", "equal", "path", "name"]
    return pd.concat(parts).pivot_table(index=by, columns="nfe", values="value", aggfunc=["mean", "std"])  # fmt: skip


def main(arguments=None) -> None:
    numbers = {"seeds": 3, "samples": zoo.POINTS, "tune_steps": 1500, "jobs": 1, "minutes": 0}
    options = command_line(__doc__, **numbers)
    options.add_argument("--steps", type=int, nargs="+", default=(1500, 4500))
    choices(options, "--methods", METHODS)
    choices(options, "--paths", zoo.PATH_NAMES)
    options.add_argument("--tune", action="store_true", help="learning rates, on emoji")
    options.add_argument("--confirm", action="store_true", help="measure on Fashion-MNIST, once")
    given = options.parse_args(arguments)
    if not (given.tune or given.confirm):
        options.error("say --tune, --confirm, or both")
    if given.confirm and PROVISIONAL:
        sys.exit(
            "the settings in experiments/brief.py are provisional: let the search choose them first (docs/protocol.md)"
        )
    file, store, start = given.out / "brief.csv", Store(given.runs / "brief"), time.monotonic()
    tuned = tuning([m for m in given.methods if m in TUNED], given.tune_steps, given.samples)
    about = {"chosen": CHOSEN, "samples": given.samples}
    if given.tune:
        extend_table(given.out, "brief", store, tuned, given.jobs, given.minutes, **about)
    rates = best_rates(tuned, file)
    print(", ".join(f"{method}: lr {lr:g}" for method, lr in rates.items()), flush=True)
    if not given.confirm:
        return
    if missing := [method for method in given.methods if method not in rates]:
        sys.exit(f"the learning rates of {', '.join(missing)} are not all tried: give --tune")
    if file.is_file() and (why := used_before(read_manifest(file), rates)):
        sys.exit(why)
    left = given.minutes - (time.monotonic() - start) / 60
    if not given.minutes or left > 0:
        runs = comparison(given, rates)
        minutes = left if given.minutes else 0
        extend_table(given.out, "brief", store, runs, given.jobs, minutes, **about)
    table = pd.read_csv(file)
    if table.dataset.eq(HELD_OUT).any():
        print(summary(table, given.steps).round(2).to_string())


if __name__ == "__main__":
    main()
