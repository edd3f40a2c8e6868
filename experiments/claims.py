"""Every published claim and what our tables say of it: ``python -m experiments.claims`` writes results/reference/claims.csv.

A claim has its statement in plain words, where it is made, what would decide it, and a function that reads tables of
results/reference and gives the measurement and the verdict: reproduced, not reproduced, partly, not testable here, or open
(no committed run decides it yet). No figure is typed here: change a table, and the verdicts follow.

Where a claim speaks of Integration Flow it is judged on the one that works, trained with the integral identity; the recipe
as published has claims of its own, ``recipe-...``, one for each reading of its anchor. Sources: "paper" is arXiv 2504.20179
as the available sources describe it, "article" the Japanese article on it, with its section.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from scipy.stats import t as student

from experiments.common import REFERENCE
from iflow_lib import data, plotting, zoo
from iflow_lib.io import write_atomic
from iflow_lib.metrics import interval
from iflow_lib.objectives import ANCHORS

VERDICTS = ("reproduced", "not reproduced", "partly", "not testable here", "open")
IMAGES, PATH_LABELS = "fashion_mnist", plotting.PATH_LABELS


class MissingRuns(Exception):
    """Of a table; names it."""


@dataclass(frozen=True)
class Claim:
    """measure: -> (measurement, verdict), or MissingRuns. evidence: tables, from the root of the checkout, and in brackets
    a pattern of the run ids; notebooks, and after a comma the heading of the cell. picture: a figure of
    experiments/make_figures.py, or "none"."""

    id: str
    statement: str
    source: str
    decides: str
    evidence: str
    measure: Callable[[], tuple[str, str]]
    picture: str = "none"

    def judge(self) -> tuple[str, str]:
        """(measurement, verdict), "open" while runs are missing."""
        try:
            return self.measure()
        except MissingRuns as error:
            return f"runs are missing in {error}", "open"


def table(name: str) -> pd.DataFrame:
    return pd.read_csv(REFERENCE / name)


def graded(holds: list[bool]) -> str:
    """All, none or some."""
    return "reproduced" if all(holds) else "partly" if any(holds) else "not reproduced"


def plane(step: int) -> pd.DataFrame:
    """Rows of plane.csv of one comparison, W2 as multiples of the set's mean floor. MissingRuns if not all are there."""
    rows = table("plane.csv")
    floor = rows[rows.method == "floor"].groupby("dataset").value.mean()
    rows = rows[rows.step == step].copy()
    distance = rows.metric == "w2"
    rows.loc[distance, "value"] /= rows.dataset.map(floor)
    kinds = 4 if step == zoo.PLANE_STEPS else 2 + len(ANCHORS)
    short = rows[~((rows.objective == "X0Regression") & (rows.step == zoo.PLANE_STEPS))]
    seeds = short.groupby(["dataset", "path", "objective", "anchor"]).seed.nunique()
    if len(seeds) != 5 * 3 * kinds or seeds.min() < 3:
        raise MissingRuns(PLANE)
    return rows


def images_in_small() -> pd.DataFrame:
    """Rows of image_methods.csv on Fashion-MNIST. MissingRuns if not all are there."""
    rows = table("image_methods.csv").query("dataset == @IMAGES and method != 'floor'")
    seeds = rows.groupby(["path", "objective", "anchor"]).seed.nunique()
    if len(seeds) != 3 * len(zoo.KINDS) or seeds.min() < 3:
        raise MissingRuns(SMALL)
    return rows


def recipe(part: str) -> pd.DataFrame:
    """Rows of a part of bench/recipe.csv."""
    return table("bench/recipe.csv").query("part == @part")


def quality() -> dict:
    """Means over seeds of the velocity and the integral identity: (data set, path, method, nfe) -> W2 / floor in the plane,
    Frechet distance on images."""
    rows = pd.concat(
        [
            plane(zoo.PLANE_STEPS).query("metric == 'w2'"),
            table("images.csv").query("metric == 'frechet' and nfe == nfe"),
        ]
    )
    rows = rows[rows.objective.isin(["FlowMatching", "IntegralIdentity"])].astype({"nfe": int})
    return rows.groupby(["dataset", "path", "method", "nfe"]).value.mean().to_dict()


