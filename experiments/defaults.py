"""What README's ten lines give: ``python -m experiments.defaults --minutes 60``

``MLP(2)``, ``IntegralIdentity()`` and ``TrainConfig(steps)`` as they come, on the sets in the plane, three paths, three seeds, 4,000
and 10,000 steps. Measured at one, two and four jumps on ``sample``'s own grid: W2 of 2,000 samples, mean of 20 draws, beside the
floor, the same of fresh points to the same draws (single floors differ by a factor of two); the share of 10,000 samples off the
support, and off the modes of Gaussians (plane_quality.py). Nothing here was seen by the search (docs/protocol.md).

The sets that are held out are measured with ``--confirm`` alone, once: with other defaults than those they were measured with, it
refuses. ``--before`` measures the defaults before the search beside them (candidate 0 of search.py; runs "before/...").

Writes defaults.csv, a tidy table, and its manifest into --out (results/reference/bench). What is in the table already, of the
same defaults, is not run again, and neither is what --runs keeps; --minutes stops it by itself.
"""

import hashlib
import itertools
import json
import sys
from functools import cache

import pandas as pd
import torch

import iflow_lib as ifl
from experiments import plane_quality
from experiments.common import calls_per_step, choices, command_line, excerpt, finished, over_floor
from experiments.plane_quality import make_path
from experiments.searches import DEFAULTS, known, network_of, objective_of
from experiments.store import Store, extend_table, read_manifest
from iflow_lib import data, zoo
from iflow_lib.training.config import with_rate

NFES, SPLIT, BEFORE = (1, 2, 4), "test", "before the search"


@cache
def as_they_come(steps: int) -> dict:
    """The defaults of network, objective, training and sampling, as JSON values."""
    config = with_rate(ifl.TrainConfig(steps), ifl.MLP(2))
    names = ("batch_size", "lr", "warmup", "ema", "clip", "coupling")
    return {
        "network": ifl.MLP(2).config(),
        "objective": ifl.IntegralIdentity().config(),
        "training": {name: getattr(config, name) for name in names},
        "jumps": {path: jump_times(path) for path in zoo.PATH_NAMES},
    }


def jump_times(path: str) -> list[float]:
    """The times at which four jumps meet, unless the caller of ``sample`` says otherwise."""
    with torch.random.fork_rng(devices=[]):
        model = ifl.FlowMap(ifl.MLP(2, 1, 1), make_path(path))
    times = ifl.sample(model, 1, max(NFES), "map", trajectory=True).times
    return [round(t, 5) for t in times.tolist()]


def digest(steps: int) -> str:
    """Says in a few letters with which defaults a run was made: with others it is another run."""
    return hashlib.sha256(json.dumps(as_they_come(steps), sort_keys=True).encode()).hexdigest()[:12]


def rows_of(found: dict[str, float], row: dict) -> list[dict]:
    samples = {"w2": zoo.POINTS}
    return [
        row | {"metric": name, "value": value, "n_samples": samples.get(name, plane_quality.PLACED)}
        for name, value in found.items()
    ]


def floor(dataset: str, seed: int, draws: int) -> tuple[list[dict], dict]:
    """Rows of fresh points on the draws of a training seed, and nothing for the manifest."""
    torch.set_num_threads(1)
    row = {"dataset": dataset, "objective": "data", "method": "floor", "seed": seed}
    return rows_of(plane_quality.floor(dataset, SPLIT, seed, draws), row), {}


