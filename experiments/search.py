"""A search for settings that does not fool itself: ``python -m experiments.search --minutes 40``

The protocol, written before it, is docs/protocol.md: what is chosen, on which data, by which score, and what may be looked at
afterwards. What is searched, ``--of plane`` or ``--of images``, stands in searches.py. Candidates are drawn by Optuna's TPE. Each
is trained briefly on three cells (a set and a path), one on each path, other ones for the next: in the plane for 1,000 steps on
three of 15, on images for 400 on three of six. The best quarter goes on to all cells; the best quarter of those to 4,000 steps,
on images to 1,500, with three seeds; with ``--equal-cost`` the best three of those to as many steps as cost the same. A candidate
whose step costs more than twice FlowMatching's is refused before it is trained.

Writes search.csv, of images image_search.csv, and its manifest into --out (results/reference/bench). The table is all that the
search remembers: Optuna's study is made of it anew for each candidate. Stopped at any moment, the next call goes on; finished runs
that the table does not have yet come from --runs. Its rows are

    metric "cost": a candidate, with its settings; network multiplications of a step over those of FlowMatching
    metric "floor", in the plane: W2 of fresh points to the draws of a training seed
    metric "w2", "off_support", "off_modes", or "frechet_pca", "sliced_w2": a run, at ``nfe`` jumps on ``sample``'s own grid
"""

import json
import math
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.common import command_line
from experiments.searches import DEAREST, PLANE, SEARCHES, WEIGHTS, Candidate, Search, known
from experiments.store import Store, read_manifest, write_table
from iflow_lib.metrics import interval

#: One in so many goes on to the next rung; so many are compared at equal cost; so many are drawn before TPE learns.
SHARE, FINALISTS, STARTUP = 4, 3, 12
COLUMNS = "trial dataset path seed steps metric nfe value calls_per_step seconds settings".split()


# ---------------------------------------------------------------- what the table says


class Progress:
    """What the rows of the table mean."""

    def __init__(self, table: pd.DataFrame, search: Search = PLANE) -> None:
        self.search, rows = search, table[table.metric == "cost"]
        self.candidates = [
            Candidate(int(number), json.loads(settings), cost)
            for number, settings, cost in zip(rows.trial, rows.settings, rows.value)
        ]
        #: (candidate, set, path, seed, steps) -> jumps -> the distance over that which it is compared with
        self.done: dict[tuple, dict[int, float]] = {}
        against = self.references(table)
        for row in table[table.metric == search.metric].itertuples():
            key = (row.trial, row.dataset, row.path, row.seed, row.steps)
            ratio = row.value / against[self.reference_of(row)]
            self.done.setdefault(key, {})[int(row.nfe)] = ratio

    def references(self, table: pd.DataFrame) -> dict[tuple, float]:
        """What distances are divided by: floors, or those of the defaults before the search."""
        if self.search.floor:
            rows = table[table.metric == "floor"]
        else:
            rows = table[table.metric.eq(self.search.metric) & table.trial.eq(0)]
        found = {self.reference_of(row): row.value for row in rows.itertuples()}
        if not all(math.isfinite(value) and value > 0 for value in found.values()):
            raise ValueError(
                f"{self.search.name}.csv compares with distances that are not finite and positive: candidate 0 must not diverge"
            )
        return found

    def reference_of(self, row) -> tuple:
        if self.search.floor:
            return row.dataset, row.seed, row.nfe
        return row.dataset, row.path, row.seed, self.search.budget(row.steps), row.nfe

    def runs(self, candidate: Candidate, rung: int) -> list[tuple[str, str, int, int]]:
        return self.search.runs(candidate, rung)

    def missing(self, candidate: Candidate, rung: int) -> list[tuple[str, str, int, int]]:
        return [
            run for run in self.runs(candidate, rung) if (candidate.number, *run) not in self.done
        ]

    def complete(self, rung: int) -> list[Candidate]:
        """Candidates that have done a rung, the best first."""
        found = [c for c in self.candidates if not c.refused and not self.missing(c, rung)]
        return sorted(found, key=lambda c: (self.score(c, rung), c.number))

    def begun(self, rung: int) -> list[Candidate]:
        """Candidates that have done a part of a rung, or of the first one nothing yet."""
        found = []
        for candidate in self.candidates:
            before = self.runs(candidate, rung - 1) if rung else []
            new = [run for run in self.runs(candidate, rung) if run not in before]
            done = [run for run in new if (candidate.number, *run) in self.done]
            if not candidate.refused and len(done) < len(new) and (done or not rung):
                found.append(candidate)
        return found

    def ratios(self, candidate: Candidate, runs: Iterable[tuple]) -> dict[tuple, dict[int, float]]:
        """Of some runs of a candidate: run -> jumps -> ratio."""
        return {run: self.done[(candidate.number, *run)] for run in runs}

    def score(self, candidate: Candidate, rung: int) -> float:
        """The score of a rung that is done. Of the first two it is for all cells, guessed from those that were run."""
        if rung >= 2:
            return score_of(self.ratios(candidate, self.runs(candidate, rung)))
        reference = self.candidates[0]
        runs = self.runs(candidate, 0 if self.missing(candidate, 1) else 1)
        whole = score_of(self.ratios(reference, self.runs(reference, 1)))
        own, its = (score_of(self.ratios(one, runs)) for one in (candidate, reference))
        return own / its * whole