def compared(ours, theirs, digits: str = ".2f") -> tuple[str, list[float]]:
    """Ratios of two functions of (quality, data set, path), on five sets and on images, three paths each; and words."""
    found, said = quality(), []
    ratios = {
        (dataset, path): ours(found, dataset, path) / theirs(found, dataset, path)
        for dataset in (*data.PLANE, IMAGES)
        for path in PATH_LABELS
    }
    for path, shown in PATH_LABELS.items():
        cells = [ratios[dataset, path] for dataset in data.PLANE]
        said.append(
            f"{shown} {min(cells):{digits}} to {max(cells):{digits}}, "
            f"Fashion-MNIST {ratios[IMAGES, path]:{digits}}"
        )
    return "five sets in the plane: " + "; ".join(said), list(ratios.values())


def euler(found: dict, dataset: str, path: str, nfe: int | None = None) -> float:
    """Distance of the velocity model after ``nfe`` Euler steps, None: after the most that were measured."""
    return found[
        dataset,
        path,
        "euler",
        nfe or max(key[3] for key in found if key[:3] == (dataset, path, "euler")),
    ]


# ---------------------------------------------------------------- judgements, in the order of CLAIMS
def one_step_close_to_many() -> tuple[str, str]:
    said, ratios = compared(
        lambda q, d, p: q[d, p, "map", 1], lambda q, d, p: euler(q, d, "rectified")
    )
    return f"one jump / 100 Euler steps on the rectified path (32 on images), {said}", graded(
        [r <= 1.25 for r in ratios]
    )


def recipe_without_anchor() -> tuple[str, str]:
    tried = recipe("search").query("rule == 'none'")
    ends = (
        table("bench/exactness.csv")
        .query("objective == 'X0Regression'")
        .groupby("quantity")
        .relative_rms
    )
    mean, flow = ends.mean()["jump_is_data_mean"], ends.mean()["jump_is_flow_map"]
    images = images_of_recipe("none")
    return (
        f"its jump from t_max on Gaussian data, relative RMS distance to the mean of the data {mean:.2f}, to the exact "
        f"flow map {flow:.2f} (4 paths, 2 and 32 dimensions, 3 seeds); eight Gaussians, {tried.setting.nunique()} "
        f"settings: its samples have at most {tried.spread.max():.2f} of the spread of the data, W2 / floor at least "
        f"{tried.w2_over_floor.min():.1f}; {images[0]}",
        graded(
            [
                not (
                    ends.max()["jump_is_data_mean"] < 0.15 and ends.min()["jump_is_flow_map"] > 0.9
                ),
                tried.w2_over_floor.min() <= 1.5,
                images[1],
            ]
        ),
    )


def self_anchor_accuracy() -> tuple[str, str]:
    rows = plane(zoo.ANCHOR_STEPS)
    rows = rows[(rows.objective == "IntegralIdentity") & (rows.nfe == 1)]
    pairs = rows.pivot(index=["dataset", "path", "seed"], columns="anchor", values="value")
    apart = pairs["self"] - pairs["none"]
    wide = table("bench/self_anchor.csv").pivot(
        index=["dataset", "path", "nfe", "seed"], columns="anchor", values="w2"
    )
    cells = (
        (wide["self"] - wide["none"])
        .groupby(["dataset", "path", "nfe"])
        .agg(["mean", "std", "count"])
    )
    half = cells["std"] * student.ppf(0.975, cells["count"] - 1) / cells["count"] ** 0.5
    better, worse = int((cells["mean"] + half < 0).sum()), int((cells["mean"] - half > 0).sum())
    images = images_in_small().query(
        "objective == 'IntegralIdentity' and nfe == 1 and metric == 'frechet'"
    )
    images = images.pivot(index=["path", "seed"], columns="anchor", values="value")
    share = images["self"] / images["none"] - 1
    all_better, gain = better > 0 and worse == 0, apart.mean() + interval(apart) < 0
    seen = share.mean() + interval(share) < 0
    return (
        f"W2 with the anchor minus without, equal cost and network calls, {len(cells)} comparisons of 3 seeds: better "
        f"by more than the 95 % interval in {better}, worse in {worse}, mean {cells['mean'].mean():+.3f}; equal steps, "
        f"one call, 5 sets, 3 paths, W2 / floor: {apart.mean():+.3f} ± {interval(apart):.3f} ({len(apart)} pairs), "
        f"Fashion-MNIST, Frechet: {100 * share.mean():+.0f} ± {100 * interval(share):.0f} % ({len(share)} pairs)",
        "reproduced"
        if all_better and gain and seen
        else "partly"
        if better or gain or seen
        else "not reproduced",
    )


