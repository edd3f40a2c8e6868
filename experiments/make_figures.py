"""The reference figures, drawn from the committed tables and models: ``python -m experiments.make_figures [FIGURE ...]``

plane_quality: quality against network calls for every method, path and set; anchor_stability: the published recipe with
each anchor, iterated; anchor_collapse: what it generates, and from which anchor; trajectories: jumps beside the exact flow;
self_anchor: what a self-estimated anchor changes in one that works; theorem: what the anchors tell of x_0; image_quality,
image_samples: Fashion-MNIST; image_methods: every method on it, trained briefly; tuning, plane_tuning: after training with
other settings; search, image_search: every candidate of the searches, by each of its settings; cost: quality at one call
against what training cost; time: of sampling, against network calls.
All if none is named. A figure whose table or models are not there is named and left out.
"""

import io
import json
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.ticker import LogLocator

import iflow_lib as ifl
from experiments.common import REFERENCE, ROOT, over_floor
from experiments.search import ranking
from experiments.searches import IMAGES, PLANE, Search
from iflow_lib import analytic, plotting, zoo
from iflow_lib import data as data_sets
from iflow_lib.io import write_atomic
from iflow_lib.metrics import interval
from iflow_lib.model import FlowMap

NAMES, PATH_LABELS = plotting.SETS, plotting.PATH_LABELS
#: (objective, method) -> name, colour, marker; colours as in ``plotting``, one for each method on every path
METHODS = {
    ("FlowMatching", "euler"): ("velocity, Euler", "#D55E00", "s"),
    ("FlowMatching", "heun"): ("velocity, Heun", "#E69F00", "^"),
    ("IntegralIdentity", "map"): ("integral identity", "#0072B2", "o"),
    ("IntegralAdditivity", "map"): ("integral additivity", "#009E73", "D"),
    ("ConsistencyTraining", "map"): ("consistency training", "#B5508B", "P"),
}
RULES = {
    "none": "no anchor",
    "shared": "shared",
    "per_example": "per example",
    "ground_truth": "ground truth",
    "self": "self",
}
LARGEST = 1000  # Frechet distance drawn; what is farther lies there
RULE_COLORS = dict(zip(RULES, ("#3C4048", "#0072B2", "#D55E00", "#E69F00", "#009E73")))


def table(name: str) -> pd.DataFrame:
    return pd.read_csv(REFERENCE / name, dtype={"run_id": str})


def band(ax, rows: pd.DataFrame, name: str, color: str, marker: str, **style) -> None:
    """Mean over seeds against nfe, and the range of the seeds."""
    values = rows.groupby("nfe").value
    mean = values.mean()
    ax.fill_between(mean.index, values.min(), values.max(), color=color, alpha=0.18, linewidth=0)
    ax.plot(
        mean.index,
        mean,
        color=color,
        marker=marker,
        markersize=4.5,
        markeredgecolor="white",
        markeredgewidth=0.6,
        linewidth=1.6,
        label=name,
        **style,
    )


def nfe_axis(ax, nfes=(1, 2, 4, 8, 16, 32, 100), log_y: bool = True) -> None:
    ax.set(xscale="log", xticks=nfes, xticklabels=nfes)
    if log_y:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
    ax.minorticks_off()


