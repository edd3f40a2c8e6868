"""Every published claim and what our tables say of it: ``python -m experiments.claims`` writes claims.csv and claim_rules.csv.

A claim is a sentence with parts that a table can decide. A part is a ``Rule``: what is measured, where, and the threshold. Every rule
is decided in the same way (``experiments.rules``), by its 95 % interval over training seeds. Where that crosses the threshold, where
there are fewer than three seeds, and where evidence is missing, there is no verdict: "undecided here", with the reason. No figure is
typed here: change a table, or add seeds to it, and the verdicts follow.

A claim is judged twice. *As described*: trained by regression on x_0 with an anchor, as the sources describe it, in five readings of
the anchor. *With MeanFlow's identity* (arXiv 2505.13447), the rule by which our models are trained, ``IntegralIdentity``. Where a
claim does not speak of one of the two, that one does not apply.

Sources: "paper" is arXiv 2504.20179. Its full text was not available. We read its abstract, summaries of it, and reviews of an earlier
version. "article" is the Japanese article on it, with its section.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from experiments.common import REFERENCE
from experiments.evidence import (
    BRIEF_IMAGES,
    BRIEF_PLANE,
    CONSISTENCY,
    EIGHT,
    EIGHT_JUMPS,
    FEW_STEPS,
    IMAGES_LONG,
    IN_PLANE,
    IN_WORDS,
    MANY_STEPS,
    OFF,
    ON_EIGHT,
    ONE,
    ONE_JUMP,
    ONE_STEP_PFGM,
    ONE_STEP_RF,
    OURS,
    PLANE,
    QUICK,
    READINGS,
    RECIPE,
    RECIPE_ONCE,
    RMS,
    SEVERAL,
    SEVERAL_JUMPS,
    SMALL,
    TIDY,
    VELOCITY,
    Contender,
    NoEvidence,
    Place,
    best_recipe,
    calls,
    compared,
    exists,
    geometric_mean,
    jumps,
    number,
    reading,
    recipe,
    table,
)
from experiments.rules import (
    AT_LEAST,
    AT_MOST,
    NO_VERDICT,
    NOT_REPRODUCED,
    PARTLY,
    REPRODUCED,
    UNDECIDED,
    Finding,
    Rule,
    best_of,
    combine,
    decide,
)
from iflow_lib import plotting, zoo
from iflow_lib.io import write_atomic

DOES_NOT_APPLY, NOT_TESTABLE, NO_CLAIM = "does not apply", "not testable here", "no claim"
RELEVANT, IRRELEVANT = "true, and relevant at sampling", "true, and irrelevant at sampling"
VERDICTS = (
    REPRODUCED,
    PARTLY,
    NOT_REPRODUCED,
    RELEVANT,
    IRRELEVANT,
    NO_VERDICT,
    NOT_TESTABLE,
    DOES_NOT_APPLY,
    NO_CLAIM,
)
#: The verdict of a claim with readings is that of the best one.
OF_ITS_READINGS = "of its readings"
#: The two ways in which a claim is judged: column of claims.csv -> heading.
COLUMNS = {"as_described": "as described", "with_meanflow_identity": "with MeanFlow's identity"}
PATH_LABELS = plotting.PATH_LABELS

# Thresholds. They are choices, and the same for both columns.
CLOSE = 1.25  # a distance at most this many times another is close to it
SHARE = 0.05  # so many more samples off the support are few
GENERATES = 1.5  # floors, or distances of the identity, within which a one-step generator lies
SAMPLE = 0.5  # relative distance to the mean of the data from which a jump is more than that mean
EXACT = 0.06  # relative RMS error of what has been learned
STRAIGHT = 1e-3  # of S / E|Z_1 - Z_0|^2
PROPORTIONAL = 40  # 50 calls take at least this many times as long as one
LOWER, NO_HIGHER = 0.95, 1.05  # from a twentieth on something is less, or more
SENSITIVE = 1.5  # largest over least distance among settings


# ---------------------------------------------------------------- rules


def against(
    place: Place,
    mine: Contender,
    theirs: Contender,
    direction: str,
    threshold: float,
    paths: tuple = zoo.PATH_NAMES,
) -> list[Rule]:
    """One contender's distance over another's, a rule for each metric. Of shares it is the difference, held against ``SHARE`` or 0."""
    rules = []
    cells = tuple(cell for cell in place.cells if cell[1] in paths)
    for metric in place.there():
        share = metric == OFF
        held = (SHARE if threshold == CLOSE else 0) if share else threshold
        quantity = f"{mine.said} {'minus' if share else '/'} {theirs.said}"
        try:
            (one, which), (two, other) = (who.get(place, metric, paths) for who in (mine, theirs))
            values, note = compared(one, two, difference=share, cells=cells)
            note = "; ".join(filter(None, [*dict.fromkeys([which, other]), note]))
        except NoEvidence as error:  # another metric may be there
            values, note = {}, str(error)
        told = {"values": values, "note": note, "difference": share}
        rules.append(Rule(place.said, IN_WORDS[metric], quantity, direction, held, **told))
    return rules


def over_floor(values: pd.Series) -> pd.Series:
    """W2 as multiples of its set's mean floor."""
    rows = table(PLANE, *TIDY)
    rows = rows[(rows.method == "floor") & (rows.metric == "w2")]
    floors = rows.groupby("dataset").value.mean()
    missing = set(values.index.get_level_values("dataset")) - set(floors.index)
    if missing:
        raise NoEvidence(f"{PLANE} has no floor of {', '.join(sorted(missing))}")
    return values / floors.reindex(values.index.get_level_values("dataset")).to_numpy()