def unified() -> tuple[str, str]:
    exact = table("bench/exactness.csv").query(
        "objective == 'IntegralIdentity' and quantity == 'flow_map'"
    )
    error = exact.groupby(["path", "dim"]).relative_rms.mean().groupby("path").max()
    said = ", ".join(f"{path} {100 * value:.1f} %" for path, value in error.items())
    return (
        f"one objective and one network, largest relative RMS error of the jump against the exact flow map: {said}",
        graded([value < 0.06 for value in error]),
    )


def cutting_nfe() -> tuple[str, str]:
    said, ratios = compared(lambda q, d, p: q[d, p, "map", 1], lambda q, d, p: q[d, p, "map", 8])
    return f"one jump / eight jumps of the same model, {said}", graded([r <= 1.25 for r in ratios])


def time_is_proportional() -> tuple[str, str]:
    rows = table("bench/speed.csv").query(
        "part == 'sampling' and contender == 'eager' and nfe == 50"
    )
    said = [f"{row.network}, {row.batch} at once: {row.ratio:.0f}" for row in rows.itertuples()]
    many = rows[rows.batch == 256].ratio
    return (
        "time of 50 Euler steps / of one jump, CPU: " + "; ".join(said),
        "reproduced"
        if (rows.ratio > 40).all()
        else "partly"
        if (many > 40).all()
        else "not reproduced",
    )


def solver_error() -> tuple[str, str]:
    said, ratios = compared(
        lambda q, d, p: min(euler(q, d, p, 1), euler(q, d, p, 4)), lambda q, d, p: q[d, p, "map", 1]
    )
    return f"the better of 1 and 4 Euler steps / one jump, same path, {said}", graded(
        [r > 1 for r in ratios]
    )


def better_than_rectified_flow() -> tuple[str, str]:
    said, ratios = compared(
        lambda q, d, p: euler(q, d, "rectified", 1), lambda q, d, p: q[d, p, "map", 1], ".1f"
    )
    return f"one step of 1-Rectified Flow / one jump (integral identity), {said}", graded(
        [r > 1 for r in ratios]
    )


def solvers_win_at_precision() -> tuple[str, str]:
    said, ratios = compared(
        lambda q, d, p: euler(q, d, p), lambda q, d, p: min(q[d, p, "map", n] for n in (1, 2, 4, 8))
    )
    return (
        f"100 Euler steps (32 on images) / the best of 1 to 8 jumps on the same path, {said} (on images the jumps had "
        "more training: the velocity model's, and as many steps again or twice as many, the last of them matched with "
        "the data)",
        graded([r < 1 for r in ratios]),
    )


def published_fid(setting: str) -> Callable[[], tuple[str, str]]:
    def judge() -> tuple[str, str]:
        row = (
            table("bench/cost.csv")
            .query("setting == @setting and objective == 'IntegralIdentity'")
            .iloc[0]
        )
        return (
            f"would take about {row.gpu_hours_assumed:,.0f} hours of an NVIDIA H200 at 30 % of its ceiling "
            f"({row.steps:,} steps of batch {row.batch:,}, {row.params / 1e6:.0f} M weights) and the data set: "
            f"`torchrun --standalone --nproc_per_node 8 -m experiments.published train {setting} --data FILE "
            "--folder RUN`, then the Inception FID (iflow_lib.metrics.inception_fid)",
            "not testable here",
        )

    return judge


def images_of_recipe(rule: str) -> tuple[str, bool]:
    """What the recipe makes of Fashion-MNIST in one call: words, and is it on every path at most 1.5 times as far from the
    test images as the integral identity after as many steps?"""
    rows = images_in_small().query("nfe == 1")
    mine = rows[(rows.objective == "X0Regression") & (rows.anchor == rule)]
    means = mine.groupby(["metric", "path"]).value.mean()
    ours = rows.query(
        "objective == 'IntegralIdentity' and anchor == 'none' and metric == 'frechet'"
    )
    ratio = means["frechet"] / ours.groupby("path").value.mean()
    copies = (
        f", their anchor explains {100 * means['copy'].mean():.0f} %" if "copy" in means else ""
    )
    return (
        f"on Fashion-MNIST, trained briefly, its samples are {ratio.min():.1f} to {ratio.max():.1f} times as far from "
        f"the data as the integral identity's (Frechet), with {means['spread'].mean():.2f} of their spread{copies}",
        bool((ratio <= 1.5).all()),
    )


