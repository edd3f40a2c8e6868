"""A search for settings in the plane that does not fool itself: ``python -m experiments.search --minutes 40``

The protocol, written before it, is docs/protocol.md: what is chosen, on which data, by which score, and what may be looked at
afterwards. Candidates are drawn by Optuna's TPE. Each is trained for 1,000 steps on three of the 15 cells (a set and a path), one
on each path, other ones for the next; the best quarter on all cells; the best quarter of those for 4,000 steps with three seeds;
with ``--equal-cost`` the best three of those for as many steps as cost the same. A candidate whose step costs more than twice
FlowMatching's is refused before it is trained.

Writes search.csv and its manifest into --out (results/reference/bench). The table is all that the search remembers: Optuna's study
is made of it anew for each candidate. Stopped at any moment, the next call goes on; finished runs that the table does not have yet
come from --runs. Its rows are

    metric "cost": a candidate, with its settings; network multiplications of a step over those of FlowMatching
    metric "floor": W2 of fresh points to the draws of a training seed
    metric "w2", "off_support", "off_modes": a run, at ``nfe`` jumps on ``sample``'s own grid
"""

import dataclasses
import json
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import iflow_lib as ifl
from experiments import plane_quality
from experiments.common import calls_per_step, command_line, finished
from experiments.plane_quality import make_path
from experiments.store import Store, read_manifest, write_table
from iflow_lib import data, zoo
from iflow_lib.metrics import interval

#: Gradient steps of a first look and of a result, the number of seeds of a result, and the split of all draws.
SHORT, LONG, SEEDS, SPLIT = 1000, 4000, 3, "train"
#: Jumps -> draws behind each distance, and weight in the score.
DRAWS, WEIGHTS = {1: 10, 2: 5, 4: 5}, {1: 0.6, 2: 0.2, 4: 0.2}
#: A candidate's step costs at most so many times FlowMatching's with the MLP of 256 x 4; equal cost is that of so many.
DEAREST, EQUAL_COST = 2.0, 1.5
#: One in so many goes on to the next rung; so many are compared at equal cost; so many are drawn before TPE learns.
SHARE, FINALISTS, STARTUP = 4, 3, 12
#: What a setting may be: a list of choices, or (least, largest), drawn on a logarithmic scale if "log" is said.
SPACE = {
    "lr": (1e-3, 2e-2, "log"),
    "ema": [0.99, 0.999, 0.9995],
    "hidden": [64, 128, 192, 256],
    "layers": [3, 4, 5, 6],
    "features": [0, 1, 2, 3, 4, 5],
    "frequencies": [1, 2, 3, 4],
    "times": ["logit", "uniform"],
    "times_mean": (-1.0, 0.5),
    "times_std": (0.6, 1.8),
    "equal_share": [0.25, 0.5, 0.75],
    "start_share": (0.0, 0.5),
    "end_share": (0.0, 0.5),
    "power": [0.0, 0.5, 1.0],
    "derivative": ["exact", "gap"],
    "gap": (0.005, 0.3, "log"),
    "tangent": ["network", "conditional"],
    "velocity": ["pair", "batch"],
}
#: Settings that mean something only where another one has a value.
ONLY_WITH = {
    "times_mean": ("times", "logit"),
    "times_std": ("times", "logit"),
    "gap": ("derivative", "gap"),
}
#: The first candidates: the library's defaults, by which the cells are made comparable, and the trial that led to this search.
DEFAULTS = {
    "lr": 1e-3, "ema": 0.999, "hidden": 256, "layers": 4, "features": 0, "frequencies": 4,
    "times": "logit", "times_mean": 0.0, "times_std": 1.6, "equal_share": 0.5, "start_share": 0.1,
    "end_share": 0.1, "power": 0.0, "derivative": "exact", "tangent": "network", "velocity": "pair",
}  # fmt: skip
TRIED = DEFAULTS | {
    "lr": 8e-3, "hidden": 128, "features": 3, "frequencies": 2, "times_mean": -0.4, "times_std": 1.0,
    "start_share": 0.3, "end_share": 0.3, "derivative": "gap", "gap": 0.02, "tangent": "conditional",
    "velocity": "batch",
}  # fmt: skip
FIRST = (DEFAULTS, TRIED, TRIED | {"lr": 4e-3, "start_share": 0.1, "end_share": 0.1})
COLUMNS = "trial dataset path seed steps metric nfe value calls_per_step seconds settings".split()
CELLS = [(dataset, path) for path in zoo.PATH_NAMES for dataset in data.PLANE]


# ---------------------------------------------------------------- a candidate