def train(
    dataset: str, path: str, seed: int, steps: int, draws: int, defaults: str
) -> tuple[list[dict], dict]:
    """Rows and manifest of one run. defaults: the digest of those that there are, or ``BEFORE``."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    net, objective, changes = ifl.MLP(2), ifl.IntegralIdentity(), {}
    if defaults == BEFORE:
        torch.manual_seed(seed)
        net, objective = network_of(DEFAULTS), objective_of(known(DEFAULTS))
        changes = {name: DEFAULTS[name] for name in ("lr", "ema")}
    model = ifl.FlowMap(net, make_path(path))
    row = {"dataset": dataset, "path": path, "objective": objective.name, "network": "MLP"}
    row |= {"params": model.parameter_count, "seed": seed, "step": steps, "method": "map"}
    row |= {"device": "cpu"}
    config = ifl.TrainConfig(steps, **changes, seed=seed, device="cpu", progress=False)
    try:
        run = finished(ifl.fit(model, objective, data.load(dataset), config))
    except FloatingPointError as error:
        found = {nfe: plane_quality.far(dataset) for nfe in NFES}
        how = {"diverged": str(error)}
    else:
        measured = (dataset, SPLIT, seed, draws)
        found = {nfe: plane_quality.quality(run.model, *measured, nfe) for nfe in NFES}
        how = excerpt(run.manifest, "seconds", "hardware", "versions")
    rows = [new for nfe in NFES for new in rows_of(found[nfe], row | {"nfe": nfe})]
    return rows, {**how, "calls_per_step": calls_per_step(objective), "draws": draws}


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Median and worst, over sets and paths, of the mean ratio over seeds; and shares off the support, all by budget and jumps."""
    held = table.dataset.isin(data.PLANE_HELD_OUT).map({False: "searched", True: "held out"})
    before = table.run_id.str.startswith("before/").map({False: "now", True: "before"})
    by = ["defaults", "sets", "step", "nfe"]
    table = table.assign(sets=held, defaults=before)
    cells = over_floor(table).groupby([*by, "dataset", "path"]).value.mean()
    shown = cells.groupby(by).agg(["median", "max"])
    off = table.query("metric == 'off_support' and method == 'map'")
    return shown.assign(off_support=off.groupby(by).value.mean())


def used_before(manifest: dict) -> str:
    """Why the held-out sets cannot be measured, "" if they can: with other defaults they were."""
    for name, how in manifest.get("runs", {}).items():
        settings = how["settings"]
        if settings["dataset"] in data.PLANE_HELD_OUT and "defaults" in settings:
            if settings["defaults"] not in (BEFORE, digest(settings["steps"])):
                return (
                    f"{name} in defaults.csv was measured with other defaults: these sets cannot confirm what was chosen "
                    "after that (docs/protocol.md)"
                )
    return ""


def main(arguments=None) -> None:
    options = command_line(__doc__, seeds=3, draws=20, jobs=1, minutes=0)
    options.add_argument("--steps", type=int, nargs="+", default=(4000, 10_000))
    options.add_argument("--confirm", action="store_true", help="also the sets that are held out")
    options.add_argument(
        "--before", action="store_true", help="also the defaults before the search"
    )
    choices(options, "--sets", data.PLANE)
    choices(options, "--paths", zoo.PATH_NAMES)
    given = options.parse_args(arguments)
    sets = (*given.sets, *(data.PLANE_HELD_OUT if given.confirm else ()))
    file = given.out / "defaults.csv"
    before = read_manifest(file) if file.is_file() else {}
    if given.confirm and (why := used_before(before)):
        sys.exit(why)
    runs: dict[str, tuple] = {}
    for seed, steps, dataset in itertools.product(range(given.seeds), given.steps, sets):
        drawn = {"dataset": dataset, "seed": seed, "draws": given.draws}
        runs[f"{dataset}/floor/seed{seed}"] = (floor, drawn)
        for path in given.paths:
            name, own = f"{dataset}/{path}/steps{steps}/seed{seed}", {"path": path, "steps": steps}
            runs[name] = (train, {**drawn, **own, "defaults": digest(steps)})
            if given.before:
                runs[f"before/{name}"] = (train, {**drawn, **own, "defaults": BEFORE})
    known = before.get("defaults", {}) | {digest(n): as_they_come(n) for n in given.steps}
    store = Store(given.runs / "defaults")
    extend_table(given.out, "defaults", store, runs, given.jobs, given.minutes, defaults=known)
    if file.is_file():
        print(summary(pd.read_csv(file)).round(3).to_string())


if __name__ == "__main__":
    main()