def recipe_over_floor(rule: str, place: Place) -> list[Rule]:
    values, note = compared(over_floor(reading(place, "w2", rule)), cells=place.cells)
    return [Rule(place.said, "W2 / floor", "one call", AT_MOST, GENERATES, values, note=note)]


def mean_of_the_data() -> list[Rule]:
    """Is the jump of the recipe without an anchor a sample, or the mean of the data?"""
    rows = table(
        "bench/exactness.csv", "objective", "quantity", "path", "dim", "seed", "relative_rms"
    )
    rows = rows[(rows.objective == RECIPE) & (rows.quantity == "jump_is_data_mean")]
    values = worst(rows)
    where = f"Gaussian data, {rows.path.nunique()} paths, {in_dimensions(rows)}"
    quantity = "its jump from t_max to the mean of the data"
    return [Rule(where, "relative RMS distance", quantity, AT_LEAST, SAMPLE, values)]


def worst(rows: pd.DataFrame) -> dict:
    """The largest error of each seed that has every path and dimension."""
    wide = rows.pivot_table(index=["path", "dim"], columns="seed", values="relative_rms")
    return wide.dropna(axis=1).max().to_dict()


def in_dimensions(rows: pd.DataFrame) -> str:
    return f"{' and '.join(map(str, sorted(rows.dim.unique())))} dimensions"


def recipe_rows(part: str, *columns: str) -> pd.DataFrame:
    """Rows of a part of bench/recipe.csv."""
    rows = table("bench/recipe.csv", "part", *columns)
    rows = rows[rows.part == part]
    if rows.empty:
        raise NoEvidence(f"bench/recipe.csv has no part {part!r}")
    return rows


def fair_attempt(rule: str) -> str:
    """How hard we tried: every setting of a reading, and how its samples depend on its anchor."""
    tried = recipe_rows("search", "rule", "setting", "nfe", "w2_over_floor", "seed")
    tried = tried[tried.rule == rule]
    if tried.empty:
        raise NoEvidence(f"bench/recipe.csv has no search of {rule}")
    least, seeds = tried.loc[tried.w2_over_floor.idxmin()], tried.seed.nunique()
    said = (
        f"fair attempt: of {tried.setting.nunique()} settings on eight Gaussians the best, '{least.setting}', comes to "
        f"{least.w2_over_floor:.1f} floors at {calls(least.nfe)} ({seeds} seed{'s' * (seeds > 1)})"
    )
    spread = BRIEF_PLANE.get("spread", RECIPE, 1, anchor=rule).mean()
    said += f"; in the plane its samples have {spread:.2f} of the spread of the data"
    if rule != "none":
        copied = BRIEF_PLANE.get("copy", RECIPE, 1, anchor=rule).mean()
        said += f", and their Gaussian anchor explains {100 * copied:.0f} % of them"
    return said


def anchor_at_equal_cost() -> list[Rule]:
    """The identity with its own estimate, which it sees from the second call on."""
    rows = table("bench/self_anchor.csv", "dataset", "path", "anchor", "seed", "nfe", "w2")
    rows = rows[rows.nfe.isin(SEVERAL)].set_index(["dataset", "path", "nfe", "seed"])
    values, note = compared(*(rows[rows.anchor == anchor].w2 for anchor in ("self", "none")))
    quantity = "its own estimate / no anchor at 2, 4 and 8 calls, equal training cost"
    where = f"{rows.index.unique('dataset').size} sets in the plane"
    return [Rule(where, "W2", quantity, AT_MOST, LOWER, values, note=note)]


def spread_over_seeds(mine: list[Contender], alone: Contender) -> list[Rule]:
    """Spread over training seeds with an anchor, mean of several, minus that without.

    A spread needs many seeds, so the values are those of cells.
    """

    def spread(who: Contender) -> tuple[pd.Series, int]:
        values = over_floor(who.get(BRIEF_PLANE, "w2", zoo.PATH_NAMES)[0])
        groups = values.groupby(["dataset", "path"])
        return groups.std(), int(groups.size().min())

    theirs, least = spread(alone)
    found = [spread(who) for who in mine]
    apart = sum(one for one, _ in found) / len(found) - theirs
    seeds = min(least, *(n for _, n in found))
    note = f"{number(theirs.mean())} without; the interval is over {len(apart)} cells of {seeds} seeds each"
    named = mine[0].said if len(mine) == 1 else f"mean of the recipe with {len(mine)} anchors"
    how = {"seeds": seeds, "difference": True, "note": note}
    quantity, metric = f"{named} minus {alone.said}", "deviation of W2 / floor over training seeds"
    return [Rule(BRIEF_PLANE.said, metric, quantity, AT_MOST, 0, apart.to_dict(), **how)]