def known(settings: dict) -> dict:
    """Settings without those that this library does not have, or that mean nothing beside the others."""
    fields = {field.name for field in dataclasses.fields(ifl.IntegralIdentity)}
    return {
        name: value
        for name, value in settings.items()
        if (name != "velocity" or name in fields)
        and (name not in ONLY_WITH or settings[ONLY_WITH[name][0]] == ONLY_WITH[name][1])
    }


def objective_of(settings: dict) -> ifl.IntegralIdentity:
    names = ("equal_share", "start_share", "end_share", "power", "tangent", "velocity")
    own = {name: settings[name] for name in names if name in settings}
    own["gap"] = settings.get("gap")
    logit = settings["times"] == "logit"
    own["time_density"] = (settings["times_mean"], settings["times_std"]) if logit else "uniform"
    return ifl.IntegralIdentity(**own)


def network_of(settings: dict) -> ifl.MLP:
    names = ("hidden", "layers", "features", "frequencies")
    return ifl.MLP(2, **{name: settings[name] for name in names})


def multiplications(net: ifl.MLP) -> int:
    """Of one call, for each example."""
    return sum(p.numel() for p in net.parameters() if p.ndim == 2)


def cost_of(settings: dict) -> float:
    """Network multiplications of a step over those of FlowMatching with an MLP of 256 x 4; the same on every machine.

    Infinite where the objective refuses the settings.
    """
    try:
        objective = objective_of(settings)
    except ValueError:
        return math.inf
    own = calls_per_step(objective) * multiplications(network_of(settings))
    return own / (calls_per_step(ifl.FlowMatching()) * multiplications(ifl.MLP(2, 256, 4)))


