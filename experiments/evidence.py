"""Evidence for claims: tables of results/reference, the places where contenders meet in them, and their comparison by training seed.

What is missing, or is not as it should be, is named: ``NoEvidence``. A comparison takes the cells and the seeds that are there, so that
more seeds in a table are taken up by themselves.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.common import REFERENCE
from experiments.rules import LEAST_SEEDS
from iflow_lib import data, zoo

OURS, RECIPE, VELOCITY = "IntegralIdentity", "X0Regression", "FlowMatching"
IMAGES, EIGHT = "fashion_mnist", "eight_gaussians"
#: Readings of the recipe's anchor, in words.
READINGS = {
    "none": "no anchor",
    "shared": "one running estimate",
    "per_example": "a stored estimate of each example",
    "ground_truth": "each example itself",
    "self": "its own estimate",
}
SEVERAL = (2, 4, 8)
#: Columns of a tidy table that a comparison needs.
TIDY = (
    "dataset",
    "path",
    "objective",
    "anchor",
    "seed",
    "step",
    "nfe",
    "method",
    "metric",
    "value",
)


class NoEvidence(Exception):
    """A table, or a part of one, is not as a rule needs it. The message names it."""


def exists(name: str) -> bool:
    """Whether results/reference has a table."""
    return (REFERENCE / name).is_file()


def table(name: str, *columns: str) -> pd.DataFrame:
    """A table of results/reference.

    Raises:
        NoEvidence: It or its manifest is missing, it lacks a column or has no rows, or the manifest is that of another table.
    """
    file = REFERENCE / name
    beside = file.with_suffix(".manifest.json")
    if not file.is_file():
        raise NoEvidence(f"{name} is missing")
    if not beside.is_file():
        raise NoEvidence(f"{beside.name} is missing beside {name}")
    found, unknown = read(file, file.stat().st_mtime_ns, beside.stat().st_mtime_ns)
    missing = [column for column in columns if column not in found]
    if missing:
        raise NoEvidence(f"{name} has no column {missing[0]!r}")
    if found.empty:
        raise NoEvidence(f"{name} has no rows")
    if unknown:
        raise NoEvidence(
            f"{name} has the run {unknown}, which the manifest beside it does not know"
        )
    return found


@lru_cache(maxsize=64)
def read(file: Path, *_changed: int) -> tuple[pd.DataFrame, str | None]:
    """A table, and the first of its runs that the manifest beside it does not name."""
    manifest = json.loads(file.with_suffix(".manifest.json").read_text(encoding="utf-8"))
    listed = [manifest[name] for name in ("runs", "systems") if name in manifest]
    found = pd.read_csv(file)
    return found, unknown_run(found, listed[0]) if listed else None


def unknown_run(found: pd.DataFrame, known: Iterable[str]) -> str | None:
    """The first run of a table that its manifest does not name: then the two were not written together."""
    known = set(known)
    for run in found.run_id.unique() if "run_id" in found else ():
        starts = itertools.accumulate(str(run).split("/"), "{}/{}".format)
        if not str(run).endswith("/floor") and known.isdisjoint(starts):
            return str(run)
    return None


def matching(rows: pd.DataFrame, where: dict) -> pd.DataFrame:
    """The rows whose columns have these values."""
    right = np.ones(len(rows), dtype=bool)
    for column, value in where.items():
        right &= rows[column].to_numpy() == value
    return rows[right]


def compared(
    mine: pd.Series, theirs: pd.Series | None = None, *, difference=False, cells=()
) -> tuple[dict, str]:
    """A value for each training seed: the mean over cells of mine / theirs, or of mine - theirs, or of mine. And a note on the cells.

    Both sides of a pair have the same cell and seed. Cells are weighed alike; of ratios the mean is geometric. A seed that was not run
    in every cell is left out.

    Args:
        mine: Indexed by cell and seed.
        theirs: The same; where it lacks an index, such as the path, one value is compared with many. So may mine.
        difference: Subtract in place of dividing.
        cells: (data set, path) that must be there.

    Raises:
        NoEvidence: A cell is not there, or no cell and seed is in both.
    """
    both = mine.rename("value").reset_index()
    if theirs is not None:
        other = theirs.rename("other").reset_index()
        both = both.merge(other, on=[name for name in theirs.index.names if name in both])
        one, two = both.pop("value"), both.pop("other")
        both["value"] = (one - two if difference else one / two).fillna(np.inf)
    names = [name for name in both if name not in ("seed", "value")]
    wide = both.pivot_table(index=names, columns="seed", values="value")
    there = set(both[["dataset", "path"]].itertuples(index=False, name=None)) if cells else set()
    missing = [cell for cell in cells if cell not in there]
    if missing or wide.empty:
        raise NoEvidence(
            f"not both sides have {' on '.join(missing[0]) if missing else 'a common run'}"
        )
    whole = wide.dropna(axis=1)
    values = whole.mean() if difference else geometric_mean(whole)
    middle, left_out = wide.mean(axis=1), [str(seed) for seed in wide if seed not in whole]
    notes = [f"{len(wide)} cells, {number(middle.min())} to {number(middle.max())}"] * (
        len(wide) > 1
    )
    notes += [f"not in every cell: seed {', '.join(left_out)}"] * bool(left_out)
    return values.to_dict(), "; ".join(notes)


def geometric_mean(values: pd.DataFrame | pd.Series):
    """The mean of ratios; of each column, or of a series."""
    with np.errstate(divide="ignore"):
        return np.exp(np.log(values).mean())


def number(value: float) -> str:
    """Three digits."""
    return (
        "over a million"
        if value > 1e6
        else f"{value:,.0f}"
        if abs(value) >= 100
        else f"{value:.3g}"
    )


# ---------------------------------------------------------------- places and contenders

PLANE, SMALL, QUICK = "plane.csv", "image_methods.csv", "quick.csv"
ALL_PLANE = tuple(itertools.product(data.PLANE, zoo.PATH_NAMES))
ALL_IMAGES = tuple((IMAGES, path) for path in zoo.PATH_NAMES)
ONE = ((EIGHT, "rectified"),)
OFF, RMS = "off_support", "rms_to_exact"
IN_WORDS = {
    "w2": "W2",
    OFF: "share off the support",
    "frechet": "Frechet distance",
    "frechet_second": "Frechet distance by the second classifier",
}


@dataclass(frozen=True)
class Place:
    """Where contenders are compared.

    Args:
        said: In words.
        files: Tables of results/reference; the first that is there counts.
        cells: (data set, path) that must be there.
        metrics: The first, and those of the others that the table has.
        where: What its rows are.
        keep: Columns that name a cell: with "step" those compared have had as many steps.
    """

    said: str
    files: tuple[str, ...]
    cells: tuple
    metrics: tuple[str, ...]
    where: dict = field(default_factory=dict, hash=False)
    keep: tuple[str, ...] = ("dataset", "path", "step")

    @property
    def file(self) -> str:
        return next((name for name in self.files[:-1] if exists(name)), self.files[-1])

    def rows(self) -> pd.DataFrame:
        """Rows of the table that belong here, without floors."""
        table(self.file, *TIDY)
        return rows_of(self, stamp(self.file))

    def there(self) -> list[str]:
        """The metrics that can be compared."""
        found = set(self.rows().metric)
        return [name for name in self.metrics if name in found or name == self.metrics[0]]

    def get(self, metric: str, objective: str, nfe: int | None, **where) -> pd.Series:
        """Values by cell and training seed, means over sampling seeds. What is not finite is infinite.

        Args:
            metric: What was measured.
            objective: How the models were trained.
            nfe: Network calls; None: the most that there are.
            where: Other columns and what they must be; without ``anchor`` it is "none".

        Raises:
            NoEvidence: There are no such rows.
        """
        where = {"objective": objective, "metric": metric, "anchor": "none", **where}
        table(self.file, *TIDY)
        return values_of(self, stamp(self.file), nfe, tuple(where.items()))


def stamp(name: str) -> tuple[Path, int]:
    """What changes when a table does: so long what was selected from it is remembered."""
    return REFERENCE / name, (REFERENCE / name).stat().st_mtime_ns


@lru_cache(maxsize=64)
def rows_of(place: Place, _stamp: tuple) -> pd.DataFrame:
    rows = matching(table(place.file), place.where)
    return rows[rows.method != "floor"]


@lru_cache(maxsize=1024)
def values_of(place: Place, _stamp: tuple, nfe: int | None, where: tuple) -> pd.Series:
    rows = matching(rows_of(place, _stamp), dict(where))
    rows = rows[rows.nfe == (rows.nfe.max() if nfe is None else nfe)]
    if rows.empty:
        named = ", ".join(str(value) for _, value in where)
        raise NoEvidence(
            f"{place.file} has no rows of {named}" + (f" at {calls(nfe)}" if nfe else "")
        )
    return rows.assign(value=rows.value.fillna(np.inf)).groupby([*place.keep, "seed"]).value.mean()


def calls(nfe: float) -> str:
    return "one call" if nfe == 1 else f"{nfe:.0f} calls"


#: All sets of the table count; those that the library's tables are made of must be there.
IN_PLANE = Place("the plane", (PLANE,), ALL_PLANE, ("w2", OFF), {"step": zoo.PLANE_STEPS})
BRIEF_PLANE = Place(
    f"the plane, {zoo.ANCHOR_STEPS:,} steps",
    (PLANE,),
    ALL_PLANE,
    ("w2",),
    {"step": zoo.ANCHOR_STEPS},
)
ON_EIGHT = Place(
    f"eight Gaussians, rectified, {zoo.PLANE_STEPS:,} steps",
    (PLANE,),
    ONE,
    ("w2",),
    {"step": zoo.PLANE_STEPS, "dataset": EIGHT, "path": "rectified"},
)
FRECHETS = ("frechet", "frechet_second")
BRIEF_IMAGES = Place(
    "Fashion-MNIST, trained briefly", (SMALL,), ALL_IMAGES, FRECHETS, {"dataset": IMAGES}
)
#: Models as long trained as those that ship: of several seeds, once these were run. Jumps have a teacher and a last stage that matches
#: them with the data (docs/findings.md), so steps differ.
IMAGES_LONG = Place(
    "Fashion-MNIST, trained long (jumps taught, then matched)",
    ("image_models.csv", "images.csv"),
    ALL_IMAGES,
    FRECHETS,
    {"dataset": IMAGES},
    ("dataset", "path"),
)


@dataclass(frozen=True)
class Contender:
    """Who is compared. get: (place, metric, paths) -> values by cell and seed, and which of several it is, or nothing."""

    said: str
    get: Callable[[Place, str, tuple], tuple[pd.Series, str]]


def on(paths: tuple, values: pd.Series) -> pd.Series:
    """The values on some paths."""
    return values[values.index.get_level_values("path").isin(paths)]


def jumps(*counts: int, anchor: str = "none") -> Contender:
    """The integral identity by jumps, the mean of several numbers of them that were measured."""

    def get(place: Place, metric: str, paths: tuple) -> tuple[pd.Series, str]:
        rows = place.rows()
        there = [n for n in counts if n in set(rows[rows.objective == OURS].nfe)] or counts[:1]
        found = [place.get(metric, OURS, n, method="map", anchor=anchor) for n in there]
        return on(paths, pd.concat(found, axis=1).dropna().mean(axis=1)), ""

    many = f"{', '.join(map(str, counts[:-1]))} and {counts[-1]} jumps (mean)"
    said = {1: "one jump"}.get(counts[0], f"{counts[0]} jumps") if len(counts) == 1 else many
    return Contender(said + " with its own estimate" * (anchor == "self"), get)


def velocity(place: Place, metric: str, nfe: int | None) -> pd.Series:
    """The velocity model by Euler steps.

    Where it was trained for several numbers of steps: for the most that three seeds had, or else for that of the most seeds.
    """
    if "step" in place.keep:
        return place.get(metric, VELOCITY, nfe, method="euler")
    rows, found = place.rows(), []
    for path, part in rows[rows.objective == VELOCITY].groupby("path"):
        seeds = part.groupby("step").seed.nunique()
        enough = seeds[seeds >= LEAST_SEEDS]
        step = enough.index.max() if len(enough) else seeds.idxmax()
        found.append(place.get(metric, VELOCITY, nfe, method="euler", path=path, step=step))
    if not found:
        raise NoEvidence(f"{place.file} has no rows of {VELOCITY}")
    return pd.concat(found)


def euler(said: str, nfe: int | None, path: str | None = None) -> Contender:
    """A velocity model by Euler steps, None: the most; on each path, or on one that all are compared with."""

    def get(place: Place, metric: str, paths: tuple) -> tuple[pd.Series, str]:
        found = on(paths if path is None else (path,), velocity(place, metric, nfe))
        rows = place.rows()
        count = nfe or int(rows[rows.method == "euler"].nfe.max())
        return (found if path is None else found.droplevel("path")), f"{count} steps" * (
            nfe is None
        )

    return Contender(said, get)


def few_steps(place: Place, metric: str, paths: tuple) -> tuple[pd.Series, str]:
    """The best of at most four Euler steps."""
    rows = place.rows()
    counts = sorted(rows[(rows.method == "euler") & (rows.nfe <= 4)].nfe.unique())
    found = [velocity(place, metric, int(n)) for n in counts]
    if not found:
        raise NoEvidence(f"{place.file} has no Euler steps")
    return on(paths, pd.concat(found, axis=1).dropna().min(axis=1)), ""


def reading(place: Place, metric: str, rule: str, nfe: int | None = 1) -> pd.Series:
    """The recipe in a reading of its anchor. Without an anchor nothing is refined: always one call."""
    return place.get(metric, RECIPE, 1 if rule == "none" else nfe, anchor=rule)


def recipe(rule: str, nfe: int | None = 1) -> Contender:
    said = f"the recipe with {READINGS[rule]}, {'most calls' if nfe is None else calls(nfe)}"
    return Contender(
        said, lambda place, metric, paths: (on(paths, reading(place, metric, rule, nfe)), "")
    )


def best_recipe(nfe: int = 1, chosen_at: int = 1) -> Contender:
    """The recipe in the reading that comes nearest to the data, in the mean over cells and seeds: in favour of the recipe."""

    def get(place: Place, metric: str, paths: tuple) -> tuple[pd.Series, str]:
        tried = {rule: on(paths, reading(place, metric, rule, chosen_at)) for rule in READINGS}
        rule = min(tried, key=lambda rule: np.log(tried[rule]).mean())
        return on(paths, reading(place, metric, rule, nfe)), rule.replace("_", " ")

    said = f"the recipe with the anchor that is best at {calls(chosen_at)}, {calls(nfe)}"
    return Contender(said, get)


def get_consistency(place: Place, metric: str, paths: tuple) -> tuple[pd.Series, str]:
    return on(paths, place.get(metric, "ConsistencyTraining", 1)), ""


ONE_JUMP, EIGHT_JUMPS, SEVERAL_JUMPS = jumps(1), jumps(8), jumps(*SEVERAL)
MANY_STEPS = euler("the most Euler steps, rectified", None, "rectified")
ONE_STEP_RF = euler("one Euler step of 1-Rectified Flow", 1, "rectified")
ONE_STEP_PFGM = euler("one Euler step of PFGM++", 1)
FEW_STEPS = Contender("the best of one to four Euler steps", few_steps)
CONSISTENCY = Contender("consistency training", get_consistency)
RECIPE_ONCE = best_recipe()