def theorem() -> list[Rule]:
    """The inequality is a theorem. What a table decides is whether it says anything where samples are made."""
    rows = recipe_rows("theorem", "rule", "t", "seed", "quantity", "value")
    wide = rows.pivot_table(index=["rule", "t", "seed"], columns="quantity", values="value")
    alone = wide["best, no anchor"]
    knows = (wide["best, anchor of training"] / alone).groupby("rule").mean()
    network = wide["network, anchor of sampling"] / wide["network, no anchor"]
    network = network.xs(1.0, level="t").groupby("rule").mean()
    sampling = (wide["best, anchor of sampling"] / alone).groupby("seed").agg(geometric_mean)
    note = (
        f"the inequality itself is the law of total variance; with the anchor of training the ratio is {knows.min():.2f} to "
        f"{knows.max():.2f}; the network's own error at t_max with the anchor of sampling is {network.min():.2f} to "
        f"{network.max():.2f} times that of the network without an anchor"
    )
    quantity = "knowing x_t and the anchor of sampling, N(0, I) / knowing x_t alone"
    how = {"values": sampling.to_dict(), "note": note}
    return [Rule("eight Gaussians", "least squared error of x_0", quantity, AT_MOST, LOWER, **how)]


def learned_on(path: str, objective: str, quantity: str, what: str) -> list[Rule]:
    """Largest relative RMS error of what an objective learns on a path."""
    columns = ("objective", "quantity", "path", "dim", "seed", "relative_rms")
    rows = table("bench/exactness.csv", *columns)
    rows = rows[(rows.objective == objective) & (rows.quantity == quantity) & (rows.path == path)]
    values = worst(rows)
    where = f"{PATH_LABELS[path]}, Gaussian data, the worse of {in_dimensions(rows)}"
    return [Rule(where, "relative RMS error", what, AT_MOST, EXACT, values)]


def straightness(which: str) -> list[Rule]:
    rows = recipe_rows("straight", "quantity", "seed", "value")
    after = rows[rows.quantity == "learned, after a reflow"].value.mean()
    values = rows[rows.quantity == which].set_index("seed").value.to_dict()
    how = {"values": values, "note": f"{number(after)} after a reflow"}
    quantity, metric = f"the {which} 1-Rectified Flow", "S / E|Z_1 - Z_0|^2, 0 is straight"
    return [Rule("eight Gaussians", metric, quantity, AT_MOST, STRAIGHT, **how)]


def proportional_time() -> list[Rule]:
    """The table has the median over repetitions and its interval."""
    columns = (
        "part",
        "network",
        "batch",
        "contender",
        "nfe",
        "ratio",
        "low",
        "high",
        "repetitions",
    )
    rows = table("bench/speed.csv", *columns)
    rows = rows[(rows.part == "sampling") & (rows.contender == "eager") & (rows.nfe == 50)]
    return [
        Rule(
            f"CPU, {row.network}, {row.batch} at once",
            "time",
            "50 calls / one, same network",
            AT_LEAST,
            PROPORTIONAL,
            unit="repetition",
            seeds=int(row.repetitions),
            known=(row.ratio, row.low, row.high),
        )
        for row in rows.itertuples()
    ]


TO_EXACT = "rms distance to the exact end"


def exact_ends() -> tuple[Place, str]:
    """Where ends were held against the exact ends of their trajectories, and the name of that metric there."""
    place = replace(ON_EIGHT, metrics=(RMS,))
    if exists(PLANE) and RMS in set(place.rows().metric):
        return place, RMS
    where = {"dataset": EIGHT, "path": "rectified"}
    metric = "rms_to_flow_map"
    return Place(
        "eight Gaussians, rectified", (QUICK,), ONE, (metric,), where, ("dataset", "path")
    ), metric


def several_jumps_to_exact() -> list[Rule]:
    place, metric = exact_ends()
    many, one = (who.get(place, metric, zoo.PATH_NAMES)[0] for who in (SEVERAL_JUMPS, ONE_JUMP))
    values, note = compared(many, one, cells=ONE)
    quantity = f"{SEVERAL_JUMPS.said} / one jump"
    return [Rule(place.said, TO_EXACT, quantity, AT_MOST, NO_HIGHER, values, note=note)]