def recipe_with(rule: str) -> Callable[[], tuple[str, str]]:
    def judge() -> tuple[str, str]:
        rows, search = plane(zoo.ANCHOR_STEPS), recipe("search")
        ours = rows[(rows.objective == "X0Regression") & (rows.anchor == rule) & (rows.nfe == 1)]
        cells = ours.groupby(["metric", "dataset", "path"]).value.mean()
        w2, tried = cells["w2"], search[search.rule == rule]
        best, images = tried.loc[tried.w2_over_floor.idxmin()], images_of_recipe(rule)
        said = (
            f"W2 / floor at one call {w2.min():.1f} to {w2.max():.1f} (5 sets, 3 paths, 3 seeds); its samples have "
            f"{cells['spread'].mean():.2f} of the spread of the data, their Gaussian anchor explains "
            f"{100 * cells['copy'].mean():.0f} % of them; of {tried.setting.nunique()} settings the best, "
            f"'{best.setting}', comes to {best.w2_over_floor:.1f} at {best.nfe:.0f} call{'s' * bool(best.nfe > 1)}; "
            + images[0]
        )
        return said, graded([w2.max() <= 1.5, tried.w2_over_floor.min() <= 1.5, images[1]])

    return judge


def anchor_stability() -> tuple[str, str]:
    rows = plane(zoo.ANCHOR_STEPS)
    rows = rows[rows.metric == "w2"]
    iterated = (
        rows[rows.method == "anchor"]
        .groupby(["anchor", "dataset", "path", "nfe"])
        .value.agg(lambda v: v.mean(skipna=False))
        .unstack("nfe")
    )
    worse = ~(iterated[100] <= iterated[1])  # NaN, not finite, is worse
    jumps = rows[(rows.objective == "IntegralIdentity") & (rows.nfe == 1)]
    spreads = jumps.groupby(["anchor", "dataset", "path"]).value.std().unstack("anchor")
    spread, apart = spreads.mean(), spreads["self"] - spreads["none"]
    shares = "; ".join(
        f"{rule} {100 * share:.0f} %" for rule, share in worse.groupby("anchor").mean().items()
    )
    said = (
        f"worse after 100 refinements than after one, or not finite, share of 15 cells: {shares}. Standard deviation "
        f"over seeds of the integral identity's W2 / floor at one call: {spread['none']:.3f} without, "
        f"{spread['self']:.3f} with its own estimate as the anchor (difference {apart.mean():+.3f} ± "
        f"{interval(apart):.3f})"
    )
    images = images_in_small().query("metric == 'frechet' and method == 'anchor'")
    images = (
        images.groupby(["anchor", "path", "nfe"])
        .value.agg(lambda v: v.mean(skipna=False))
        .unstack("nfe")
    )
    grown = ~(images[images.columns.max()] <= images[1])
    shares = "; ".join(f"{rule} in {n} of 3" for rule, n in grown.groupby("anchor").sum().items())
    return (
        f"{said}. Fashion-MNIST, Frechet distance after {images.columns.max():.0f} refinements above that after one: "
        f"{shares} paths",
        graded([not worse.any() and not grown.any(), spread["self"] < spread["none"]]),
    )


def theorem() -> tuple[str, str]:
    rows = recipe("theorem")
    mean = rows.groupby(["rule", "t", "quantity"]).value.mean().unstack("quantity")
    training = mean["best, anchor of training"] / mean["best, no anchor"]
    sampling = mean["best, anchor of sampling"] / mean["best, no anchor"]
    network = (mean["network, anchor of sampling"] / mean["network, no anchor"]).xs(1.0, level="t")
    holds = [bool((training <= 1.05).all()), bool((sampling <= 0.95).all())]
    return (
        "least squared error of x_0 knowing x_t and the anchor / knowing x_t: "
        f"{training.min():.2f} to {training.max():.2f} with the anchor of training, {sampling.min():.2f} to "
        f"{sampling.max():.2f} with the N(0, I) of sampling, which tells nothing; the network's own error at t_max "
        f"with that one is {network.min():.2f} to {network.max():.2f} times that of the network without an anchor",
        graded(holds),
    )


