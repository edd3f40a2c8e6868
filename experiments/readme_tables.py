"""The tables in README.md and docs/, in markdown, from the committed results: ``TABLES``.

Each function takes a table of results/reference and returns the text between its two marks in a page.
``python -m experiments.make_reference readme`` puts them there.
"""

import itertools
import json
import math
import os
from functools import partial
from typing import Any

import pandas as pd

import iflow_lib as ifl
from experiments.common import (
    CHECKPOINTS,
    IMAGE_MODELS,
    REFERENCE,
    ROOT,
    calls_per_step,
    markdown,
    over_floor,
)
from experiments.gpu_table import demands
from experiments.search import ranking
from experiments.searches import IMAGES, PLANE, Search
from iflow_lib import data, plotting, zoo
from iflow_lib.metrics import interval

SETS, PATH_LABELS = plotting.SETS, plotting.PATH_LABELS
ALL_PLANE = (*data.PLANE, *data.PLANE_HELD_OUT)
HELD_OUT = {"rings": "rings", "twenty_five_gaussians": "25 Gaussians", "s_curve": "S curve"}
#: jumps -> Euler steps of the velocity model on the same path that they should match
WANTED = {1: 8, 2: 16, 4: 32}
METHODS = {
    "FlowMatching": "velocity, Euler",
    "ConsistencyTraining": "consistency training",
    "IntegralAdditivity": "integral additivity",
    "IntegralIdentity": "integral identity",
    "X0Regression": "recipe",
}


# ---- cells


def spread(values: pd.Series, digits: int = 2) -> str:
    """Mean, plus or minus half the range."""
    return f"{values.mean():.{digits}f} ± {(values.max() - values.min()) / 2:.{digits}f}"


def calls(nfe: float) -> str:
    return f"{nfe:.0f} call{'s' * bool(nfe > 1)}"


def ratio(row) -> str:
    """The ratio of a time, and its interval."""
    return "1" if row.low == row.high == 1 else f"{row.ratio:.2f} ({row.low:.2f} to {row.high:.2f})"


# ---- quality


def plane_table(table: pd.DataFrame) -> str:
    """W2 over its floor, seeds; and the median over the sets of their means."""
    lines = [
        [name, nfe, *map(spread, cells), f"{_median_of_means(cells):.2f}"]
        for name, nfe, cells in _plane_lines(over_floor(table))
    ]
    return markdown(["W2 / floor", "network calls", *SETS.values(), "median"], lines)


def off_support_table(table: pd.DataFrame) -> str:
    """Share of samples off the support in per cent, and their distance from the exact ends where these are known; "" of a table
    without."""
    off, exact = (table[table.metric == name] for name in ("off_support", "rms_to_exact"))
    if off.empty:
        return ""
    off = off.assign(value=100 * off.value)
    ends = {(name, nfe): cells for name, nfe, cells in _plane_lines(exact)}
    known = list(SETS).index("eight_gaussians")
    lines = [
        [name, nfe, *(spread(cell, 1) for cell in cells), spread(ends[name, nfe][known], 3)]
        for name, nfe, cells in _plane_lines(off)
    ]
    real = off[off.method == "floor"]
    cells = [spread(real[real.dataset == dataset].value, 1) for dataset in SETS]
    lines.append(["floor: data", "", *cells, "0"])
    header = ["off the support, %", "network calls", *SETS.values()]
    return markdown([*header, "to the exact ends, eight Gaussians"], lines)


def _median_of_means(cells: list[pd.Series]) -> float:
    """Median over sets of the means over seeds."""
    return pd.Series([cell.mean() for cell in cells]).median()


def _plane_lines(rows: pd.DataFrame) -> list[tuple[str, int, list[pd.Series]]]:
    """Lines of a table of the methods in the plane: name, network calls, and the values of the seeds for each set."""
    rows = rows[(rows.step == zoo.PLANE_STEPS) & (rows.objective != "X0Regression")]

    def line(name: str, part: pd.DataFrame, nfe: int) -> tuple[str, int, list[pd.Series]]:
        part = part[part.nfe == nfe]
        return name, nfe, [part[part.dataset == dataset].value for dataset in SETS]

    euler = rows[(rows.path == "rectified") & (rows.method == "euler")]
    lines = [line("Rectified Flow, Euler", euler, nfe) for nfe in (1, 4, 16, 100)]
    names = METHODS | {"IntegralIdentity": "Integration Flow"}
    for objective in ("IntegralIdentity", "IntegralAdditivity", "ConsistencyTraining"):
        for path, shown in PATH_LABELS.items():
            part = rows[(rows.path == path) & (rows.objective == objective)]
            for nfe in (1, 2) if objective == "IntegralIdentity" else (1,):
                lines.append(line(f"{names[objective]}, {shown}", part, nfe))
    return lines


def images_table(table: pd.DataFrame) -> str:
    """In bold where jumps reach what Euler steps of the same path have to show."""
    digits = {"frechet": 2, "kernel": 3, "precision": 2, "recall": 2}
    table = table[table.dataset == "fashion_mnist"]
    value = table.pivot_table(index=["path", "method", "nfe"], columns="metric", values="value")
    floor = table[table.method == "floor"].set_index("metric").value
    lines = []
    for path, shown in PATH_LABELS.items():
        for method, name in (("euler", "velocity, Euler"), ("map", "Integration Flow")):
            for nfe, row in value.loc[path, method].iterrows():
                cells = [f"{row[metric]:.{n}f}" for metric, n in digits.items()]
                wanted = WANTED.get(nfe) if method == "map" else None
                if wanted and row.frechet <= value.loc[path, "euler", wanted].frechet:
                    cells[0] = f"**{cells[0]}**"
                lines.append([f"{name}, {shown}", f"{nfe:.0f}", *cells])
    cells = [f"{floor[metric]:.{n}f}" for metric, n in (digits | {"frechet": 3}).items()]
    lines.append(["floor: data against data", "", *cells])
    header = ["Fashion-MNIST", "network calls", "Frechet", "kernel", "precision", "recall"]
    return markdown(header, lines)