def highest_precision() -> list[Rule]:
    """How near samples are to the exact ends of their trajectories: of the most Euler steps, and of the best number of jumps."""
    place, metric = exact_ends()
    steps = place.get(metric, VELOCITY, None, method="euler")
    tried = [place.get(metric, OURS, n, method="map") for n in (1, *SEVERAL)]
    best = pd.concat(tried, axis=1).dropna().min(axis=1)
    values, note = compared(steps, best, cells=ONE)
    quantity = "the most Euler steps / the best of 1 to 8 jumps"
    note = "; ".join(filter(None, [f"{steps.mean():.3f} / {best.mean():.3f}", note]))
    return [Rule(place.said, TO_EXACT, quantity, AT_MOST, 1, values, note=note)]


STUDENTS = {
    "2-RF": "one Euler step of 2-Rectified Flow",
    "distilled 1-RF": "distilled 1-Rectified Flow",
    "distilled 2-RF": "distilled 2-Rectified Flow",
}


def student(name: str) -> pd.Series:
    """W2 / floor of one call of a student of the one teacher, from notebook 07."""
    rows, run = table(QUICK, "run_id", *TIDY), f"07_rectified_flow_and_reflow/{name}"
    rows = rows[(rows.run_id == run) & (rows.nfe == 1) & (rows.metric == "w2_over_floor")]
    if rows.empty:
        raise NoEvidence(f"{QUICK} has no run {run}")
    return rows.groupby(["dataset", "path", "seed"]).value.mean()


def one_step_form(name: str) -> list[Rule]:
    """Rectified Flow's own ways to one step, beside the integral identity with the same teacher."""
    values, note = compared(student(name), student("integral, taught"), cells=ONE)
    cost = "which cost less" if name == "2-RF" else "equal training cost"
    quantity = f"{STUDENTS[name]} / one jump, of one teacher, {cost}"
    return [Rule("eight Gaussians, rectified", "W2", quantity, AT_LEAST, 1, values, note=note)]


def one_step_form_and_recipe(name: str) -> list[Rule]:
    mine, which = RECIPE_ONCE.get(ON_EIGHT, "w2", zoo.PATH_NAMES)
    values, note = compared(student(name), over_floor(mine).droplevel("step"), cells=ONE)
    quantity = f"{STUDENTS[name]} / {RECIPE_ONCE.said}, with the teacher's about equal cost"
    note = "; ".join(filter(None, [which, note]))
    return [Rule(ON_EIGHT.said, "W2", quantity, AT_LEAST, 1, values, note=note)]


def settings_in_plane(widths: bool) -> list[Rule]:
    """Largest over least distance among settings, the two chosen by their means over seeds and paths."""
    name = "bench/plane_tuning.csv"
    rows = table(name, "run_id", "path", "seed", "nfe", "method", "value")
    rows = rows[(rows.method != "floor") & (rows.nfe == 1)]
    rows = rows.assign(variant=rows.run_id.str.split("/").str[0])
    of_width = rows.variant.str.startswith("width")
    rows = rows[of_width | (rows.variant == "defaults") if widths else ~of_width]
    wide = rows.pivot_table(index=["path", "seed"], columns="variant", values="value")
    incomplete = wide.columns[wide.isna().any()]
    if len(incomplete):
        raise NoEvidence(f"{name} lacks runs of {incomplete[0]}")
    means = geometric_mean(wide)
    most, least = means.idxmax(), means.idxmin()
    values, _ = compared(wide[most], wide[least])
    what = "widths of the network" if widths else "settings of the training and of the inputs"
    quantity = f"one jump, largest / least among {len(means)} {what}"
    note = f"{most} / {least}"
    return [
        Rule("checkerboard, three paths", "W2", quantity, AT_LEAST, SENSITIVE, values, note=note)
    ]


def settings_on_images() -> list[Rule]:
    """The same among trainings of one length, of which there are the most settings."""
    rows = table("bench/tuning.csv", "variant", "steps", "nfe", "frechet_to_train")
    rows = rows[(rows.nfe == 1) & ~rows.variant.str.contains("model")]
    steps = rows.groupby("steps").size().idxmax()
    found = rows[rows.steps == steps].set_index("variant").frechet_to_train
    quantity = f"one jump, largest / least among {len(found)} settings of {steps:,} steps"
    note, values = f"{found.idxmax()} / {found.idxmin()}", {0: found.max() / found.min()}
    return [
        Rule("Fashion-MNIST", "Frechet distance", quantity, AT_LEAST, SENSITIVE, values, note=note)
    ]


def settings_of_recipe() -> list[Rule]:
    """The same of the recipe: of each reading the settings furthest apart, and the mean of the readings."""
    rows = recipe_rows("search", "rule", "setting", "seed", "nfe", "w2_over_floor")
    rows = rows[(rows.nfe == 1) & rows.rule.isin(READINGS)]
    found = rows.groupby(["seed", "rule"]).w2_over_floor
    apart = (found.max() / found.min()).groupby("seed").agg(geometric_mean)
    quantity = (
        f"one call, largest / least among the settings of an anchor (mean of {len(READINGS)})"
    )
    return [
        Rule("eight Gaussians, rectified", "W2", quantity, AT_LEAST, SENSITIVE, apart.to_dict())
    ]