def straight() -> tuple[str, str]:
    rows = recipe("straight")
    mean = rows.groupby("quantity").value.mean()
    said = ", ".join(f"{name} {value:.3f}" for name, value in mean.items())
    return (
        f"S / E|Z_1 - Z_0|^2 of 1-Rectified Flow, eight Gaussians, 0 is straight: {said}",
        graded([mean["exact"] < 1e-3, mean["learned"] < 1e-3]),
    )


def better_than_others() -> tuple[str, str]:
    rows = plane(zoo.PLANE_STEPS)
    at_one = rows[
        (rows.metric == "w2")
        & (rows.nfe == 1)
        & (rows.method != "heun")
        & (rows.objective != "X0Regression")
    ]
    mean = at_one.groupby(["objective", "dataset", "path"]).value.mean().unstack("objective")
    ratio = mean.div(mean.IntegralIdentity, axis=0)
    said = []
    for name in ("FlowMatching", "ConsistencyTraining", "IntegralAdditivity"):
        less = ", ".join(
            f"{dataset} {PATH_LABELS[path]} {value:.2f}"
            for (dataset, path), value in ratio[name].items()
            if value <= 1
        )
        said.append(
            f"{name} {ratio[name].min():.2f} to {ratio[name].max():.2f}, more in {(ratio[name] > 1).sum()} of 15"
            + f" (not: {less})" * bool(less)
        )
    images = images_in_small().query("metric == 'frechet' and nfe == 1 and anchor == 'none'")
    means = images.groupby(["objective", "path"]).value.mean().unstack("objective")
    small = means.div(means.IntegralIdentity, axis=0)
    shown = "; ".join(
        f"{name} {small[name].min():.2f} to {small[name].max():.2f}"
        for name in ("FlowMatching", "ConsistencyTraining", "IntegralAdditivity")
    )
    return (
        "W2 at one call / that of the integral identity, 5 sets and 3 paths: "
        + "; ".join(said)
        + f"; Frechet distance likewise, Fashion-MNIST, trained briefly without a teacher: {shown}",
        graded(
            [
                bool((ratio[name] > 1).all() and (small[name] > 1).all())
                for name in ("FlowMatching", "ConsistencyTraining")
            ]
        ),
    )


def robust() -> tuple[str, str]:
    rows = plane(zoo.PLANE_STEPS)
    ours = rows[(rows.objective == "IntegralIdentity") & (rows.nfe == 1) & (rows.metric == "w2")]
    cells = ours.groupby(["path", "dataset"]).value.mean()
    said = "; ".join(
        f"{PATH_LABELS[path]} median {part.median():.2f}, worst {part.max():.2f} ({part.idxmax()[1]})"
        for path, part in cells.groupby("path")
    )
    return f"W2 / floor of one jump, five sets: {said}", graded(
        [bool(value <= 1.5) for value in cells]
    )


def sensitive() -> tuple[str, str]:
    images = table("bench/tuning.csv").query(
        "nfe == 1 and not variant.str.contains('model')", engine="python"
    )
    flat = table("bench/plane_tuning.csv")
    floor = flat[flat.method == "floor"].value.mean()
    flat = flat[(flat.method != "floor") & (flat.nfe == 1)].assign(
        variant=flat.run_id.str.split("/").str[0]
    )
    mean = flat.groupby("variant").value.mean() / floor
    if len(flat) < 3 * 3 * len(mean):
        raise MissingRuns("bench/plane_tuning.csv")
    widths = mean.index.str.startswith("width")
    asked = {
        f"Fashion-MNIST, Frechet distance of one jump, {steps:,} steps": part.set_index(
            "variant"
        ).frechet_to_train
        for steps, part in images.groupby("steps")
        if len(part) > 1
    }
    asked |= {
        "checkerboard, three paths and seeds, W2 / floor": mean[~widths],
        "the same, width of the network, 128 in the defaults": mean[
            widths | (mean.index == "defaults")
        ],
    }
    said = [
        f"{name}, {len(v)} settings: {v.min():.{digits}f} ({v.idxmin()}) to {v.max():.{digits}f} ({v.idxmax()})"
        for name, v in asked.items()
        for digits in (1 if "Frechet" in name else 2,)
    ]
    return "; ".join(said), graded([bool(v.max() > 1.5 * v.min()) for v in asked.values()])