def score_of(ratios: dict[tuple, dict[int, float]]) -> float:
    """Geometric mean of ratios over runs, and over jumps with ``WEIGHTS``."""
    logs = [
        weight * math.log(run[nfe]) for run in ratios.values() for nfe, weight in WEIGHTS.items()
    ]
    return math.exp(sum(logs) / len(ratios))


def ranking(table: pd.DataFrame, search: Search = PLANE) -> pd.DataFrame:
    """A row for each candidate that was trained, of the highest rung that it has done, the best first.

    score: of that rung, with half its 95 % interval over seeds in per cent; behind_percent: by how much it is above that of the first,
    paired over seeds, with half its interval; first_look: of the first rung; equal_cost: of the last one; median_one, worst_one: over
    cells, at one jump; off_N and modes_N, in the plane: share of the samples of N jumps off the support, and off the modes of eight
    Gaussians; cost, calls: of a step. Then the settings.
    """
    progress, rows, by_seed = Progress(table, search), [], {}
    for candidate in progress.complete(0):
        rung = max(r for r in (0, 1, 2) if not progress.missing(candidate, r))
        runs = search.runs(candidate, rung)
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
        by_seed[candidate.number] = np.array(logs)
        row |= {"interval_percent": 100 * interval(logs)}
        row |= {"median_one": float(np.median(one)), "worst_one": max(one)}
        own = table[(table.trial == candidate.number) & (table.steps == runs[0][3])]
        for metric, short in (("off_support", "off"), ("off_modes", "modes")):
            off = own[own.metric == metric].groupby("nfe").value.mean()
            row |= {f"{short}_{nfe}": off[nfe] for nfe in WEIGHTS if nfe in off}
        row |= {"cost": candidate.cost, "calls": own.calls_per_step.iloc[0]}
        row |= {"ms_per_step": 1000 * (own.seconds / own.steps).median()}
        done = not progress.missing(candidate, 3)
        row |= {"equal_cost": progress.score(candidate, 3) if done else math.nan}
        rows.append(row | candidate.settings)
    found = pd.DataFrame(rows)
    if not rows:
        return found
    found = found.sort_values(["rung", "score"], ascending=[False, True])
    apart = [
        by_seed[number] - by_seed[found.trial.iloc[0]] for number in found.trial[found.rung == 2]
    ]
    found.loc[found.rung == 2, "behind_percent"] = [100 * one.mean() for one in apart]
    found.loc[found.rung == 2, "behind_interval"] = [100 * interval(one) for one in apart]
    return found


# ---------------------------------------------------------------- what comes next


def ask(progress: Progress) -> dict:
    """Settings of the next candidate."""
    search, number = progress.search, len(progress.candidates)
    if number < len(search.first):
        return known(search.first[number])
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {name: distribution(allowed) for name, allowed in search.space.items()}
    sampler = optuna.samplers.TPESampler(seed=number, n_startup_trials=STARTUP)
    study = optuna.create_study(sampler=sampler)
    for candidate in progress.candidates:
        if not candidate.refused and progress.missing(candidate, 0):
            continue  # of the first twelve, which are drawn before any is trained
        own = {"params": candidate.settings}
        own["distributions"] = {name: space[name] for name in candidate.settings}
        if candidate.refused:
            study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.PRUNED, **own))
        else:
            value = progress.score(candidate, 0)
            study.add_trial(optuna.trial.create_trial(value=value, **own))
    drawn = study.ask(space).params
    drawn |= {k: float(f"{v:.3g}") for k, v in drawn.items() if isinstance(search.space[k], tuple)}
    return known(drawn)