def noise_laws() -> str:
    """What there is on another distribution and noise law, without a verdict."""
    mine = over_floor(ONE_JUMP.get(IN_PLANE, "w2", zoo.PATH_NAMES)[0])
    cells = mine.groupby(["path", "dataset"]).mean().groupby("path")
    shown = ", ".join(
        f"{PATH_LABELS[path]} {part.min():.2f} to {part.max():.2f}" for path, part in cells
    )
    return (
        "the article names this as open, so there is nothing to judge. W2 / floor of one jump with the identity on "
        f"{mine.index.unique('dataset').size} sets: {shown}. These are two noise laws, Gaussian and that of PFGM++"
    )


def published_fid(setting: str) -> str:
    """What it would take to test a published FID."""
    columns = ("setting", "objective", "gpu_hours_assumed", "steps", "batch", "params")
    rows = table("bench/cost.csv", *columns)
    row = rows[(rows.setting == setting) & (rows.objective == OURS)].iloc[0]
    return (
        f"would take about {row.gpu_hours_assumed:,.0f} hours of an NVIDIA H200 at 30 % of its ceiling "
        f"({row.steps:,} steps of batch {row.batch:,}, {row.params / 1e6:.0f} M weights) and the data set: "
        f"`torchrun --standalone --nproc_per_node 8 -m experiments.published train {setting} --data FILE "
        "--folder RUN`, then the Inception FID (iflow_lib.metrics.inception_fid)"
    )


# ---------------------------------------------------------------- claims


@dataclass(frozen=True)
class Claim:
    """A sentence and what decides it.

    Args:
        id: Its name.
        statement: The sentence.
        source: Who says it.
        described: Parts that judge it as described, each a function that gives rules, with its arguments; or a verdict that needs none.
        identity: The same with MeanFlow's identity.
        evidence: Tables, from the root of the checkout, and in brackets a pattern of the run ids; notebooks, and after a comma the
            heading of the cell.
        picture: A figure of experiments/make_figures.py, or "none".
        part_of: The claim that this is a reading of.
        aside: What else is worth saying, from a table: a function and its arguments.
        words: What verdicts are called here.
    """

    id: str
    statement: str
    source: str
    described: tuple | str
    identity: tuple | str
    evidence: str
    picture: str = "none"
    part_of: str = ""
    aside: tuple = ()
    words: dict = field(default_factory=dict)

    def parts(self, column: str) -> tuple | str:
        return self.described if column == "as_described" else self.identity

    def rules(self, column: str) -> list[tuple[Rule | None, Finding]]:
        """Each rule of a column and what it comes to. Where evidence is missing there is no rule, and the finding names it."""
        parts, found = self.parts(column), []
        for make, *arguments in () if isinstance(parts, str) else parts:
            try:
                rules = make(*arguments)
                found += [(rule, decide(rule)) for rule in rules]
            except NoEvidence as error:
                found.append((None, Finding(UNDECIDED, reason=str(error))))
        return found


# ---------------------------------------------------------------- the list

IN_THE_PLANE = "notebook 06, The reference results in the plane"
ON_IMAGES = "notebook 06, Images: Fashion-MNIST"
TRAINED = "notebook 04, 3. What trained networks do"
COPYING = "notebook 04, 4. Collapse and copying, measured"
FORMS = "notebook 07, 5. What one call gives"
UNTESTED = "notebook 13, 6. What was not tested"
R = "results/reference"
RECIPES = f"{R}/{PLANE} (*_x0_*); {R}/{SMALL} (*_x0_*)"
QUALITY = (
    f"{R}/{PLANE} (*/steps{zoo.PLANE_STEPS}/*); {R}/images.csv (*); {R}/{SMALL} (fashion_mnist*)"
)
EXACTNESS, SEARCHED = f"{R}/bench/exactness.csv", f"{R}/bench/recipe.csv"
ABSTRACT, REVIEWED = "paper, its abstract", "paper, as reviews and summaries describe it"
#: Where Integration Flows are compared, and where the recipe is, with as many steps on both sides.
IDENTITY_PLACES, RECIPE_PLACES = (IN_PLANE, IMAGES_LONG, BRIEF_IMAGES), (ON_EIGHT, BRIEF_IMAGES)
ANCHORED = tuple(rule for rule in READINGS if rule != "none")
ESTIMATES = ("shared", "per_example", "self")
LEARNS = (
    (RECIPE, "posterior_mean", "what regression on x_0 learns, E[x_0 | x_t]"),
    (OURS, "flow_map", "the jump against the exact flow map"),
)


def everywhere(places: tuple, *how) -> tuple:
    """The parts of one comparison in several places."""
    return tuple((against, place, *how) for place in places)


