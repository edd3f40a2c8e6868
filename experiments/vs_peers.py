"""Beside rectified-flow-pytorch, torchcfm and flow_matching at equal cost: ``python -m experiments.vs_peers --minutes 60 --jobs 2``

It continues quality_vs_peers.py, with all jump objectives of the installed neighbours, velocity methods, five sets, and a search that
is the same for everyone. peers.py says who takes part, with which network, loss and settings.

1. *Search*: each contender has ``--candidates`` settings. The k-th candidates of all have the same learning rate and the same
   octaves of the network, drawn at random; the first has the library's defaults. Their own arguments are drawn from the axes in
   peers.py; the first has their own defaults. Each is trained for ``--short`` steps on checkerboard and two moons, seed 0, and
   measured by half of ``--draws`` draws of the split "train" (plane_quality.py). The score is the geometric mean of W2 over its
   floor: for jumps with the weights 0.6, 0.2 and 0.2 at 1, 2 and 4 calls, for velocities one half each at 4 and at 32.
2. *Result*: the best of each on five sets, three seeds, rectified path, all at the same cost: as many network calls as ``--steps``
   steps of FlowMatching, times 1.5. Draws of the split "test".

Calls are counted as everywhere here, a derivative in forward mode as one more; on a CPU it takes longer, and an assignment by optimal
transport is no call. So the measured seconds stand beside it. They are of one thread, beside --jobs - 1 others.

Network MLP 128 x 4, batches of 512, Adam with half a cosine, EMA 0.999, first weights of the seed. W2 is over the floor, the same of
fresh points to the same draws: mean over draws divided by mean over draws. Where a contender is sampled in several ways, a row of the
result has the best of them, whosever it is.

Writes into --out (results/reference/bench)

    vs_peers_runs.csv: every run, sampler and number of calls; with the role "candidate" the settings, "absent" who could not run
    vs_peers.csv: for each set and number of calls, who is first, who is tied with the first (the 95 % interval of the difference over
        seeds, paired, contains 0), who is behind whom and why. Only once all runs are there.

Finished runs are kept in --runs; called again, it continues.
"""

import json
import math
import time

import numpy as np
import pandas as pd
import torch

import iflow_lib as ifl
from experiments import plane_quality
from experiments.common import choices, command_line, excerpt, finished
from experiments.peers import CONTENDERS, Contender, calls_per_step, sample, versions, ways
from experiments.store import Store, write_table
from iflow_lib import data
from iflow_lib.metrics import interval

SEARCH_SETS, SEARCH_SPLIT, SPLIT = ("checkerboard", "two_moons"), "train", "test"
#: Of the network and its training, the same for all.
NETWORK, BATCH, EMA = {"hidden": 128, "layers": 4}, 512, 0.999
#: The cost of a result, over that of FlowMatching for ``--steps``; a step of that is so many calls.
COST, VELOCITY_STEP = 1.5, 3
COLUMNS = (
    "contender role candidate dataset seed steps sampler nfe w2 floor off_support off_modes calls_per_step seconds settings note"
).split()


# ---------------------------------------------------------------- runs