def distribution(allowed):
    """Optuna's, of an entry of a space."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if isinstance(allowed, list):
        return CategoricalDistribution(allowed)
    least, largest, *scale = allowed
    return FloatDistribution(least, largest, log=scale == ["log"])


def next_runs(progress: Progress, last: int) -> list[tuple[Candidate, tuple]]:
    """(candidate, run) of all that can be run now, up to the rung ``last`` and the highest first; none if one is to be drawn."""
    for rung in range(last, -1, -1):
        if found := lacking(progress, progress.begun(rung), rung):
            return found
    for rung in range(last, 0, -1):
        below = progress.complete(rung - 1)
        allowed = FINALISTS if rung == 3 else len(below) // SHARE
        if rung == 1 and len(below) < STARTUP:
            continue  # the best of few is not good
        if found := lacking(progress, below[:allowed], rung):
            first = progress.candidates[0]
            if progress.search.floor:
                return found
            return lacking(progress, [first], min(rung, 2)) or found  # they are compared with these
    return []


def lacking(
    progress: Progress, candidates: list[Candidate], rung: int
) -> list[tuple[Candidate, tuple]]:
    """(candidate, run) of a rung that is not done."""
    return [(one, run) for one in candidates for run in progress.missing(one, rung)]


class Table:
    """The table of a search and its manifest, read anew at each step: nothing else is remembered."""

    def __init__(self, search: Search, out: Path, runs: Path) -> None:
        self.search, self.out, self.store = search, out, Store(runs / search.name)
        self.file = out / f"{search.name}.csv"

    def read(self) -> pd.DataFrame:
        if not self.file.is_file():
            return pd.DataFrame(columns=COLUMNS)
        return pd.read_csv(self.file, float_precision="round_trip")

    def add(self, rows: list[dict], runs: dict | None = None) -> None:
        before = read_manifest(self.file)["runs"] if self.file.is_file() else {}
        rows = self.read().to_dict("records") + rows
        whole = [{name: row.get(name) for name in COLUMNS} for row in rows]
        about = {"space": self.search.space, "draws": self.search.draws}
        about |= {"weights": WEIGHTS, "dearest": DEAREST}
        write_table(self.out, self.search.name, whole, **about, runs=before | (runs or {}))

    def draw(self, least: int) -> None:
        """Add a candidate; so many more that there are ``least``, which are drawn at random."""
        while True:
            progress = Progress(self.read(), self.search)
            self.propose(progress, ask(progress))
            if len(progress.candidates) + 1 >= least:
                return

    def propose(self, progress: Progress, settings: dict) -> None:
        """Add a candidate with these settings."""
        row = {"trial": len(progress.candidates), "metric": "cost"}
        row |= {"value": self.search.cost_of(settings), "settings": json.dumps(settings)}
        self.add([row])

    def run(self, work: list[tuple[Candidate, tuple]], jobs: int, minutes: float) -> bool:
        """Make runs, with the floors that they need, and add them. False if time was up before the last."""
        draws = {str(nfe): number for nfe, number in self.search.draws.items()}
        table, runs, of = self.read(), {}, {}
        floors = table[table.metric == "floor"]
        there = set(zip(floors.dataset, floors.seed))
        for _, (dataset, _, seed, _) in work:
            if self.search.floor and (dataset, seed) not in there:
                own = {"dataset": dataset, "seed": seed, "draws": draws}
                runs[f"floor/{dataset}/seed{seed}"] = (self.search.floor, own)
        for candidate, (dataset, path, seed, steps) in work:
            name = f"trial{candidate.number}/{dataset}/{path}/steps{steps}/seed{seed}"
            own = {"dataset": dataset, "path": path, "seed": seed, "steps": steps, "draws": draws}
            runs[name] = (self.search.train, {"settings": candidate.settings, **own})
            of[name] = {"trial": candidate.number}
        found = self.store.get_all(runs, jobs, minutes)
        rows = [row | of.get(name, {}) for name, run in found.items() for row in run.rows]
        if rows:
            self.add(rows, {name: run.manifest for name, run in found.items()})
        return len(found) == len(runs)


def main(arguments=None) -> None:
    options = command_line(__doc__, jobs=1, minutes=0)
    options.add_argument("--of", choices=SEARCHES, default="plane", help="what is searched")
    sizes = " and ".join(f"{one.candidates} of {name}" for name, one in SEARCHES.items())
    options.add_argument("--candidates", type=int, help=f"default {sizes}")
    options.add_argument("--equal-cost", action="store_true", help="of the best three")
    options.add_argument("--rungs", type=int, choices=(1, 2, 3), default=3, help="to go up to now")
    options.add_argument(
        "--propose",
        type=json.loads,
        metavar="JSON",
        help="one candidate more: settings that differ from candidate 1's",
    )
    given = options.parse_args(arguments)
    search = SEARCHES[given.of]
    wanted = search.candidates if given.candidates is None else given.candidates
    table, start = Table(search, given.out, given.runs), time.monotonic()
    if given.propose:
        if unknown := set(given.propose) - set(search.space):
            options.error(
                f"unknown setting {unknown.pop()!r}: expected some of {', '.join(search.space)}"
            )
        progress = Progress(table.read(), search)
        if len(progress.candidates) < STARTUP:
            options.error(
                f"the first {STARTUP} candidates come by themselves: propose one after them"
            )
        table.propose(progress, known(search.first[1] | given.propose))
        wanted = max(wanted, len(progress.candidates) + 1)

    def minutes_left() -> float:
        return given.minutes - (time.monotonic() - start) / 60 if given.minutes else 0.0

    while minutes_left() >= 0:
        progress = Progress(table.read(), search)
        if work := next_runs(progress, 3 if given.equal_cost else given.rungs - 1):
            if not table.run(work, given.jobs, minutes_left()):
                break
            continue
        if len(progress.candidates) >= wanted:
            break
        table.draw(min(wanted, STARTUP))
    found = ranking(table.read(), search)
    if len(found):
        print(found.drop(columns=list(search.space), errors="ignore").round(3).head(20).to_string())


if __name__ == "__main__":
    main()