#: Metric of image_models.csv -> heading and digits. The second features are of another classifier, made differently.
IMAGE_METRICS = {
    "frechet": ("Frechet", 2),
    "frechet_second": ("Frechet, second features", 2),
    "kernel": ("kernel", 3),
    "kernel_second": ("kernel, second features", 3),
    "precision": ("precision", 2),
    "recall": ("recall", 2),
    "copies": ("copies", 3),
}


def image_models_table(table: pd.DataFrame) -> str:
    """Every image model in two sets of features, means of the training seeds and half their range, and jumps beside Euler steps."""
    if table.empty:
        return ""
    table = table[table.dataset == "fashion_mnist"]
    known = {name: what for name, what in IMAGE_METRICS.items() if name in set(table.metric)}
    lines = []
    for path, shown in PATH_LABELS.items():
        for label, rows in _image_kinds(table[table.path == path]):
            for nfe, part in rows.groupby("nfe"):
                values = {name: part[part.metric == name].value for name in known}
                cells = [spread(values[name], digits) for name, (_, digits) in known.items()]
                lines.append([f"{label}, {shown}", f"{nfe:.0f}", part.seed.nunique(), *cells])
    real = table[table.method == "floor"].set_index("metric").value
    cells = [f"{real[name]:.{digits}f}" for name, (_, digits) in known.items()]
    lines.append(["floor: data against data", "", "", *cells])
    header = ["Fashion-MNIST", "network calls", "seeds", *(what for what, _ in known.values())]
    return "\n\n".join([markdown(header, lines), _jumps_beside_steps(table)])