def plane_quality():
    rows = over_floor(table("plane.csv")).query("step == @zoo.PLANE_STEPS and anchor == 'none'")
    sets = [name for name in NAMES if name in set(rows.dataset)]
    fig, axes = plt.subplots(
        len(PATH_LABELS),
        len(sets),
        figsize=(2.7 * len(sets) + 1, 7.2),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for line, path in zip(axes, PATH_LABELS):
        for ax, dataset in zip(line, sets):
            part = rows[(rows.path == path) & (rows.dataset == dataset)]
            for (objective, method), (name, color, marker) in METHODS.items():
                found = part[(part.objective == objective) & (part.method == method)]
                if len(found):
                    band(ax, found, name, color, marker)
            ax.axhline(1, color=plotting.METHOD_COLORS["floor"], linewidth=1, zorder=0)
            nfe_axis(ax)
            ax.set_yticks([1, 2, 5, 10], ["1", "2", "5", "10"])
            ax.minorticks_off()
            if path == "rectified":
                ax.set_title(NAMES[dataset])
        line[0].set_ylabel(f"{PATH_LABELS[path]}\n$W_2$ / floor")
    for ax in axes[-1]:
        ax.set_xlabel("network calls")
    fig.legend(
        *axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=len(METHODS)
    )
    return fig


def anchor_stability():
    rows = over_floor(table("plane.csv")).query("step == @zoo.ANCHOR_STEPS and path == 'rectified'")
    sets = [name for name in NAMES if name in set(rows.dataset)]
    fig, axes = plt.subplots(
        1, len(sets), figsize=(2.7 * len(sets) + 1, 4.2), sharey=True, squeeze=False
    )
    for ax, dataset in zip(axes[0], sets):
        part = rows[rows.dataset == dataset]
        for rule, name in RULES.items():
            found = part[(part.objective == "X0Regression") & (part.anchor == rule)]
            if len(found):
                band(
                    ax, found, f"recipe, {name}", RULE_COLORS[rule], "o" if rule != "none" else "s"
                )
        for anchor, style in (("none", "-"), ("self", "--")):
            found = part[(part.objective == "IntegralIdentity") & (part.anchor == anchor)]
            if len(found):
                band(
                    ax,
                    found,
                    "integral identity" + ", self" * (anchor == "self"),
                    "#56B4E9",
                    "D",
                    linestyle=style,
                )
        ax.axhline(1, color=plotting.METHOD_COLORS["floor"], linewidth=1, zorder=0)
        nfe_axis(ax)
        ax.set(
            title=NAMES[dataset], xlabel="network calls", ylim=(0.7, 100)
        )  # what diverges leaves the picture
    axes[0][0].set_ylabel("$W_2$ / floor")
    fig.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig


def plane_model(kind: str) -> FlowMap:
    """A shipped model of the eight Gaussians, rectified."""
    return zoo.pretrained(f"eight_gaussians_rectified_{kind}", REFERENCE / "checkpoints")


def anchor_collapse():
    real, n = data_sets.load("eight_gaussians", 2000, "test").x, 2000
    fig, axes = plt.subplots(3, len(RULES) + 1, figsize=(13.5, 7.0))
    for column, (rule, name) in zip(axes.T[:-1], RULES.items()):
        model = plane_model(f"x0_{rule}")
        for ax, nfe in zip(column, (1, 10, 100)):
            if rule == "none" and nfe > 1:
                ax.set_axis_off()
                continue
            if rule == "none":
                x, angle = ifl.sample(model, n, 1).x, np.zeros(n)
            else:
                out = ifl.sample(model, n, nfe, "anchor", trajectory=True)
                x, angle = out.x, np.arctan2(*out.trajectory[0].T.numpy())
            shown = x.clamp(-3.2, 3.2)
            ax.scatter(*shown.T, s=3, c=angle, cmap="twilight", linewidths=0, rasterized=True)
            ax.set(xlim=(-3.3, 3.3), ylim=(-3.3, 3.3), xticks=[], yticks=[], aspect="equal")
            if nfe == 1:
                ax.set_title(name)
            ax.set_xlabel(f"{nfe} call{'s' * (nfe > 1)}", fontsize=9)
    ours = ifl.sample(plane_model("integral"), n).x
    axes[2, -1].set_axis_off()
    for ax, title, x in zip(axes[:, -1], ("data", "integral identity\n1 call"), (real, ours)):
        plotting.scatter_2d(x, ax, title=title, limit=3.3)
        ax.title.set_fontsize(10)
    return fig


def paired(ax, names, cells, title: str, what: str = "W2 with the anchor minus without") -> None:
    """One line a name: mean differences with 95 % intervals; cells: {(name, nfe): values}."""
    shades = {1: "#0072B2", 2: "#56B4E9", 4: "#009E73", 8: "#8A8F98"}
    nfes = sorted({nfe for _, nfe in cells})
    for i, name in enumerate(names):
        for k, nfe in enumerate(nfes):
            values = cells[name, nfe]
            ax.errorbar(
                values.mean(),
                -i - 0.17 * (k - (len(nfes) - 1) / 2),
                xerr=interval(values),
                fmt="o",
                markersize=4,
                elinewidth=1.2,
                color=shades[nfe],
                label=f"{nfe:.0f} call{'s' * bool(nfe > 1)}" if i == 0 else None,
            )
    ax.axvline(0, color=plotting.METHOD_COLORS["data"], linewidth=1)
    ax.set(title=title, xlabel=what, yticks=range(-len(names) + 1, 1), yticklabels=names[::-1])
    ax.xaxis.set_major_locator(plt.MaxNLocator(5))
    ax.grid(axis="x")
    ax.legend(loc="lower right")


def self_anchor():
    fig, (left, right) = plt.subplots(1, 2, figsize=(12.5, 5.2))
    for ax, rows, title in (
        (left, table("bench/self_anchor.csv"), "equal cost, 4,000 steps or fewer"),
        (right, anchor_pairs(), "equal steps, 2,500"),
    ):
        wide = rows.pivot(index=["dataset", "path", "nfe", "seed"], columns="anchor", values="w2")
        apart = wide["self"] - wide["none"]
        cells = {
            (f"{NAMES[d]}, {PATH_LABELS[p]}", nfe): values.to_numpy()
            for (d, p, nfe), values in apart.groupby(["dataset", "path", "nfe"])
        }
        paired(
            ax,
            list(
                dict.fromkeys(
                    f"{NAMES[d]}, {PATH_LABELS[p]}"
                    for d in NAMES
                    for p in PATH_LABELS
                    if d in set(rows.dataset)
                )
            ),
            cells,
            title,
        )
    return fig


def anchor_pairs() -> pd.DataFrame:
    """The integral identity at one call, with and without its own estimate as the anchor, of plane.csv."""
    rows = table("plane.csv").query(
        "step == @zoo.ANCHOR_STEPS and objective == 'IntegralIdentity' and nfe == 1"
    )
    return rows.rename(columns={"value": "w2"})


def theorem():
    rows = table("bench/recipe.csv").query("part == 'theorem'")
    fig, axes = plt.subplots(1, len(RULES) - 1, figsize=(13, 3.7), sharey=True)
    lines = {
        "best, no anchor": ("least, $x_t$ alone", "#8A8F98", "-"),
        "best, anchor of training": ("least, anchor of training", "#009E73", "-"),
        "best, anchor of sampling": ("least, anchor of sampling", "#D55E00", ":"),
        "network, anchor of sampling": ("network, anchor of sampling", "#D55E00", "--"),
        "network, no anchor": ("network without anchor", "#8A8F98", "--"),
    }
    for ax, rule in zip(axes, list(RULES)[1:]):
        found = rows[rows.rule == rule].groupby(["quantity", "t"]).value.mean()
        for quantity, (name, color, style) in lines.items():
            ax.plot(
                found[quantity].index,
                found[quantity],
                style,
                color=color,
                label=name,
                marker="o",
                markersize=4,
            )
        ax.set(title=f"anchor: {RULES[rule]}", xlabel="t")
    axes[0].set(ylabel="squared error of $x_0$, per coordinate", ylim=(0, None))
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return fig


def tuning():
    rows = table("bench/tuning.csv")
    rows = rows[~rows.variant.str.contains("model")]
    rows = rows.pivot(
        index=["variant", "steps"], columns="nfe", values="frechet_to_train"
    ).sort_values(1, ascending=False)
    fig, ax = plt.subplots(figsize=(7.5, 0.42 * len(rows) + 1.4))
    for nfe, color in zip(rows, ("#0072B2", "#56B4E9", "#009E73", "#8A8F98")):
        ax.plot(rows[nfe], range(len(rows)), "o", color=color, label=f"{nfe} call{'s' * (nfe > 1)}")
    ax.set(
        xscale="log",
        xlabel="Frechet distance to the training images",
        yticks=range(len(rows)),
        yticklabels=[
            variant + f", {steps:,} steps" * ("steps" not in variant)
            for variant, steps in rows.index
        ],
    )
    ax.set_xticks([4, 6, 10, 15, 20, 30], ["4", "6", "10", "15", "20", "30"])
    ax.minorticks_off()
    ax.legend()
    return fig


def plane_tuning():
    rows = over_floor(table("bench/plane_tuning.csv"))
    rows = rows.assign(variant=rows.run_id.str.split("/").str[0])
    values = rows.pivot_table(index=["variant", "path", "seed"], columns="nfe", values="value")
    apart = {
        name: values.loc[name] - values.loc["defaults"] for name in set(rows.variant) - {"defaults"}
    }
    names = sorted(apart, key=lambda name: apart[name][1].mean())
    fig, ax = plt.subplots(figsize=(7.5, 0.36 * len(names) + 1.4))
    paired(
        ax,
        names,
        {(name, nfe): apart[name][nfe].dropna().to_numpy() for name in names for nfe in values},
        "",
        "$W_2$ / floor, more than with the defaults",
    )
    ax.set_xscale("symlog", linthresh=0.25, linscale=1.5)  # one of them is far off
    ax.set_xticks([-0.2, -0.1, 0, 0.1, 0.2, 1, 5], ["-0.2", "-0.1", "0", "0.1", "0.2", "1", "5"])
    ax.legend(loc="upper right")
    return fig


#: Rung of a search -> how its candidates are drawn, and what has been done with them.
RUNGS = {
    0: ("#B9BDC4", "first look, three cells"),
    1: ("#56B4E9", "first look, all cells"),
    2: ("#0072B2", "the same, then trained longer"),
}


def search():
    return searched(PLANE)


def image_search():
    return searched(IMAGES)


def searched(of: Search):
    rows = ranking(table(f"bench/{of.name}.csv"), of)
    settings = [name for name in of.space if name in rows]
    columns, best = 6, rows.first_look.min()
    top = 2.5 * best  # what is worse is drawn there
    lines = -(-len(settings) // columns)
    fig = plt.figure(figsize=(2.3 * columns, 2.6 + 2.1 * lines))
    grid = fig.add_gridspec(1 + lines, columns, height_ratios=[1.3] + [1] * lines)
    whole = fig.add_subplot(grid[0, :])
    in_turn = rows.sort_values("trial")
    dots(whole, in_turn.trial, in_turn, top)
    whole.step(
        in_turn.trial,
        in_turn.first_look.cummin(),
        where="post",
        color="#D55E00",
        linewidth=1.4,
        label=f"best so far after {of.short:,} steps",
    )
    done = rows[rows.rung == 2]
    whole.plot(
        done.trial,
        done.score,
        "*",
        color="#0072B2",
        markersize=10,
        label=f"{of.long:,} steps, three seeds",
    )
    whole.set(xlabel="candidate, 0: the defaults before the search", ylabel="score")
    for i, name in enumerate(settings):
        ax = fig.add_subplot(grid[1 + i // columns, i % columns], sharey=whole)
        part, allowed = rows.dropna(subset=name), of.space[name]
        if isinstance(allowed, list):
            places = part[name].map(allowed.index)
            dots(ax, places + 0.09 * (part.trial % 5 - 2), part, top)
            middle = part.first_look.groupby(places).median()
            ax.plot(middle.index, middle, "_", color="#D55E00", markersize=18, markeredgewidth=2)
            ax.set_xticks(range(len(allowed)), [str(value) for value in allowed])
            ax.set_xlim(-0.6, len(allowed) - 0.4)
        else:
            dots(ax, part[name], part, top)
            ax.set_xscale("log" if "log" in allowed else "linear")
            if "log" in allowed:
                ax.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
                ax.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
                ax.xaxis.set_minor_locator(plt.NullLocator())
        ax.set_xlabel(name.replace("_", " "))
        if i % columns:
            ax.tick_params(labelleft=False)
        else:
            ax.set_ylabel("score")
    whole.set(yscale="log", ylim=(0.9 * min([best, *done.score]), 1.04 * top))
    whole.yaxis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 7)))
    whole.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
    whole.yaxis.set_minor_locator(plt.NullLocator())
    fig.legend(*whole.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return fig


def dots(ax, places, rows: pd.DataFrame, top: float) -> None:
    """Candidates of a search by their first look, coloured by their rung; those that are worse than ``top`` as triangles there."""
    for rung, (color, name) in RUNGS.items():
        for far, marker in ((False, "o"), (True, "^")):
            own = (rows.rung == rung) & ((rows.first_look > top) == far)
            ax.plot(
                places[own],
                rows.first_look[own].clip(upper=top),
                marker,
                color=color,
                markersize=5,
                markeredgecolor="white",
                markeredgewidth=0.5,
                label=None if far else name,
            )


def time():
    rows = table("bench/speed.csv").query("part == 'sampling' and contender == 'eager'")
    fig, ax = plt.subplots(figsize=(6.4, 4.2))
    colors = ("#0072B2", "#56B4E9", "#D55E00", "#E69F00")
    for (network, batch), color, marker in zip(
        rows.groupby(["network", "batch"]).groups, colors, "osD^"
    ):
        found = rows[(rows.network == network) & (rows.batch == batch)].sort_values("nfe")
        ax.plot(
            found.nfe, found.ratio, marker=marker, color=color, label=f"{network}, {batch} at once"
        )
    ends = [1, rows.nfe.max()]
    ax.plot(
        ends,
        ends,
        color=plotting.METHOD_COLORS["floor"],
        linewidth=1,
        zorder=0,
        label="proportional",
    )
    ax.set(
        xscale="log",
        yscale="log",
        xticks=sorted(set(rows.nfe)),
        xticklabels=[f"{n:g}" for n in sorted(set(rows.nfe))],
        xlabel="network calls",
        ylabel="time / time of one call, CPU",
    )
    ax.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
    ax.minorticks_off()
    ax.legend()
    return fig


def trajectories():
    path, angle = ifl.RectifiedFlow(), torch.arange(8, dtype=torch.float64) * (torch.pi / 4)
    flow = analytic.MixtureFlow(path, 2**0.5 * torch.stack([angle.cos(), angle.sin()], 1), std=0.1)
    z = next(ifl.sampling.initial_noise(plane_model("integral"), 40, 3)).double()
    times = torch.linspace(1, 0, 41).tolist()
    exact = [z]
    for t, s in zip(times, times[1:]):
        exact.append(flow.flow_map(x=exact[-1], t=t, s=s, tolerance=1e-6))
    exact = torch.stack(exact)
    model, velocity = plane_model("integral"), plane_model("velocity")
    with torch.no_grad():
        ends = [
            model.jump(x=z.float(), t=torch.ones(len(z)), s=torch.full((len(z),), s)) for s in times
        ]
    jumps = torch.stack(ends)
    euler = ifl.sample(velocity, 40, 4, "euler", 3, trajectory=True).trajectory
    fig, axes = plt.subplots(1, 3, figsize=(11.5, 4.1))
    for ax, walk, title, color in (
        (axes[0], exact, "exact flow", "#3C4048"),
        (axes[1], euler, "velocity, 4 Euler steps", "#D55E00"),
        (axes[2], jumps, "integral: each point one jump", "#0072B2"),
    ):
        ax.plot(*walk.permute(2, 0, 1).numpy(), color=color, linewidth=0.9, alpha=0.7)
        ax.scatter(*walk[0].T, s=9, color="#8A8F98", zorder=3)
        ax.scatter(*walk[-1].T, s=13, color=color, zorder=4)
        ax.set(xlim=(-3, 3), ylim=(-3, 3), xticks=[], yticks=[], title=title, aspect="equal")
        ax.spines[:].set_visible(False)
    return fig


def image_quality():
    rows = table("images.csv")
    fig, axes = plt.subplots(1, 4, figsize=(14, 3.6))
    for ax, (metric, name) in zip(
        axes,
        (
            ("frechet", "Frechet distance"),
            ("kernel", "kernel distance"),
            ("precision", "precision"),
            ("recall", "recall"),
        ),
    ):
        part = rows[rows.metric == metric]
        for path in PATH_LABELS:
            for method in ("euler", "map"):
                found = part[(part.path == path) & (part.method == method)]
                if len(found):
                    shown = plotting.method_name(path, method)
                    band(
                        ax,
                        found,
                        shown,
                        plotting.METHOD_COLORS[shown],
                        "o" if method == "map" else "s",
                    )
        floor = part[part.method == "floor"].value.mean()
        if metric in ("frechet", "kernel"):  # far below: in words
            ax.text(
                0.98,
                0.95,
                f"floor {floor:.2g}",
                transform=ax.transAxes,
                ha="right",
                va="top",
                fontsize=9,
                color="#6B7280",
            )
        else:
            ax.axhline(floor, color=plotting.METHOD_COLORS["floor"], linewidth=1, zorder=0)
        nfe_axis(ax, (1, 2, 4, 8, 16, 32), log_y=metric in ("frechet", "kernel"))
        ax.set(title=name, xlabel="network calls")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


def image_samples():
    columns = [("euler", 1), ("euler", 4), ("euler", 8), ("map", 1), ("map", 2)]
    fig, axes = plt.subplots(len(PATH_LABELS), len(columns), figsize=(13, 6.0))
    for line, path in zip(axes, PATH_LABELS):
        for ax, (method, nfe) in zip(line, columns):
            kind = "integral" if method == "map" else "velocity"
            model = zoo.pretrained(f"{path}_{kind}", REFERENCE / "checkpoints")
            plotting.image_grid(ifl.sample(model, 24, nfe, method, 5).x, ax, columns=6)
            what = "jump" if method == "map" else "Euler step"
            ax.set_title(f"{PATH_LABELS[path]}, {nfe} {what}{'s' * (nfe > 1)}", fontsize=10)
    return fig


def image_methods():
    rows = table("image_methods.csv").query("dataset == 'fashion_mnist' and metric == 'frechet'")
    kinds = [
        (objective, "none", name, method)
        for (objective, method), (name, *_) in METHODS.items()
        if method != "heun"
    ]
    kinds.insert(2, ("IntegralIdentity", "self", "integral identity, self", "map"))
    kinds += [
        ("X0Regression", rule, f"recipe, {name}", "map" if rule == "none" else "anchor")
        for rule, name in RULES.items()
    ]
    shades = {1: "#0072B2", 2: "#56B4E9", 8: "#E69F00", 32: "#D55E00"}
    fig, axes = plt.subplots(1, len(PATH_LABELS), figsize=(12.5, 4.6), sharey=True, sharex=True)
    for ax, path in zip(axes, PATH_LABELS):
        for i, (objective, anchor, _, method) in enumerate(kinds):
            found = rows[
                (rows.path == path)
                & (rows.objective == objective)
                & (rows.anchor == anchor)
                & (rows.method == method)
            ]
            for k, (nfe, color) in enumerate(shades.items()):
                values = found[found.nfe == nfe].value.clip(upper=LARGEST)
                lift = i + 0.18 * (k - 1.5)
                ax.plot(
                    values,
                    [lift] * len(values),
                    "o",
                    color=color,
                    markersize=3.5,
                    alpha=0.5,
                    markeredgewidth=0,
                )
                ax.plot(
                    [values.mean()],
                    [lift],
                    "|",
                    color=color,
                    markersize=9,
                    markeredgewidth=2,
                    label=f"{nfe} call{'s' * (nfe > 1)}",
                )
        ax.set(
            xscale="log",
            title=PATH_LABELS[path],
            xlabel="Frechet distance",
            yticks=range(len(kinds)),
            yticklabels=[name for _, _, name, _ in kinds],
        )
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
        ax.minorticks_off()
        ax.grid(axis="x")
    axes[0].invert_yaxis()
    handles, names = axes[0].get_legend_handles_labels()
    shown = dict(zip(names, handles))
    fig.legend(shown.values(), shown, loc="outside lower center", ncols=4)
    return fig


def cost():
    rows = over_floor(table("plane.csv")).query(
        "nfe == 1 and anchor == 'none' and objective != 'X0Regression'"
    )
    runs = json.loads((REFERENCE / "plane.manifest.json").read_text(encoding="utf-8"))["runs"]
    rows = rows.assign(
        evaluations=[
            runs[run]["calls_per_step"] * step for run, step in zip(rows.run_id, rows.step)
        ]
    )
    fig, axes = plt.subplots(1, len(PATH_LABELS), figsize=(12, 4.2), sharey=True)
    for ax, path in zip(axes, PATH_LABELS):
        for (objective, method), (name, color, marker) in METHODS.items():
            found = rows[
                (rows.path == path) & (rows.objective == objective) & (rows.method == method)
            ]
            cells = found.groupby(["evaluations", "dataset"]).value.mean().unstack().dropna()
            if cells.empty:
                continue
            for evaluations, sets in cells.iterrows():
                ax.plot(
                    [evaluations / 1000] * len(sets),
                    sets,
                    marker,
                    color=color,
                    markersize=5,
                    alpha=0.45,
                    markeredgewidth=0,
                )
            ax.plot(
                cells.index / 1000,
                cells.median(axis=1),
                color=color,
                marker=marker,
                markersize=9,
                label=name,
            )
        ax.axhline(1, color=plotting.METHOD_COLORS["floor"], linewidth=1, zorder=0)
        ax.set(
            yscale="log",
            title=PATH_LABELS[path],
            xlabel="training, 1,000 network batches",
            xlim=(0, 50),
        )
        ax.set_yticks([1, 2, 5, 10], ["1", "2", "5", "10"])
        ax.minorticks_off()
    axes[0].set_ylabel("$W_2$ / floor, one call")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(METHODS))
    return fig


FIGURES = (
    plane_quality,
    anchor_stability,
    anchor_collapse,
    self_anchor,
    theorem,
    trajectories,
    image_quality,
    image_samples,
    image_methods,
    tuning,
    plane_tuning,
    search,
    image_search,
    cost,
    time,
)


def main(names) -> int:
    """Draw into results/reference/figures. 2 for a name that is not known."""
    known = {figure.__name__: figure for figure in FIGURES}
    if not set(names) <= set(known):
        print(f"expected {', '.join(known)}; got {' '.join(names)}", file=sys.stderr)
        return 2
    plotting.use_style()
    for name in names or known:
        try:
            fig = known[name]()
        except FileNotFoundError as error:
            print(f"{name}: left out, {error}")
            continue
        file, png = REFERENCE / "figures" / f"reference-{name}.png", io.BytesIO()
        fig.savefig(png, format="png", dpi=110)
        write_atomic(file, png.getvalue())
        plt.close(fig)
        print(file.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