CLAIMS = (
    Claim(
        "one-step-quality",
        "One network call gives a quality close to that of many solver steps.",
        f"{ABSTRACT}; article, 1, 4",
        everywhere(RECIPE_PLACES, RECIPE_ONCE, MANY_STEPS, AT_MOST, CLOSE),
        everywhere(IDENTITY_PLACES, ONE_JUMP, MANY_STEPS, AT_MOST, CLOSE),
        f"{QUALITY}; {IN_THE_PLANE}; {ON_IMAGES}",
        "image_quality",
    ),
    Claim(
        "recipe",
        "Regression on x_0 with an anchor generates in one step.",
        REVIEWED,
        OF_ITS_READINGS,
        DOES_NOT_APPLY,
        f"{RECIPES}; {SEARCHED}; {TRAINED}",
        "anchor_collapse",
    ),
    *(
        Claim(
            f"recipe-{rule.replace('_', '-')}",
            f"Regression on x_0 with {words}{' as the anchor' * (rule != 'none')} generates in one step.",
            REVIEWED,
            (
                (recipe_over_floor, rule, BRIEF_PLANE),
                (recipe_over_floor, rule, ON_EIGHT),
                (against, BRIEF_IMAGES, recipe(rule), ONE_JUMP, AT_MOST, GENERATES),
                *([(mean_of_the_data,)] if rule == "none" else []),
            ),
            DOES_NOT_APPLY,
            "; ".join(
                [
                    *(f"{R}/{file} (*_x0_{rule}/*)" for file in (PLANE, SMALL)),
                    *([EXACTNESS] if rule == "none" else []),
                    SEARCHED,
                    TRAINED,
                    COPYING,
                ]
            ),
            "anchor_collapse",
            part_of="recipe",
            aside=(fair_attempt, rule),
        )
        for rule, words in READINGS.items()
    ),
    Claim(
        "anchor-accuracy",
        "Anchoring on an estimate of x_0 improves accuracy.",
        f"{ABSTRACT}; article, 2, 3",
        tuple(
            (against, place, recipe(rule, nfe), recipe("none"), AT_MOST, LOWER)
            for place in (BRIEF_PLANE, BRIEF_IMAGES)
            for rule in ESTIMATES
            for nfe in (1, 8)
        ),
        (
            (anchor_at_equal_cost,),
            *(
                (against, BRIEF_IMAGES, jumps(n, anchor="self"), jumps(n), AT_MOST, LOWER)
                for n in (2, 8)
            ),
        ),
        f"{R}/bench/self_anchor.csv; {RECIPES}; {R}/{SMALL} (*_integral*); notebook 04, 6. Self-anchoring that works; {COPYING}",
        "self_anchor",
    ),
    Claim(
        "anchor-stability",
        "Anchoring makes training and sampling more stable.",
        f"{ABSTRACT}; article, 2, 3",
        (
            (spread_over_seeds, [recipe(rule) for rule in ANCHORED], recipe("none")),
            *(
                (against, place, recipe(rule, None), recipe(rule), AT_MOST, NO_HIGHER)
                for place in (BRIEF_PLANE, BRIEF_IMAGES)
                for rule in ANCHORED
            ),
        ),
        tuple((spread_over_seeds, [jumps(n, anchor="self")], jumps(n)) for n in (1, 8)),
        f"{R}/{PLANE} (*/steps{zoo.ANCHOR_STEPS}/*); {R}/{SMALL} (*_x0_*); {COPYING}",
        "anchor_stability",
    ),
    Claim(
        "anchor-theorem",
        "More information about the target never raises the least mean-squared error.",
        REVIEWED,
        ((theorem,),),
        DOES_NOT_APPLY,
        f'{SEARCHED}; notebook 04, 5. "More information never raises the error"',
        "theorem",
        words={REPRODUCED: RELEVANT, NOT_REPRODUCED: IRRELEVANT},
    ),
    Claim(
        "unified",
        "One structure covers VE diffusion, rectified flow and PFGM++.",
        f"{ABSTRACT}; article, 3",
        *(tuple((learned_on, path, *what) for path in zoo.PATH_NAMES) for what in LEARNS),
        f"{EXACTNESS}; notebook 02, 2. One flow, seen four times",
        "plane_quality",
    ),
    Claim(
        "straight",
        "1-Rectified Flow is exactly straight without reflow.",
        ABSTRACT,
        ((straightness, "exact"), (straightness, "learned")),
        DOES_NOT_APPLY,
        f"{SEARCHED}; notebook 02, 7. Eight Gaussians: exact, learned, reflowed",
        "trajectories",
    ),
    Claim(
        "few-calls",
        "Quality falls little when the number of network calls is cut.",
        "article, 4",
        everywhere(
            (BRIEF_PLANE, BRIEF_IMAGES), best_recipe(1, 8), best_recipe(8, 8), AT_MOST, CLOSE
        ),
        everywhere(IDENTITY_PLACES, ONE_JUMP, EIGHT_JUMPS, AT_MOST, CLOSE),
        f"{QUALITY}; {RECIPES}; {IN_THE_PLANE}; {ON_IMAGES}",
        "image_quality",
    ),
    Claim(
        "time",
        "Fewer network calls take proportionally less time.",
        f"{REVIEWED}; article, 1",
        ((proportional_time,),),
        ((proportional_time,),),
        f"{R}/bench/speed.csv; notebook 06, What does a call cost?",
        "time",
    ),
    Claim(
        "solver-error",
        "Solvers add up errors over few steps; the learned integral does not.",
        "article, 1, 2",
        everywhere(RECIPE_PLACES, FEW_STEPS, RECIPE_ONCE, AT_LEAST, 1),
        (
            *everywhere(IDENTITY_PLACES, FEW_STEPS, ONE_JUMP, AT_LEAST, 1),
            *everywhere(IDENTITY_PLACES, SEVERAL_JUMPS, ONE_JUMP, AT_MOST, NO_HIGHER),
            (several_jumps_to_exact,),
        ),
        f"{QUALITY}; {R}/{QUICK} (01_path_integrals); {IN_THE_PLANE}; {ON_IMAGES}; notebook 01, 4. Where one jump beats them",
        "plane_quality",
    ),
    Claim(
        "better-than-rf",
        "At one step it is better than Rectified Flow.",
        f"{REVIEWED}; article",
        (
            *everywhere(RECIPE_PLACES, ONE_STEP_RF, RECIPE_ONCE, AT_LEAST, 1),
            *((one_step_form_and_recipe, name) for name in STUDENTS),
        ),
        (
            *everywhere(IDENTITY_PLACES, ONE_STEP_RF, ONE_JUMP, AT_LEAST, 1),
            *((one_step_form, name) for name in STUDENTS),
        ),
        f"{QUALITY}; {R}/{QUICK} (07_rectified_flow_and_reflow/*); {ON_IMAGES}; {FORMS}",
        "image_samples",
    ),
    Claim(
        "better-than-others",
        "At one step it is better than PFGM++ and consistency models.",
        f"{REVIEWED}; article",
        (
            (against, BRIEF_IMAGES, ONE_STEP_PFGM, RECIPE_ONCE, AT_LEAST, 1, ("pfgmpp",)),
            *everywhere(RECIPE_PLACES, CONSISTENCY, RECIPE_ONCE, AT_LEAST, 1),
        ),
        (
            *(
                (against, place, ONE_STEP_PFGM, ONE_JUMP, AT_LEAST, 1, ("pfgmpp",))
                for place in IDENTITY_PLACES
            ),
            *everywhere((IN_PLANE, BRIEF_IMAGES), CONSISTENCY, ONE_JUMP, AT_LEAST, 1),
        ),
        f"{QUALITY}; notebook 09, 6. Five sets, three paths, three seeds",
        "plane_quality",
    ),
    Claim(
        "robust",
        "It holds up under another data distribution and noise law.",
        "article, 5, names it as open",
        NO_CLAIM,
        NO_CLAIM,
        f"{R}/{PLANE} (*_integral/steps{zoo.PLANE_STEPS}/*); {IN_THE_PLANE}",
        "plane_quality",
        aside=(noise_laws,),
    ),
    Claim(
        "sensitive",
        "It is sensitive to hyper-parameters and capacity.",
        "article, 5",
        ((settings_of_recipe,),),
        ((settings_in_plane, False), (settings_in_plane, True), (settings_on_images,)),
        f"{R}/bench/tuning.csv; {R}/bench/plane_tuning.csv (*); {SEARCHED}; docs/findings.md; "
        "notebook 13, 3. Each claim, its measurement and a picture",
        "tuning",
    ),
    Claim(
        "precision",
        "Sequential solvers still win where the highest precision is needed.",
        "article, 5",
        DOES_NOT_APPLY,
        ((highest_precision,),),
        f"{R}/{QUICK} (01_path_integrals); notebook 01, 4. Where one jump beats them",
        "plane_quality",
    ),
    *(
        Claim(
            f"fid-{name}",
            f"One-step FID {numbers} on {shown}.",
            ABSTRACT,
            NOT_TESTABLE,
            NOT_TESTABLE,
            f"{R}/bench/cost.csv; docs/scaling.md; {UNTESTED}",
            aside=(published_fid, setting),
        )
        for name, shown, setting, numbers in (
            ("cifar10", "CIFAR-10", "cifar10", "2.86 (VE), 3.36 (rectified), 2.91 (PFGM++)"),
            ("imagenet", "ImageNet", "imagenet64", "4.09 (VE), 4.35 (rectified), 4.15 (PFGM++)"),
        )
    ),
)