PLANE, RECIPE = "results/reference/plane.csv", "results/reference/bench/recipe.csv"
SMALL = "results/reference/image_methods.csv"
METHODS, ANCHORED = f"steps{zoo.PLANE_STEPS}/*", f"steps{zoo.ANCHOR_STEPS}/*"
IN_THE_PLANE, UNTESTED = (
    "notebook 06, The reference results in the plane",
    "notebook 13, 5. What was not tested",
)
TRAINED, MEASURED = (
    "notebook 04, 3. What trained networks do",
    "notebook 04, 4. Collapse and copying, measured",
)
QUALITY = f"{PLANE} (*/{METHODS}); results/reference/images.csv (*); {IN_THE_PLANE}; notebook 06, Images: Fashion-MNIST"
EXACT = "results/reference/bench/exactness.csv"
CLAIMS = (
    Claim(
        "one-step-quality",
        "One network call gives a quality close to that of many solver steps.",
        "paper; article, 1, 4",
        "W2 or Frechet distance of one jump at most 1.25 times that of 100 Euler steps (32 "
        "on images) of a velocity model, same network",
        QUALITY,
        one_step_close_to_many,
        "image_quality",
    ),
    Claim(
        "recipe-no-anchor",
        "Regression on x_0 as published, read without an anchor, generates in one step.",
        "paper",
        "its jump from pure noise is a sample, not the mean of the data",
        f"{EXACT}; {RECIPE}; {SMALL} (*_x0_none/*); notebook 03, 7. Beside it: regression on $x_0$; {TRAINED}",
        recipe_without_anchor,
        "anchor_collapse",
    ),
    *(
        Claim(
            f"recipe-{rule}",
            f"Regression on x_0 as published, with {words} as the anchor, generates in one step.",
            "paper",
            "W2 of one call within 1.5 times the floor, and the output does not repeat the anchor",
            "; ".join(
                [
                    *(f"{file} (*_x0_{rule.replace('-', '_')}/*)" for file in (PLANE, SMALL)),
                    RECIPE,
                    TRAINED,
                    MEASURED,
                ]
            ),
            recipe_with(rule.replace("-", "_")),
            "anchor_collapse",
        )
        for rule, words in (
            ("shared", "one running estimate"),
            ("per-example", "a stored estimate of each example"),
            ("ground-truth", "each example itself"),
            ("self", "its own estimate"),
        )
    ),
    Claim(
        "anchor-accuracy",
        "Anchoring on an estimate of x_0 improves accuracy.",
        "paper; article, 2, 3",
        "W2 with a self-estimated anchor below that without, by more than its 95 % interval, at equal cost",
        f"results/reference/bench/self_anchor.csv; {PLANE} (*_integral*/{ANCHORED}); {SMALL} (*_integral*); "
        "notebook 04, 6. Self-anchoring that works",
        self_anchor_accuracy,
        "self_anchor",
    ),
    Claim(
        "anchor-stability",
        "Anchoring makes training and sampling more stable.",
        "paper; article, 2, 3",
        "rate of divergence and spread over seeds, with and without, the anchor iterated 1 to 100 times",
        f"{PLANE} (*/{ANCHORED}); {SMALL} (*_x0_*); {MEASURED}",
        anchor_stability,
        "anchor_stability",
    ),
    Claim(
        "anchor-theorem",
        "More information about the target never raises the least mean-squared error.",
        "paper",
        "the inequality during training, and at sampling time, where the anchor is noise",
        f'{RECIPE}; notebook 04, 5. "More information never raises the error"',
        theorem,
        "theorem",
    ),
    Claim(
        "unified",
        "One structure covers VE diffusion, rectified flow and PFGM++.",
        "paper; article, 3",
        "the same objective and network learn the exact flow map on every path, within 6 %",
        f"{EXACT}; notebook 02, 2. One flow, seen four times",
        unified,
        "plane_quality",
    ),
    Claim(
        "straight",
        "1-Rectified Flow is exactly straight without reflow.",
        "paper",
        "straightness of the exact and of the learned flow",
        f"{RECIPE}; notebook 02, 7. Eight Gaussians: exact, learned, reflowed",
        straight,
        "trajectories",
    ),
    Claim(
        "few-calls",
        "Quality falls little when the number of network calls is cut.",
        "article, 4",
        "one jump at most 1.25 times as far from the data as eight of the same model",
        QUALITY,
        cutting_nfe,
        "image_quality",
    ),
    Claim(
        "time",
        "Fewer network calls take proportionally less time.",
        "paper; article, 1",
        "50 calls take more than 40 times as long as one",
        "results/reference/bench/speed.csv; notebook 06, What does a call cost?",
        time_is_proportional,
        "time",
    ),
    Claim(
        "solver-error",
        "Solvers add up errors over few steps; the learned integral does not.",
        "article, 1, 2",
        "W2 of one jump below that of 1 and of 4 Euler steps",
        QUALITY,
        solver_error,
        "plane_quality",
    ),
    Claim(
        "better-than-rf",
        "At one step it is better than Rectified Flow.",
        "paper; article",
        "distance of one call, same network; in the plane also the same number of steps",
        QUALITY,
        better_than_rectified_flow,
        "image_samples",
    ),
    Claim(
        "better-than-others",
        "At one step it is better than PFGM++ and consistency models.",
        "paper; article",
        "distance of one call, same network and steps",
        f"{PLANE} (*/{METHODS}); {SMALL} (*); notebook 09, 6. Five sets, three paths, three seeds",
        better_than_others,
        "plane_quality",
    ),
    Claim(
        "robust",
        "It holds up under another data distribution and noise law.",
        "article, 5, names it as open",
        "W2 against the floor on five sets and three noise laws",
        f"{PLANE} (*_integral/{METHODS}); {IN_THE_PLANE}",
        robust,
        "plane_quality",
    ),
    Claim(
        "sensitive",
        "It is sensitive to hyper-parameters and capacity.",
        "article, 5",
        "spread over a search",
        "results/reference/bench/tuning.csv; results/reference/bench/plane_tuning.csv (*); docs/findings.md; "
        "notebook 13, 2. Each claim, its measurement and a picture",
        sensitive,
        "tuning",
    ),
    Claim(
        "precision",
        "Sequential solvers still win where the highest precision is needed.",
        "article, 5",
        "the best of 1 to 8 jumps against 100 Euler steps",
        QUALITY,
        solvers_win_at_precision,
        "plane_quality",
    ),
    Claim(
        "fid-cifar10",
        "One-step FID 2.86 (VE), 3.36 (rectified), 2.91 (PFGM++) on CIFAR-10.",
        "paper, abstract",
        "the Inception FID of 50,000 samples",
        f"results/reference/bench/cost.csv; docs/scaling.md; {UNTESTED}",
        published_fid("cifar10"),
    ),
    Claim(
        "fid-imagenet",
        "One-step FID 4.09 (VE), 4.35 (rectified), 4.15 (PFGM++) on ImageNet.",
        "paper, abstract",
        "the Inception FID of 50,000 samples; the available sources do not say the resolution",
        f"results/reference/bench/cost.csv; docs/scaling.md; {UNTESTED}",
        published_fid("imagenet64"),
    ),
)


def claims() -> pd.DataFrame:
    """The table: id, statement, source, decides, measurement, verdict, evidence, picture."""
    rows = []
    for claim in CLAIMS:
        measurement, verdict = claim.judge()
        picture = (
            "none"
            if claim.picture == "none"
            else f"results/reference/figures/reference-{claim.picture}.png"
        )
        rows.append(
            {
                "id": claim.id,
                "statement": claim.statement,
                "source": claim.source,
                "decides": claim.decides,
                "measurement": measurement,
                "verdict": verdict,
                "evidence": claim.evidence,
                "picture": picture,
            }
        )
    return pd.DataFrame(rows)


def main() -> None:
    found = claims()
    write_atomic(REFERENCE / "claims.csv", found.to_csv(index=False, lineterminator="\n"))
    print(found[["id", "verdict"]].to_string(index=False))


if __name__ == "__main__":
    main()