def train(
    settings: dict, dataset: str, path: str, seed: int, steps: int, draws: dict
) -> tuple[list[dict], dict]:
    """Rows of one run. draws: jumps, as text, -> draws."""
    torch.set_num_threads(1)
    objective = objective_of(settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ifl.FlowMap(network_of(settings), make_path(path))
    own = {"lr": settings["lr"], "ema": settings["ema"], "batch_size": 512}
    config = ifl.TrainConfig(steps, **own, seed=seed, device="cpu", progress=False)
    row = {"dataset": dataset, "path": path, "seed": seed, "steps": steps}
    row |= {"calls_per_step": calls_per_step(objective)}
    start, how = time.perf_counter(), {}
    try:
        run = finished(ifl.fit(model, objective, data.load(dataset), config))
    except FloatingPointError as error:
        how, found = {"diverged": str(error)}, {nfe: plane_quality.far(dataset) for nfe in draws}
    row |= {"seconds": time.perf_counter() - start}
    if not how:
        measured = partial(plane_quality.quality, run.model, dataset, SPLIT, seed)
        found = {nfe: measured(number, int(nfe)) for nfe, number in draws.items()}
    rows = [
        row | {"nfe": int(nfe), "metric": metric, "value": value}
        for nfe, values in found.items()
        for metric, value in values.items()
    ]
    return rows, how


def floor(dataset: str, seed: int, draws: dict) -> tuple[list[dict], dict]:
    """Rows of the floor on the draws of a training seed."""
    torch.set_num_threads(1)
    row = {"dataset": dataset, "seed": seed, "metric": "floor"}
    found = {
        number: plane_quality.floor(dataset, SPLIT, seed, number)["w2"]
        for number in set(draws.values())
    }
    return [row | {"nfe": int(nfe), "value": found[number]} for nfe, number in draws.items()], {}


# ---------------------------------------------------------------- what the table says


@dataclass(frozen=True)
class Candidate:
    number: int
    settings: dict
    cost: float

    @property
    def refused(self) -> bool:
        return self.cost > DEAREST

    def runs(self, rung: int) -> list[tuple[str, str, int, int]]:
        """(set, path, seed, steps) of each run of a rung. The defaults run on all cells at once."""
        if rung == 0 and self.number:
            k, n = self.number, len(data.PLANE)
            return [
                (data.PLANE[(k + 2 * i) % n], path, 0, SHORT)
                for i, path in enumerate(zoo.PATH_NAMES)
            ]
        if rung < 2:
            return [(*cell, 0, SHORT) for cell in CELLS]
        if rung == 2:
            return [(*cell, seed, LONG) for seed in range(SEEDS) for cell in CELLS]
        return [(*cell, 0, int(LONG * EQUAL_COST / self.cost)) for cell in CELLS]


class Progress:
    """What the rows of the table mean."""

    def __init__(self, table: pd.DataFrame) -> None:
        rows = table[table.metric == "cost"]
        self.candidates = [
            Candidate(int(number), json.loads(settings), cost)
            for number, settings, cost in zip(rows.trial, rows.settings, rows.value)
        ]
        floors = (
            table[table.metric == "floor"].set_index(["dataset", "seed", "nfe"]).value.to_dict()
        )
        #: (candidate, set, path, seed, steps) -> jumps -> W2 over the floor on the same draws
        self.done: dict[tuple, dict[int, float]] = {}
        for row in table[table.metric == "w2"].itertuples():
            key = (row.trial, row.dataset, row.path, row.seed, row.steps)
            ratio = row.value / floors[row.dataset, row.seed, row.nfe]
            self.done.setdefault(key, {})[int(row.nfe)] = ratio

    def missing(self, candidate: Candidate, rung: int) -> list[tuple[str, str, int, int]]:
        return [run for run in candidate.runs(rung) if (candidate.number, *run) not in self.done]

    def complete(self, rung: int) -> list[Candidate]:
        """Candidates that have done a rung, the best first."""
        found = [c for c in self.candidates if not c.refused and not self.missing(c, rung)]
        return sorted(found, key=lambda c: (self.score(c, rung), c.number))

    def begun(self, rung: int) -> list[Candidate]:
        """Candidates that have done a part of a rung, or of the first one nothing yet."""
        found = []
        for candidate in self.candidates:
            before = candidate.runs(rung - 1) if rung else []
            new = [run for run in candidate.runs(rung) if run not in before]
            done = [run for run in new if (candidate.number, *run) in self.done]
            if not candidate.refused and len(done) < len(new) and (done or not rung):
                found.append(candidate)
        return found

    def ratios(self, candidate: Candidate, runs: Iterable[tuple]) -> dict[tuple, dict[int, float]]:
        """Of some runs of a candidate: run -> jumps -> W2 over the floor."""
        return {run: self.done[(candidate.number, *run)] for run in runs}

    def score(self, candidate: Candidate, rung: int) -> float:
        """The score of a rung that is done. Of the first two it is for all cells, guessed from those that were run."""
        if rung >= 2:
            return score_of(self.ratios(candidate, candidate.runs(rung)))
        reference = self.candidates[0]
        runs = candidate.runs(0 if self.missing(candidate, 1) else 1)
        whole = score_of(self.ratios(reference, reference.runs(1)))
        own, its = (score_of(self.ratios(one, runs)) for one in (candidate, reference))
        return own / its * whole


def score_of(ratios: dict[tuple, dict[int, float]]) -> float:
    """Geometric mean of W2 over the floor over runs, and over jumps with ``WEIGHTS``."""
    logs = [
        weight * math.log(run[nfe]) for run in ratios.values() for nfe, weight in WEIGHTS.items()
    ]
    return math.exp(sum(logs) / len(ratios))


def ranking(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each candidate that was trained, of the highest rung that it has done, the best first.

    score: of that rung, with half its 95 % interval over seeds in per cent; first_look: after 1,000 steps; equal_cost: of the last
    rung; median_one, worst_one: over cells, at one jump; off_N: share of the samples of N jumps off the support; cost, calls: of a
    step. Then the settings.
    """
    progress, rows = Progress(table), []
    for candidate in progress.complete(0):
        rung = max(r for r in (0, 1, 2) if not progress.missing(candidate, r))
        runs = candidate.runs(rung)
        ratios = progress.ratios(candidate, runs)
        cells: dict[tuple, list[float]] = {}
        seeds: dict[int, dict] = {}
        for run, found in ratios.items():
            cells.setdefault(run[:2], []).append(found[1])
            seeds.setdefault(run[2], {})[run] = found
        one = [sum(values) / len(values) for values in cells.values()]
        row = {"trial": candidate.number, "rung": rung, "score": progress.score(candidate, rung)}
        row |= {"first_look": progress.score(candidate, 0)}
        logs = [math.log(score_of(part)) for part in seeds.values()]
        row |= {"interval_percent": 100 * interval(logs)}
        row |= {"median_one": float(np.median(one)), "worst_one": max(one)}
        own = table[(table.trial == candidate.number) & (table.steps == runs[0][3])]
        off = own[own.metric == "off_support"].groupby("nfe").value.mean()
        row |= {f"off_{nfe}": off[nfe] for nfe in WEIGHTS}
        row |= {"cost": candidate.cost, "calls": own.calls_per_step.iloc[0]}
        row |= {"ms_per_step": 1000 * (own.seconds / own.steps).median()}
        done = not progress.missing(candidate, 3)
        row |= {"equal_cost": progress.score(candidate, 3) if done else math.nan}
        rows.append(row | candidate.settings)
    found = pd.DataFrame(rows)
    return found.sort_values(["rung", "score"], ascending=[False, True]) if rows else found


# ---------------------------------------------------------------- what comes next


def ask(progress: Progress) -> dict:
    """Settings of the next candidate."""
    number = len(progress.candidates)
    if number < len(FIRST):
        return known(FIRST[number])
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {name: distribution(allowed) for name, allowed in SPACE.items()}
    sampler = optuna.samplers.TPESampler(seed=number, n_startup_trials=STARTUP)
    study = optuna.create_study(sampler=sampler)
    for candidate in progress.candidates:
        own = {"params": candidate.settings}
        own["distributions"] = {name: space[name] for name in candidate.settings}
        if candidate.refused:
            study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.PRUNED, **own))
        else:
            value = progress.score(candidate, 0)
            study.add_trial(optuna.trial.create_trial(value=value, **own))
    drawn = study.ask(space).params
    drawn |= {k: float(f"{v:.3g}") for k, v in drawn.items() if isinstance(SPACE[k], tuple)}
    return known(drawn)


def distribution(allowed):
    """Optuna's, of an entry of ``SPACE``."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if isinstance(allowed, list):
        return CategoricalDistribution(allowed)
    least, largest, *scale = allowed
    return FloatDistribution(least, largest, log=scale == ["log"])


def next_runs(progress: Progress, equal_cost: bool) -> tuple[Candidate, list] | None:
    """A candidate and the runs that it lacks; None if a new candidate is to be drawn."""
    last = 3 if equal_cost else 2
    for rung in range(last, -1, -1):
        for candidate in progress.begun(rung):
            return candidate, progress.missing(candidate, rung)
    for rung in range(last, 0, -1):
        below = progress.complete(rung - 1)
        allowed = FINALISTS if rung == 3 else len(below) // SHARE
        for candidate in below[:allowed]:
            if missing := progress.missing(candidate, rung):
                return candidate, missing
    return None


class Table:
    """search.csv and its manifest, read anew at each step: nothing else is remembered."""

    def __init__(self, out: Path, store: Store) -> None:
        self.out, self.store, self.file = out, store, out / "search.csv"

    def read(self) -> pd.DataFrame:
        if not self.file.is_file():
            return pd.DataFrame(columns=COLUMNS)
        return pd.read_csv(self.file, float_precision="round_trip")

    def add(self, rows: list[dict], runs: dict | None = None) -> None:
        before = read_manifest(self.file)["runs"] if self.file.is_file() else {}
        rows = self.read().to_dict("records") + rows
        whole = [{name: row.get(name) for name in COLUMNS} for row in rows]
        about = {"space": SPACE, "draws": DRAWS, "weights": WEIGHTS, "dearest": DEAREST}
        write_table(self.out, "search", whole, **about, runs=before | (runs or {}))

    def run(self, candidate: Candidate, missing: list, jobs: int, minutes: float) -> bool:
        """Make runs, with the floors that they need, and add them. False if time was up before the last."""
        draws = {str(nfe): number for nfe, number in DRAWS.items()}
        table, runs = self.read(), {}
        floors = table[table.metric == "floor"]
        there = set(zip(floors.dataset, floors.seed))
        for dataset, _, seed, _ in missing:
            if (dataset, seed) not in there:
                own = {"dataset": dataset, "seed": seed, "draws": draws}
                runs[f"floor/{dataset}/seed{seed}"] = (floor, own)
        for dataset, path, seed, steps in missing:
            name = f"trial{candidate.number}/{dataset}/{path}/steps{steps}/seed{seed}"
            own = {"dataset": dataset, "path": path, "seed": seed, "steps": steps, "draws": draws}
            runs[name] = (train, {"settings": candidate.settings, **own})
        found = self.store.get_all(runs, jobs, minutes)
        rows = [
            row | ({} if name.startswith("floor/") else {"trial": candidate.number})
            for name, run in found.items()
            for row in run.rows
        ]
        if rows:
            self.add(rows, {name: run.manifest for name, run in found.items()})
        return len(found) == len(runs)


def main(arguments=None) -> None:
    options = command_line(__doc__, candidates=64, jobs=1, minutes=0)
    options.add_argument("--equal-cost", action="store_true", help="of the best three")
    given = options.parse_args(arguments)
    table, start = Table(given.out, Store(given.runs / "search")), time.monotonic()

    def minutes_left() -> float:
        return given.minutes - (time.monotonic() - start) / 60 if given.minutes else 0.0

    while minutes_left() >= 0:
        progress = Progress(table.read())
        if work := next_runs(progress, given.equal_cost):
            if not table.run(*work, given.jobs, minutes_left()):
                break
            continue
        if len(progress.candidates) >= given.candidates:
            break
        settings = ask(progress)
        row = {"trial": len(progress.candidates), "metric": "cost", "value": cost_of(settings)}
        table.add([row | {"settings": json.dumps(settings)}])
    found = ranking(table.read())
    if len(found):
        print(found.drop(columns=list(SPACE), errors="ignore").round(3).head(20).to_string())


if __name__ == "__main__":
    main()