# ---------------------------------------------------------------- the tables

Judged = dict[tuple[str, str], list[tuple[Rule | None, Finding]]]


def judged() -> Judged:
    """(claim, column) -> its rules and what they come to."""
    return {(claim.id, column): claim.rules(column) for claim in CLAIMS for column in COLUMNS}


def verdict(claim: Claim, column: str, found: Judged) -> str:
    """The verdict in a column: that of the rules, of the best reading, or one that needs neither."""
    parts = claim.parts(column)
    if parts == OF_ITS_READINGS:
        readings = [one for one in CLAIMS if one.part_of == claim.id]
        return best_of(verdict(one, column, found) for one in readings)
    if isinstance(parts, str):
        return parts
    said = combine(finding.outcome for _, finding in found[claim.id, column])
    return claim.words.get(said, said)


def asks(found: list[tuple[Rule | None, Finding]]) -> str:
    """What would decide it."""
    rules = [rule for rule, _ in found if rule]
    return "; ".join(dict.fromkeys(f"{r.quantity}: {r.direction} {r.threshold:g}" for r in rules))


def tells(found: list[tuple[Rule | None, Finding]]) -> str:
    """What was measured: by quantity, each rule with its interval and what follows."""
    groups: dict[str, list[str]] = {}
    for rule, finding in found:
        why = f" ({finding.reason})" * bool(finding.reason)
        if rule is None:
            groups.setdefault("", []).append(finding.outcome + why)
            continue
        if not finding.n:
            line = f"{rule.metric} on {rule.place} {finding.outcome}{why}"
            groups.setdefault(rule.quantity, []).append(line)
            continue
        much = number(finding.mean)
        if finding.low == finding.low:
            much += f" ({number(finding.low)} to {number(finding.high)})"
        note = f" [{rule.note}]" * bool(rule.note)
        line = f"{rule.metric} on {rule.place} {much}{note}, {finding.outcome}{why}"
        groups.setdefault(rule.quantity, []).append(line)
    return ". ".join(
        f"{name}: {'; '.join(lines)}".removeprefix(": ") for name, lines in groups.items()
    )