def train(
    contender: str,
    settings: dict,
    dataset: str,
    seed: int,
    steps: int,
    draws: int,
    split: str,
    nfes: list[int],
) -> tuple[list[dict], dict]:
    """Rows of one run."""
    torch.set_num_threads(1)
    who = CONTENDERS[contender]
    objective = who.objective(settings["own"], steps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        octaves = {name: settings[name] for name in ("features", "frequencies")}
        model = ifl.FlowMap(ifl.MLP(2, **NETWORK, **octaves), ifl.RectifiedFlow())
    own = {"lr": settings["lr"], "coupling": settings["own"].get("coupling", "independent")}
    own |= {"batch_size": BATCH, "ema": EMA, "threads": 1, "device": "cpu", "progress": False}
    row = {"contender": contender, "dataset": dataset, "seed": seed, "steps": steps}
    row |= {"calls_per_step": calls_per_step(objective)}
    start, methods = time.perf_counter(), ways(who, objective, nfes)
    try:
        run = finished(
            ifl.fit(model, objective, data.load(dataset), ifl.TrainConfig(steps, seed=seed, **own))
        )
    except FloatingPointError as error:
        found, how = [plane_quality.far(dataset)] * len(methods), {"diverged": str(error)}
        row |= {"seconds": time.perf_counter() - start}
    else:
        how = excerpt(run.manifest, "seconds", "hardware", "versions")
        row |= {"seconds": how["seconds"]}
        found = [
            measured(objective, run.model, method, nfe, dataset, split, seed, draws)
            for method, nfe in methods
        ]
    rows = [
        row | {"sampler": method, "nfe": nfe} | values
        for (method, nfe), values in zip(methods, found)
    ]
    return rows, how


def measured(objective, model, method, nfe, dataset, split, seed, draws) -> dict[str, float]:
    def drawn(n: int, sampling: int) -> torch.Tensor:
        return sample(objective, model, method, nfe, n, sampling)

    return plane_quality.quality_of(drawn, dataset, split, seed, draws)


def floor(dataset: str, seed: int, draws: int, split: str) -> tuple[list[dict], dict]:
    """The row of fresh points on the draws of a training seed."""
    torch.set_num_threads(1)
    found = plane_quality.floor(dataset, split, seed, draws)
    return [{"contender": "data", "dataset": dataset, "seed": seed} | found], {}


def equal_steps(calls: float, steps: int) -> int:
    """Steps that cost as much as so many of FlowMatching, times ``COST``."""
    return max(1, round(COST * VELOCITY_STEP * steps / calls))


# ---------------------------------------------------------------- what they say


def score(rows: pd.DataFrame, weights: dict[int, float]) -> float:
    """Geometric mean of W2 over its floor, over sets and over calls with weights; of several samplers the best."""
    found = (rows.w2 / rows.floor).groupby([rows.dataset, rows.nfe]).min()
    logs = [weights[nfe] * math.log(value) for (_, nfe), value in found.items() if nfe in weights]
    return math.exp(sum(logs) / rows.dataset.nunique())


def best(table: pd.DataFrame, name: str) -> int:
    """The number of the candidate of a contender with the least score."""
    own = table[(table.role == "search") & (table.contender == name)]
    scores = {k: score(rows, CONTENDERS[name].weights) for k, rows in own.groupby("candidate")}
    return int(min(scores, key=lambda k: (scores[k], k)))


def verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each set, number of calls and contender, the best first, from the runs.

    ratio: W2 over the floor, mean over seeds, with half its 95 % interval; sampler: with which it is least; behind: ratio minus that of
    the first, over seeds, with half its interval. Those who are absent have a row at the end.
    """
    runs = table[table.role == "result"]
    runs = runs.assign(ratio=runs.w2 / runs.floor)
    found = []
    for (dataset, nfe), rows in runs.groupby(["dataset", "nfe"], sort=False):
        contenders = {
            name: of_best_sampler(own) for name, own in rows.groupby("contender", sort=False)
        }
        order = sorted(contenders, key=lambda name: contenders[name].ratio.mean())
        first = contenders[order[0]]
        for name in order:
            own = contenders[name]
            apart = (own.set_index("seed").ratio - first.set_index("seed").ratio).to_numpy()
            row = {"dataset": dataset, "nfe": int(nfe), "contender": name}
            row |= {"package": CONTENDERS[name].package, "sampler": own.sampler.iloc[0]}
            with np.errstate(invalid="ignore"):  # where one diverged
                row |= {"ratio": own.ratio.mean(), "interval": interval(own.ratio)}
                row |= {"behind": apart.mean(), "behind_interval": interval(apart)}
            row |= {key: own[key].mean() for key in ("off_support", "off_modes")}
            row |= {key: own[key].iloc[0] for key in ("steps", "calls_per_step")}
            row |= {"seconds": own.seconds.mean(), "seeds": len(own)}
            found.append(row | {"verdict": verdict(row, order[0])})
    for row in table[table.role == "absent"].itertuples():
        absent = {"contender": row.contender, "package": CONTENDERS[row.contender].package}
        found.append(absent | {"verdict": f"not measured: {row.note}"})
    return pd.DataFrame(found)


def of_best_sampler(rows: pd.DataFrame) -> pd.DataFrame:
    means = rows.groupby("sampler", sort=False).ratio.mean()
    return rows[rows.sampler == means.idxmin()]


def verdict(row: dict, first: str) -> str:
    """ "first", "tied" or "behind WHOM: why". Of one seed there is no interval, and nobody is behind."""
    name, apart, half = row["contender"], row["behind"], row["behind_interval"]
    if name == first:
        return "first"
    if not math.isfinite(row["ratio"]):
        return f"behind {first}: it diverged"
    return f"behind {first}: {CONTENDERS[name].why}" if apart > half else "tied"


def ours_beside(result: pd.DataFrame) -> pd.DataFrame:
    """For each set and number of calls: the best of ours, and the best neighbour, each with its verdict."""
    lines = []
    measured = result[result.nfe.notna()]
    for (dataset, nfe), rows in measured.groupby(["dataset", "nfe"], sort=False):
        row = {"dataset": dataset, "nfe": int(nfe)}
        ours = rows.package == "iflow_lib"
        for whose, part in (("ours", rows[ours]), ("neighbour", rows[~ours])):
            if len(part):
                row |= {whose: part.contender.iloc[0], f"{whose}_ratio": part.ratio.iloc[0]}
                row |= {f"{whose}_verdict": part.verdict.iloc[0]}
        lines.append(row)
    return pd.DataFrame(lines)


# ---------------------------------------------------------------- the command


class Work:
    """Runs, those that are kept first, and the rows that they gave."""

    def __init__(self, store: Store, jobs: int, minutes: float) -> None:
        self.store, self.jobs, self.minutes, self.start = store, jobs, minutes, time.monotonic()
        self.rows: list[dict] = []
        self.manifests: dict[str, dict] = {}

    def do(self, runs: dict[str, tuple], about: dict[str, dict]) -> bool:
        """Make runs and note their rows. about: name -> what each of its rows says too. False if time was up before the last."""
        kept = {name: run for name, run in runs.items() if self.store.file(*run).is_file()}
        found = self.store.get_all(kept)
        missing = {name: run for name, run in runs.items() if name not in kept}
        left = self.minutes - (time.monotonic() - self.start) / 60
        if missing and (left > 0 or not self.minutes):
            found |= self.store.get_all(missing, self.jobs, left if self.minutes else 0)
        for name in runs:
            if name in found:
                self.manifests[name] = found[name].manifest
                self.rows += [row | about[name] for row in found[name].rows]
        return len(found) == len(runs)

    def table(self) -> pd.DataFrame:
        """All rows so far; those of runs have the floor on their draws."""
        table = pd.DataFrame(self.rows, columns=COLUMNS)
        splits = table.role.map({"search": SEARCH_SPLIT, "result": SPLIT})
        floors = {
            (row.dataset, row.seed, row.note): row.w2
            for row in table[table.role == "floor"].itertuples()
        }
        keys = zip(table.dataset, table.seed, splits)
        table["floor"] = [floors.get(key, math.nan) for key in keys]
        return table


def main(arguments=None) -> None:
    options = command_line(
        __doc__, candidates=8, short=1000, steps=4000, seeds=3, draws=10, jobs=1, minutes=0
    )
    choices(options, "--sets", data.PLANE)
    choices(options, "--contenders", CONTENDERS)
    given = options.parse_args(arguments)
    work = Work(Store(given.runs / "vs_peers"), given.jobs, given.minutes)
    present: dict[str, Contender] = {}
    for name in given.contenders:
        if why := CONTENDERS[name].absent():
            work.rows.append({"contender": name, "role": "absent", "note": why})
        else:
            present[name] = CONTENDERS[name]
    candidates = {name: who.candidates(given.candidates) for name, who in present.items()}
    for name, settings in candidates.items():
        for k, one in enumerate(settings):
            row = {"contender": name, "role": "candidate", "candidate": k}
            calls = calls_per_step(present[name].objective(one["own"], given.steps))
            work.rows.append(row | {"settings": json.dumps(one), "calls_per_step": calls})

    runs, about = {}, {}

    #: of each split
    draws = {SEARCH_SPLIT: (given.draws + 1) // 2, SPLIT: given.draws}

    def add_floors(sets, seeds, split: str) -> None:
        for dataset in sets:
            for seed in range(seeds):
                name = f"floor/{split}/{dataset}/seed{seed}"
                own = {"dataset": dataset, "seed": seed, "draws": draws[split], "split": split}
                runs[name], about[name] = (floor, own), {"role": "floor", "note": split}

    def add(role: str, name: str, k: int, dataset: str, seed: int, steps: int, nfes) -> None:
        own = {"contender": name, "settings": candidates[name][k], "dataset": dataset, "seed": seed}
        split = SEARCH_SPLIT if role == "search" else SPLIT
        own |= {"steps": steps, "draws": draws[split], "split": split, "nfes": list(nfes)}
        run = f"{role}/{name}/{k}/{dataset}/steps{steps}/seed{seed}"
        runs[run], about[run] = (train, own), {"role": role, "candidate": k}

    add_floors(SEARCH_SETS, 1, SEARCH_SPLIT)
    for k in range(given.candidates):
        for name, who in present.items():
            for dataset in SEARCH_SETS:
                add("search", name, k, dataset, 0, given.short, who.weights)
    whole = work.do(runs, about)
    runs, about = {}, {}
    if whole:
        table = work.table()
        add_floors(given.sets, given.seeds, SPLIT)
        for seed in range(given.seeds):
            for dataset in given.sets:
                for name, who in present.items():
                    k = best(table, name)
                    own = candidates[name][k]["own"]
                    steps = equal_steps(
                        calls_per_step(who.objective(own, given.steps)), given.steps
                    )
                    add("result", name, k, dataset, seed, steps, who.nfes)
        whole = work.do(runs, about)
    table = work.table()
    settings = {"network": NETWORK, "batch": BATCH, "ema": EMA, "cost": COST, "draws": draws}
    settings |= {"neighbours": versions(), "path": "RectifiedFlow"}
    write_table(
        given.out, "vs_peers_runs", table.to_dict("records"), **settings, runs=work.manifests
    )
    if not whole:
        print("not all runs are there yet: call it again")
        return
    result = verdicts(table)
    write_table(given.out, "vs_peers", result.to_dict("records"), **settings)
    print(ours_beside(result).round(3).to_string())


if __name__ == "__main__":
    main()