def _image_kinds(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Names and rows of the models on a path: a velocity model that was trained for longer has a name of its own."""
    euler, found = rows[rows.method == "euler"], []
    for number, (steps, part) in enumerate(euler.groupby("step")):
        longer = f" of {steps:,.0f} steps, as costly as both" if number else ""
        found.append((f"velocity{longer}, Euler", part))
    return [*found, ("Integration Flow", rows[rows.method == "map"])]


def _jumps_beside_steps(table: pd.DataFrame) -> str:
    """Frechet distance of jumps less that of Euler steps, the same training seed on both sides, with its 95 % interval.

    A difference inside its interval is a tie; where the two sets of features say different things, the last column says so.
    """
    features = [name for name in ("frechet", "frechet_second") if name in set(table.metric)]
    lines = []
    for path, shown in PATH_LABELS.items():
        rows = table[table.path == path]
        euler = rows[
            (rows.method == "euler") & (rows.step == rows[rows.method == "euler"].step.min())
        ]
        for jumps, steps in WANTED.items():
            cells, said = [], []
            for name in features:
                ours, theirs = (
                    part[(part.metric == name) & (part.nfe == nfe)].set_index("seed").value
                    for part, nfe in ((rows[rows.method == "map"], jumps), (euler, steps))
                )
                apart = (ours - theirs).dropna()
                if apart.empty:
                    continue
                said.append(_told(apart))
                half = f" ± {interval(apart):.2f}" if len(apart) > 1 else ""
                cells.append(f"{apart.mean():+.2f}{half}: {said[-1]}")
            if not said:
                continue
            agree = "" if len(said) < 2 else "yes" if len(set(said)) == 1 else "**no**"
            lines.append([f"{calls(jumps)} beside {steps} Euler steps, {shown}", *cells, agree])
    header = [
        "jumps less Euler steps",
        *(IMAGE_METRICS[name][0] for name in features),
        "do they agree?",
    ]
    return markdown(header, lines)


def _told(apart: pd.Series) -> str:
    """What the differences of at least three seeds say of a distance."""
    if len(apart) < 3:
        return "undecided, too few seeds"
    if abs(apart.mean()) <= interval(apart):
        return "a tie"
    return "nearer" if apart.mean() < 0 else "farther"


def exactness_table(table: pd.DataFrame) -> str:
    """The largest of the four paths' relative RMS errors, means over seeds."""
    shown = {
        "velocity": "the velocity",
        "flow_map": "the jump from t_max to 0",
        "posterior_mean": "the posterior mean",
    }
    found = table.groupby(["objective", "quantity", "dim", "path"], sort=False).relative_rms.mean()
    worst = found.groupby(["objective", "quantity", "dim"], sort=False).max().unstack("dim")
    lines = [
        [objective, shown[quantity], *(f"{100 * value:.1f} %" for value in row)]
        for (objective, quantity), row in worst.iterrows()
        if quantity in shown
    ]
    return markdown(["trained with", "learns", *(f"in {dim} dimensions" for dim in worst)], lines)


def made_table(table: pd.DataFrame) -> str:
    """How each image model was made, stage by stage, from the manifests of the models that ship."""
    lines, spent = [], {}
    for name in IMAGE_MODELS:
        system, manifest = zoo.System.parse(name), zoo.training_manifest(name, CHECKPOINTS)
        stages = [*filter(None, [manifest.get("before")]), manifest]
        taught = system.kind == "integral"
        teacher = f"{system.path}_velocity"
        spent[name], done = spent[teacher] if taught else 0.0, 0
        for number, stage in enumerate(stages, 1):
            had, steps = stage["objective"], stage["steps_done"] - done
            done = stage["steps_done"]
            how = {key: had.get(key, 0.0) for key in ("detail", "perceptual", "matching")}
            if taught:
                model = zoo.pretrained(teacher, CHECKPOINTS)
                own = {"equal_share": had["equal_share"], **how}
                objective: Any = ifl.FlowMapDistillation(teacher=model, **own)
            else:
                objective = ifl.FlowMatching()
            spent[name] += steps * calls_per_step(objective)
            weights = [f"{value:g}" if value else "" for value in how.values()]
            line = [f"`{name}`" if number == 1 else "", number, f"{steps:,}", *weights]
            lines.append([*line, f"{spent[name]:,.0f}", stage["config"]["seed"]])
    header = "model|stage|gradient steps|`detail`|`perceptual`|`matching`|evaluations so far|seed"
    return markdown(header.split("|"), lines)


def self_anchor_table(table: pd.DataFrame) -> str:
    """W2 without and with the anchor, and the difference with its 95 % interval."""
    lines = []
    table = table[table.nfe.isin([1, 2, 4])]
    for (dataset, path, nfe), rows in table.groupby(["dataset", "path", "nfe"], sort=False):
        wide = rows.pivot(index="seed", columns="anchor", values="w2")
        apart = wide["self"] - wide["none"]
        name = f"{dataset.replace('_', ' ').replace('gaussians', 'Gaussians')}, {PATH_LABELS[path]}"
        means = [f"{wide[anchor].mean():.3f}" for anchor in ("none", "self")]
        lines.append([name, nfe, *means, f"{apart.mean():+.3f} ± {interval(apart):.3f}"])
    return markdown(["", "network calls", "no anchor", 'anchor="self"', "difference"], lines)


def peers_table(table: pd.DataFrame) -> str:
    """Means over seeds, plus or minus half their range. A search that ends at the defaults has no line of its own."""
    sets = {"eight_gaussians": "eight Gaussians", "checkerboard": "checkerboard"}
    lines = []
    for method, rows in table[table.role != "search"].groupby("method", sort=False):
        defaults = list(rows[rows.role == "defaults"].variant.unique()) * 2
        for role in rows.role.unique():
            parts = [rows[(rows.dataset == name) & (rows.role == role)] for name in sets]
            variants = [part.variant.iloc[0] for part in parts]
            if role == "best found" and variants == defaults:
                continue
            cells = [
                spread(part.w2, 3) if len(part) > 1 else f"{part.w2.mean():.3f}" for part in parts
            ]
            settings = {
                "floor": "",
                "best found": "best found: " + "; then ".join(dict.fromkeys(map(str, variants))),
            }.get(role, role)
            lines.append([method, settings, *cells])
    header = ["one network call", "settings", *(f"{name}, W2" for name in sets.values())]
    return markdown(header, lines)


def vs_peers_table(table: pd.DataFrame) -> str:
    """Our default objective, the best of the neighbours, and what is to be said of ours, for each set and number of calls.

    Where velocities alone were measured, FlowMatching stands for ours. Who could not be measured has a line below.
    """
    if table.empty:
        return ""
    lines = []
    measured = table[table.nfe.notna() & ~table.nfe.isin([8, 16])]
    for (dataset, nfe), rows in measured.groupby(["dataset", "nfe"], sort=False):
        by_name, theirs = rows.set_index("contender"), rows[rows.package != "iflow_lib"]
        known = [name for name in ("IntegralIdentity", "FlowMatching") if name in by_name.index]
        if not known or theirs.empty:
            continue
        cells = [
            f"{row.contender}, {row.ratio:.2f} ± {row.interval:.2f}"
            for row in (rows[rows.contender == known[0]].iloc[0], theirs.iloc[0])
        ]
        verdict = by_name.verdict[known[0]]
        lines.append([SETS.get(dataset, dataset), f"{nfe:.0f}", *cells, verdict])
    absent = table[table.nfe.isna()]
    shown = _if_any("|calls|ours, W2 over its floor|the best neighbour|ours is", lines)
    said = [f"{row.contender} ({row.package}) was {row.verdict}" for row in absent.itertuples()]
    return "\n\n".join(filter(None, [shown, *said]))


#: Column of claims.csv -> heading.
JUDGED = {"as_described": "as described", "with_meanflow_identity": "with MeanFlow's identity"}


def claims_table(table: pd.DataFrame) -> str:
    """Every claim and its two verdicts, readings of a claim below it, and the pictures that are drawn."""
    lines = []
    for row in table.itertuples():
        drawn = (ROOT / row.picture).is_file()
        path = os.path.relpath(ROOT / row.picture, ROOT / "docs")
        indent = "" if row.part_of == "none" else "*a reading:* "
        verdicts = [getattr(row, column) for column in JUDGED]
        lines.append([indent + row.statement, *verdicts, f"[picture]({path})" if drawn else ""])
    return markdown(["claim", *JUDGED.values(), ""], lines)


def claims_short_table(table: pd.DataFrame) -> str:
    """What the paper itself claims, without what only the article on it says, and without the readings of its recipe."""
    rows = table[table.source.str.startswith("paper") & (table.part_of == "none")]
    lines = rows[["statement", *JUDGED]].itertuples(index=False)
    return markdown(["claim", *JUDGED.values()], lines)


def tuning_table(table: pd.DataFrame) -> str:
    wide = table.pivot(index=["variant", "steps"], columns="nfe", values="frechet_to_train")
    lines = [
        [
            variant,
            f"{steps:,}",
            *("" if pd.isna(v) else f"{v:.1f}" for v in wide.loc[variant, steps]),
        ]
        for variant, steps in dict.fromkeys(zip(table.variant, table.steps))
    ]
    return markdown(["", "steps", *map(calls, wide)], lines)


def image_methods_table(table: pd.DataFrame) -> str:
    """Frechet distance, mean of the seeds and half their range."""
    table = table[(table.dataset == "fashion_mnist") & (table.metric == "frechet")]
    rows, lines = table[table.method != "floor"], []

    def cell(values: pd.Series) -> str:
        if values.isna().any() or values.mean() >= 1000:
            return "over 1000"
        return f"{values.mean():.3g} ± {(values.max() - values.min()) / 2:.2g}"

    for objective, name in METHODS.items():
        for anchor in rows[rows.objective == objective].anchor.unique():
            part = rows[(rows.objective == objective) & (rows.anchor == anchor)]
            plain = anchor == "none" and objective != "X0Regression"
            shown = name if plain else f"{name}, {anchor.replace('_', ' ')}"
            for nfe in sorted(part.nfe.unique()):
                at = part[part.nfe == nfe]
                lines.append(
                    [shown, f"{nfe:.0f}", *(cell(at[at.path == p].value) for p in PATH_LABELS)]
                )
    lines.append(
        ["floor: data against data", "", spread(table[table.method == "floor"].value), "", ""]
    )
    header = ["Fashion-MNIST, Frechet distance", "network calls", *PATH_LABELS.values()]
    return markdown(header, lines)


def emoji_table(table: pd.DataFrame) -> str:
    """Mean of the seeds and half their range."""
    table, metrics = table[table.dataset == "emoji"], ("frechet_pca", "sliced_w2")

    def cells(rows: pd.DataFrame) -> list[str]:
        return [spread(rows[rows.metric == metric].value, 3) for metric in metrics]

    lines = [
        [name, f"{nfe:.0f}", *cells(rows)]
        for objective, name in METHODS.items()
        for nfe, rows in table[table.objective == objective].groupby("nfe")
    ]
    lines.append(["floor: data against data", "", *cells(table[table.method == "floor"])])
    header = ["emoji, rectified", "network calls", "Frechet, 64 components", "sliced W2"]
    return markdown(header, lines)


def budget_table(_: pd.DataFrame) -> str:
    """What a run of plane.csv and of image_methods.csv cost: medians of the manifests' runs."""
    settings = {
        "plane": (f"steps{zoo.PLANE_STEPS}", zoo.PLANE_STEPS),
        "image_methods": ("width16/steps1500", 1500),
    }
    cost: dict = {}
    for name, (part, steps) in settings.items():
        manifest = (REFERENCE / f"{name}.manifest.json").read_text(encoding="utf-8")
        for run, how in json.loads(manifest)["runs"].items():
            if f"/{part}/" in run and not run.startswith("emoji"):
                kind = run.split("/")[1].split("_", 1)[1]
                found = (steps, steps * how["calls_per_step"], how["seconds"])
                cost.setdefault((kind, name), []).append(found)
    lines = []
    for kind in zoo.KINDS:
        known = [
            pd.DataFrame(cost.get((kind, name), [[math.nan] * 3])).median() for name in settings
        ]
        cells = ["" if pd.isna(value) else f"{value:,.0f}" for found in known for value in found]
        lines.append([f"`{kind}`", *cells])
    rest = ["network evaluations", "seconds"]
    return markdown(["", "plane: steps", *rest, "images: steps", *rest], lines)


def plane_tuning_table(table: pd.DataFrame) -> str:
    """W2 over its floor, mean of paths and seeds, and what it is more than the defaults', same path and seed, with its 95 %
    interval; in bold where that leaves out 0. The best comes first."""
    rows = over_floor(table).rename(columns={"value": "ratio"})
    rows = rows.assign(variant=rows.run_id.str.split("/").str[0])
    values = rows.pivot_table(index=["variant", "path", "seed"], columns="nfe", values="ratio")
    lines = []
    for variant in values[values.columns[0]].groupby("variant").mean().sort_values().index:
        line = [variant]
        for nfe in values:
            apart = (values.loc[variant, nfe] - values.loc["defaults", nfe]).dropna()
            half = interval(apart)
            told = f"{apart.mean():+.2f} ± {half:.2f}" if variant != "defaults" else ""
            told = f"**{told}**" if abs(apart.mean()) > half else told
            line += [f"{values.loc[variant, nfe].mean():.2f}", told]
        lines.append(line)
    header = [text for nfe in values for text in (calls(nfe), "more than the defaults")]
    return markdown(["", *header], lines)


def adaptive_weight_table(table: pd.DataFrame) -> str:
    """Frechet distances, means of the seeds and what they lie apart, and how much more a pair weighs."""
    names = {"as is": "of the velocity", "own error": "its own"}
    cells, lines = ["objective", "power", "weight"], []
    for (objective, power, weight), rows in table.groupby(cells, sort=False):
        judged = (
            "" if not power else names[weight] if objective != "IntegralIdentity" else "its own"
        )
        line = [objective, f"{power:g}", judged]
        for _, found in rows.groupby(["method", "nfe"], sort=False):
            line.append(spread(found.frechet_pca, 3))
        lines.append([*line, f"{rows.pair_over_equal.mean():,.0f}"])
    columns = [calls(nfe) for nfe in (1, 2, 4)] + ["32 Euler steps", "weight of a pair"]
    return markdown(["", "power", "weight by the error", *columns], lines)


#: Steps -> what one jump of the defaults should reach over all cells, median and worst (docs/protocol.md).
DEFAULTS_WANTED = {4000: (1.15, 1.4), 10_000: (1.05, 1.25)}
#: Jumps -> points over the data's share off the modes of eight Gaussians that they should stay below.
OFF_MODES_WANTED = {1: 6, 4: 2}


def defaults_table(table: pd.DataFrame) -> str:
    """W2 of the defaults over its floor: each set at one jump, then medians and worst cells by steps and jumps."""
    if table.empty:
        return ""
    over, steps = over_floor(table), sorted(table.step.dropna().astype(int).unique())
    now = over[~over.run_id.str.startswith("before/")]
    one, lines = now[now.nfe == 1], []
    paths = [path for path in zoo.PATH_NAMES if path in set(one.path)]
    placed = table[(table.method == "map") & (table.nfe == 1) & (table.step == steps[0])]
    placed = placed[~placed.run_id.str.startswith("before/")]
    for dataset in [name for name in ALL_PLANE if name in set(one.dataset)]:
        rows = one[(one.dataset == dataset) & (one.step == steps[0])]
        line = [(SETS | HELD_OUT)[dataset]]
        line += [spread(rows[rows.path == path].value) for path in paths]
        for metric in ("off_support", "off_modes"):
            own = placed[(placed.dataset == dataset) & (placed.metric == metric)].value
            line.append(f"{100 * own.mean():.1f}" if len(own) else "")
        lines.append(
            [f"{line[0]}, held out" if dataset in data.PLANE_HELD_OUT else line[0], *line[1:]]
        )
    paths = [PATH_LABELS[path] for path in zoo.PATH_NAMES]
    header = [
        f"one jump after {steps[0]:,} steps",
        *paths,
        "off the support, %",
        "off the modes, %",
    ]
    first = markdown(header, lines)
    lines = []
    for before, label in ((False, "the defaults"), (True, "before the search")):
        whose = over[over.run_id.str.startswith("before/") == before]
        held = whose.dataset.isin(data.PLANE_HELD_OUT)
        parts = {"searched": whose[~held], "held out": whose[held], "all": whose}
        for number, (name, part) in itertools.product(steps, parts.items()):
            part = part[part.step == number]
            if part.empty or (name == "all" and not held.any()):
                continue
            cells = part.groupby(["nfe", "dataset", "path"]).value.mean().groupby("nfe")
            shown = [f"{cells.median()[nfe]:.2f}, {cells.max()[nfe]:.2f}" for nfe in (1, 2, 4)]
            wanted = DEFAULTS_WANTED.get(number) if name == "all" and not before else None
            goal = "{:.2f}, {:.2f}".format(*wanted) if wanted else ""
            lines.append([label, name, f"{number:,}", *shown, goal])
    header = [
        "median, worst",
        "sets",
        "steps",
        *(f"{nfe} jump{'s' * (nfe > 1)}" for nfe in (1, 2, 4)),
    ]
    second = markdown([*header, "wanted of one"], lines)
    return "\n\n".join(filter(None, [first, second, _between_modes(table, steps)]))


def _between_modes(table: pd.DataFrame, steps: list[int]) -> str:
    """A sentence on what the defaults leave off the modes of eight Gaussians, after so many steps."""
    rows = table[(table.metric == "off_modes") & (table.dataset == "eight_gaussians")]
    real = rows[rows.method == "floor"].value.mean()
    now = rows[~rows.run_id.str.startswith("before/") & (rows.method != "floor")]
    shares = now.groupby(["step", "nfe"]).value.mean()
    parts = []
    for step, (nfe, wanted) in itertools.product(steps, OFF_MODES_WANTED.items()):
        if (step, nfe) in shares.index:
            points = 100 * (shares[step, nfe] - real)
            jumps = f"{nfe} jump{'s' * (nfe > 1)}"
            parts.append(f"{jumps} {points:.1f} points after {step:,} steps (wanted {wanted})")
    return f"More off the modes of eight Gaussians than data: {', '.join(parts)}." if parts else ""


def search_table(table: pd.DataFrame, search: Search = PLANE) -> str:
    """Candidates that saw all cells, by what they change of candidate 1; then how many others there were."""
    if table.empty:
        return ""
    found, lines = ranking(table, search), []
    base = next(json.loads(row.settings) for row in table.itertuples() if row.trial == 1)
    for row in found[found.rung > 0].itertuples():
        changed = {k: v for k in search.space if (v := getattr(row, k)) == v and v != base.get(k)}
        told = "; ".join(
            f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in changed.items()
        )
        told = "the defaults before the search" if row.trial == 0 else told or "from a trial before"
        long = [""] * (5 if search.floor else 4)
        if row.rung > 1:
            behind = f"{row.behind_percent:.1f} ± {row.behind_interval:.1f}"
            long = [f"{row.score:.3f}", behind if row.trial != found.trial.iloc[0] else ""]
            long += [f"{row.median_one:.2f}", f"{row.worst_one:.2f}"]
            if search.floor:
                long.append(f"{100 * row.modes_1:.1f}, {100 * row.modes_4:.1f}")
        lines.append([f"{row.trial}", told, f"{row.cost:.2f}", f"{row.first_look:.2f}", *long])
    header = [
        "",
        "settings, where other than those of 1",
        "cost",
        f"{search.short:,} steps",
        f"{search.long:,} steps",
        "behind the first, %",
        "median, one jump",
        "worst",
    ]
    if search.floor:
        header.append("off the modes of eight Gaussians, %, one and four jumps")
    few = found[found.rung == 0]
    others = f"And {len(few)} more, which saw three cells: {few.first_look.min():.2f} to {few.first_look.max():.2f}."
    return f"{markdown(header, lines)}\n\n{others}"


def recipe_table(table: pd.DataFrame) -> str:
    """The search, and of one call also what the samples are."""
    rows, lines = table[table.part == "search"], []
    wide = rows.pivot(index=["rule", "setting"], columns="nfe", values="w2_over_floor")
    first = rows[rows.nfe == 1].set_index(["rule", "setting"])
    for rule, setting in dict.fromkeys(zip(rows.rule, rows.setting)):
        row, one = wide.loc[(rule, setting)].dropna(), first.loc[(rule, setting)]
        name = "*integral identity*" if rule == "identity" else rule.replace("_", " ")
        cells = [f"{v:.2f}" if v < 100 else "over 100" for v in row]
        cells += [""] * (wide.shape[1] - len(cells))
        copies = "" if pd.isna(one.copy_share) else f"{100 * one.copy_share:.0f} %"
        lines.append([name, setting, *cells, f"{one.spread:.2f}", copies])
    header = ["anchor", "setting", *(f"W2 / floor, {calls(nfe)}" for nfe in wide)]
    return markdown([*header, "spread", "explained by the anchor"], lines)


def straight_table(table: pd.DataFrame) -> str:
    rows = table[table.part == "straight"].groupby("quantity", sort=False).value
    lines = [[name, spread(values, 3)] for name, values in rows]
    return markdown(["flow", "S / E\\|Z_1 - Z_0\\|^2"], lines)


def precision_table(table: pd.DataFrame) -> str:
    """W2 of one jump, and the difference from the exact derivative with its 95 % interval."""
    wide = table.pivot(index=["dataset", "seed"], columns="variant", values="w2")
    lines = []
    for name in table.variant.unique():
        apart = wide[name] - wide["jvp"]
        half = interval(apart)
        told = f"{apart.mean():+.4f} ± {half:.4f}" if half else ""
        lines.append([name, f"{wide[name].mean():.4f}", told])
    return markdown(["derivative, precision", "W2 of one jump", "against the exact one"], lines)


# ---- cost


def steps_of(table: pd.DataFrame) -> dict:
    """{contender: {network: its row}} of the part training."""
    found: dict = {}
    for row in table[table.part == "training"].itertuples():
        found.setdefault(row.contender, {})[row.network] = row
    return found


def speed_short_table(table: pd.DataFrame) -> str:
    """Training steps that are not compiled."""
    left_out = ("compiled", ", self", "per_example")
    lines = [
        [name, *(f"{found[network].ratio:.2f}" for network in ("MLP", "UNet"))]
        for name, found in steps_of(table).items()
        if not any(word in name for word in left_out)
    ]
    return markdown(["one training step", "MLP", "U-Net"], lines)


def speed_table(table: pd.DataFrame) -> str:
    """Training steps and memory."""
    megabytes = table[table.part == "memory"].set_index(["network", "contender"]).megabytes
    lines = []
    for name, found in steps_of(table).items():
        line = [name]
        for network in ("MLP", "UNet"):
            peak = f"{megabytes[network, name]:.0f}" if (network, name) in megabytes.index else ""
            line += [ratio(found[network]), f"{found[network].per_second:.3g}", peak]
        lines.append(line)
    header = [f"{net}, ratio|steps a second|peak MB" for net in ("MLP", "U-Net")]
    return markdown(["one training step", *"|".join(header).split("|")], lines)


def compiling_table(table: pd.DataFrame) -> str:
    """What torch.compile costs and saves on this CPU."""
    steps, lines = steps_of(table), []
    for name in [n for n in steps if n.endswith(", compiled")]:
        bare = name.removesuffix(", compiled")
        for network, fast in steps[name].items():
            plain = steps[bare][network]
            saved = plain.seconds - fast.seconds
            pays = saved > 0.01 * plain.seconds
            back = f"{fast.first_step_seconds / saved:,.0f}" if pays else "never"
            ratios = [f"{plain.ratio:.2f}", f"{fast.ratio:.2f}"]
            lines.append([bare, network, *ratios, f"{fast.first_step_seconds:.0f}", back])
    header = ["", "network", "ratio, not compiled", "ratio, compiled", "first step, s"]
    return markdown([*header, "pays back after, steps"], lines)


def sampling_table(table: pd.DataFrame) -> str:
    """Time against one jump that is not compiled, and samples a second."""
    part = table[table.part == "sampling"].set_index(["network", "batch", "nfe", "contender"])
    lines = []
    for network, batch, nfe in dict.fromkeys(key[:3] for key in part.index):
        rows = [part.loc[(network, batch, nfe, kind)] for kind in ("eager", "compiled")]
        cells = [cell for row in rows for cell in (ratio(row), f"{row.per_second:.3g}")]
        lines.append([network, batch, f"{nfe:.0f}", *cells])
    header = ["network", "samples at once", "calls", "ratio", "samples a second"]
    return markdown([*header, "ratio, compiled", "samples a second"], lines)


def threads_table(table: pd.DataFrame) -> str:
    """Two threads against one."""
    rows = table[table.part == "threads"].itertuples()
    lines = [[f"{row.params * row.batch / 1e6:.0f}", ratio(row)] for row in rows]
    return markdown(["weights x batch, millions", "two threads against one"], lines)


def runner_table(table: pd.DataFrame) -> str:
    """What `iflow reproduce` costs beside papermill, and whether it loses anything."""
    overhead = table[table.part == "overhead"]
    overhead = overhead.pivot(index="run", columns="contender", values="value")
    times = overhead["iflow reproduce"] / overhead["papermill"]
    killed = table[table.part == "killed"].set_index("contender").value
    again = table[table.part == "again"].value.max()
    lines = [
        [
            f"time of `iflow reproduce --fresh` against bare papermill, {len(times)} pairs in turns",
            f"{times.mean():.3f} ({times.min():.3f} to {times.max():.3f})",
        ],
        [
            "the same again, nothing changed",
            f"{again:.1f} s at most, {again / overhead.papermill.mean():.1%} of a run",
        ],
        [
            f"rows of results that are the same after {killed['kills']:.0f} kills at random moments",
            f"{killed['rows that are the same']:.0f} of {killed['rows of the undisturbed run']:.0f}",
        ],
    ]
    return markdown(["smoke profile, eleven notebooks", ""], lines)


def sweep_table(table: pd.DataFrame) -> str:
    """The time of a sweep with two workers against that with one, in the same pair."""
    two = table[table.workers == 2]
    lines = [[row.repetition + 1, f"{row.ratio:.2f}"] for row in two.itertuples()]
    lines.append(["median", f"{two.ratio.median():.2f}"])
    return markdown(["pair", "time with two workers against one"], lines)


def cost_table(table: pd.DataFrame) -> str:
    cells = {
        "weights": lambda r: f"{r.params / 1e6:.0f} M",
        "steps x batch": lambda r: f"{r.steps:,} x {r.batch:,}",
        "operations of one network call, one image": lambda r: f"{r.flops_per_call / 1e9:.1f} G",
        "network calls a step, one image": lambda r: f"{r.calls_per_step:g}",
        "operations in all": lambda r: f"{r.flops:.2g}",
        "hours of this CPU, at its measured rate": lambda r: f"{r.cpu_hours:,.0f}",
        "GPU-hours, if 30 % of the ceiling are reached": lambda r: f"{r.gpu_hours_assumed:,.0f}",
        "weights, gradients, Adam, average (float32)": lambda r: f"{r.weights_bytes / 1e9:.2f} GB",
        "kept for the backward pass, one image (float32)": lambda r: (
            f"{r.kept_bytes_per_example / 1e6:.0f} MB"
        ),
        "data set (float32)": lambda r: f"{r.data_bytes / 1e9:.2f} GB",
        "anchor store, N x dims, float32 / float16": lambda r: (
            f"{r.anchor_bytes_float32 / 1e9:.2f} / {r.anchor_bytes_float16 / 1e9:.2f} GB"
        ),
    }
    rows = list(table.itertuples())
    lines = [[title, *map(cell, rows)] for title, cell in cells.items()]
    return markdown(["", *(f"{row.setting}, {row.objective}" for row in rows)], lines)


# ---- a GPU: nothing, as long as nothing was measured


def gpu_short_table(table: pd.DataFrame) -> str:
    """What a GPU must show, card by card."""
    if table.empty:
        return ""
    cards = list(dict.fromkeys(table.card))
    lines = []
    for found in zip(*(demands(table, card) for card in cards)):
        cells = [
            one.verdict
            if math.isnan(one.value)
            else f"{one.value:.3g}, {one.verdict}".removesuffix(", measured")
            for one in found
        ]
        lines.append([found[0].what, found[0].shown_bound, *cells])
    return markdown(["on a GPU", "wanted", *cards], lines)


def gpu_table(table: pd.DataFrame) -> str:
    """Everything that was measured on each card."""
    if table.empty:
        return ""
    text: list[str] = []
    for card in dict.fromkeys(table.card):
        rows = table[table.card == card]
        text.append(f"### {card}")
        for make in (_gpu_ceilings, _gpu_steps, _gpu_samples, _gpu_quality, _gpu_checks):
            text += filter(None, [make(rows)])
    return "\n\n".join(text)


def _median(row, digits: int = 3) -> str:
    """A value with its interval."""
    if pd.isna(row.low):
        return f"{row.value:.{digits}g}"
    return f"{row.value:.{digits}g} ({row.low:.{digits}g} to {row.high:.{digits}g})"


def _share(row) -> str:
    if pd.isna(row.share_of_ceiling):
        return ""
    return f"{row.share_of_ceiling:.0%} of {row.ceiling}".replace("%", " %")


def _if_any(header: str, lines: list) -> str:
    """A table under a header with | between its columns, or nothing where nothing was measured."""
    return markdown(header.split("|"), lines) if lines else ""


def _gpu_ceilings(rows: pd.DataFrame) -> str:
    found = rows[(rows.part == "speed") & rows.objective.isin(["matmul", "copy"])]
    lines = [
        [
            "copying" if row.objective == "copy" else f"products, {row.precision}",
            f"{_median(row)} {row.unit}",
        ]
        for row in found.itertuples()
    ]
    return _if_any("the card's ceilings|", lines)


def _gpu_steps(rows: pd.DataFrame) -> str:
    rows = rows[(rows.part == "speed") & rows.network.notna()]
    memory = rows[rows.metric == "peak_memory"].set_index("run").value
    names = {"UNet": "U-Net"}
    lines = [
        [
            names.get(row.network, row.network),
            row.objective,
            row.precision,
            row.mode,
            _median(row),
            _share(row),
            f"{memory[row.run] / 1000:.1f}" if row.run in memory else "",
        ]
        for row in rows[rows.metric == "steps_per_second"].itertuples()
    ]
    header = "network|one training step|precision|how|steps a second|share|peak GB"
    return _if_any(header, lines)


def _gpu_samples(rows: pd.DataFrame) -> str:
    rows = rows[rows.part == "sampling"]
    rate = rows[rows.metric == "images_per_second"].set_index(["run", "nfe"])
    lines = []
    for row in rows[rows.metric == "latency"].itertuples():
        fast = rate.loc[(row.run, row.nfe)]
        cells = [f"{1000 * row.value:.3g}", f"{fast.value:.3g}", _share(fast)]
        lines.append([row.mode, f"{row.batch:.0f}", f"{row.nfe:.0f}", *cells])
    header = "sampling, U-Net|images at once|calls|milliseconds|images a second|share"
    return _if_any(header, lines)


def _gpu_quality(rows: pd.DataFrame) -> str:
    rows = rows[(rows.part == "quality") & (rows.metric == "frechet")]
    sets = {"fashion_mnist": "the 10,000 that ship", "fashion_mnist_full": "all 60,000"}
    lines = []
    for (dataset, path, step), part in rows.groupby(["dataset", "path", "step"], sort=False):
        for method, name in (("euler", "velocity, Euler"), ("map", "Integration Flow")):
            for nfe, found in part[part.method == method].groupby("nfe"):
                value = spread(found.value) if len(found) > 1 else f"{found.value.iloc[0]:.2f}"
                cells = [f"{nfe:.0f}", f"{len(found)}", value]
                shown = f"{name}, {PATH_LABELS[path]}"
                lines.append([sets.get(dataset, dataset), f"{step:,.0f}", shown, *cells])
    return _if_any("training images|steps|model|network calls|seeds|Frechet", lines)


def _gpu_checks(rows: pd.DataFrame) -> str:
    rows = rows[rows.metric == "passed"]
    if rows.empty:
        return ""
    failed = [
        f"{row.run.removeprefix('tests/')}: {row.note}"
        for row in rows[rows.value == 0].itertuples()
    ]
    said = f"Of {len(rows)} checks {len(rows) - len(failed)} passed."
    return "\n".join([said, *([""] + [f"- {one}" for one in failed] if failed else [])])


#: Tables that may not be there yet: then their sections are empty.
WHEN_MEASURED = (
    "image_models.csv",
    "bench/gpu.csv",
    "bench/vs_peers.csv",
    "bench/search.csv",
    "bench/image_search.csv",
    "bench/defaults.csv",
)
#: name of the table in a page -> where it is read from, and how it is written
TABLES = {
    "plane": ("plane.csv", plane_table),
    "off_support": ("plane.csv", off_support_table),
    "images": ("images.csv", images_table),
    "image_models": ("image_models.csv", image_models_table),
    "made": ("images.csv", made_table),
    "exactness": ("bench/exactness.csv", exactness_table),
    "peers": ("bench/quality_vs_peers.csv", peers_table),
    "vs_peers": ("bench/vs_peers.csv", vs_peers_table),
    "self_anchor": ("bench/self_anchor.csv", self_anchor_table),
    "recipe": ("bench/recipe.csv", recipe_table),
    "straight": ("bench/recipe.csv", straight_table),
    "image_methods": ("image_methods.csv", image_methods_table),
    "emoji": ("image_methods.csv", emoji_table),
    "budget": ("image_methods.csv", budget_table),
    "plane_tuning": ("bench/plane_tuning.csv", plane_tuning_table),
    "tuning": ("bench/tuning.csv", tuning_table),
    "adaptive_weight": ("bench/adaptive_weight.csv", adaptive_weight_table),
    "search": ("bench/search.csv", search_table),
    "image_search": ("bench/image_search.csv", partial(search_table, search=IMAGES)),
    "defaults": ("bench/defaults.csv", defaults_table),
    "claims": ("claims.csv", claims_table),
    "claims_short": ("claims.csv", claims_short_table),
    "speed_short": ("bench/speed.csv", speed_short_table),
    "speed": ("bench/speed.csv", speed_table),
    "compiling": ("bench/speed.csv", compiling_table),
    "sampling": ("bench/speed.csv", sampling_table),
    "threads": ("bench/speed.csv", threads_table),
    "precision": ("bench/precision.csv", precision_table),
    "cost": ("bench/cost.csv", cost_table),
    "runner": ("bench/runner.csv", runner_table),
    "sweep": ("bench/sweep.csv", sweep_table),
    "gpu": ("bench/gpu.csv", gpu_short_table),
    "gpu_all": ("bench/gpu.csv", gpu_table),
}