def in_columns(claim: Claim, found: Judged, text) -> str:
    """A text of the rules of each column, under its heading if they differ."""
    said = {column: text(found[claim.id, column]) for column in COLUMNS}
    if len(set(said.values())) == 1:
        return next(iter(said.values()))
    headed = (f"{COLUMNS[column].upper()}: {words}." for column, words in said.items() if words)
    return " ".join(headed)


def beside(claim: Claim) -> str:
    """What else is worth saying."""
    if not claim.aside:
        return ""
    make, *arguments = claim.aside
    try:
        said = make(*arguments)
    except NoEvidence as error:
        said = str(error)
    return said[0].upper() + said[1:] + "."


def claims(found: Judged) -> pd.DataFrame:
    """The table of claims: id, part_of, statement, source, decides, measurement, a verdict in each of ``COLUMNS``, evidence, picture."""
    rows = []
    for claim in CLAIMS:
        of_readings = claim.described == OF_ITS_READINGS
        decides = in_columns(claim, found, asks) or (
            "the best of its readings" if of_readings else "nothing here"
        )
        measurement = " ".join(filter(None, [in_columns(claim, found, tells), beside(claim)]))
        picture = (
            f"{R}/figures/reference-{claim.picture}.png" if claim.picture != "none" else "none"
        )
        rows.append(
            {
                "id": claim.id,
                "part_of": claim.part_of or "none",
                "statement": claim.statement,
                "source": claim.source,
                "decides": decides,
                "measurement": measurement or "see its readings",
                **{column: verdict(claim, column, found) for column in COLUMNS},
                "evidence": claim.evidence,
                "picture": picture,
            }
        )
    return pd.DataFrame(rows)


def claim_rules(found: Judged) -> pd.DataFrame:
    """The table of rules: what each claim was held against, its interval, and the outcome."""
    rows = []
    for (claim, column), pairs in found.items():
        for rule, finding in pairs:
            known = rule or Rule("", "", "", "", np.nan)
            row = {"claim": claim, "judged": column}
            row |= {name: getattr(known, name) for name in ("place", "metric", "quantity")}
            row |= {name: getattr(known, name) for name in ("direction", "threshold")}
            row |= {name: getattr(finding, name) for name in ("mean", "low", "high", "n")}
            row |= {"unit": known.unit, "outcome": finding.outcome, "reason": finding.reason}
            rows.append(row | {"note": known.note})
    return pd.DataFrame(rows)


def texts(found: Judged) -> dict[str, str]:
    """File name -> text, of both tables."""
    plain = {"index": False, "lineterminator": "\n"}
    return {
        "claims.csv": claims(found).to_csv(**plain),
        "claim_rules.csv": claim_rules(found).to_csv(float_format="%.5g", **plain),
    }


def main() -> None:
    found = judged()
    for name, text in texts(found).items():
        write_atomic(REFERENCE / name, text)
    print(claims(found)[["id", *COLUMNS]].to_string(index=False))


if __name__ == "__main__":
    main()
