"""A fair attempt at the published recipe, and the theorem behind it: ``python experiments/recipe.py``

Part "search": ``X0Regression`` with every reading of its anchor, none at all included, and with the settings that the
available sources name or leave open (distance, DDDM's blend, learning rate, times, how much of the batch starts at pure
noise, length), eight Gaussians, rectified. Measured, at 1 to 100 refinements of the anchor: exact W2 over its floor, the
spread of the samples over that of the data, and how much of them the Gaussian start of the anchor explains
(``studies.copied``). The integral identity with its defaults and as many steps is the last line.

Part "theorem": how much an anchor tells of x_0, where the paper's inequality holds and where it says nothing. The mean
squared error of x_0 per coordinate, estimated from draws (``diagnostics.anchor_variance``), when x_t alone is known, when
the anchor of training is known too, and with the anchor of sampling, N(0, I); and the error of the trained network itself
with either anchor.

Part "straight": straightness of 1-Rectified Flow (arXiv 2209.03003, eq. 8), per E |Z_1 - Z_0|^2: of the exact flow, of the
learned one, and of the learned one after a reflow. 0 is straight.

Writes recipe.csv and .manifest.json into --out; finished runs are kept in results/runs/recipe.
"""

import math
from functools import partial

import torch

import iflow_lib as ifl
from experiments.common import calls_per_step, kept, parser, save
from iflow_lib import analytic, metrics
from iflow_lib import data as data_sets
from iflow_lib import metrics as diagnostics
from iflow_lib import zoo as studies
from iflow_lib.objectives.x0_regression import ANCHORS

SETS, NFES, SEEDS = ("eight_gaussians",), (1, 2, 10, 100), 3
DRAWN, TRAJECTORIES, PAIRS = (
    20_000,
    1000,
    20_000,
)  # for the theorem, for straightness, for the reflow
#: name -> (changes of the objective, of the configuration)
SETTINGS = {
    "as described": ({}, {}),
    "pseudo-Huber": ({"distance": "pseudo_huber"}, {}),
    "l1": ({"distance": "l1"}, {}),
    "DDDM: pseudo-Huber, blend": ({"distance": "pseudo_huber", "blend": True}, {}),
    "no extra start": ({"start_share": 0.0}, {}),
    "half starts at noise": ({"start_share": 0.5}, {}),
    "uniform times": ({"time_density": "uniform"}, {}),
    "lr 5e-4": ({}, {"lr": 5e-4}),
    "four times as long": ({}, {"longer": 4}),
}


def fit(objective, dataset: str, seed: int, steps: int, longer: int = 1, **changes):
    """Train one model in the plane as ``studies.train_plane`` does, with changes of the configuration."""
    torch.manual_seed(seed)
    net = ifl.MLP(dim=2, hidden=128, layers=4, features=3, anchor=studies.sees_anchor(objective))
    model = ifl.FlowMap(net, ifl.RectifiedFlow())
    settings = {"batch_size": 512, "lr": 2e-3, **changes}
    config = ifl.TrainConfig(
        steps=longer * steps, seed=seed, device="cpu", progress=False, **settings
    )
    return ifl.fit(model, objective, data_sets.load(dataset), config)


def searched(rule: str | None, setting: str, dataset: str, steps: int, draws: int) -> dict:
    """Rows of one line of the search; rule None: the integral identity."""
    of_objective, of_config = SETTINGS[setting]
    objective = ifl.X0Regression(rule, **of_objective) if rule else ifl.IntegralIdentity()
    run = fit(objective, dataset, 0, steps, **of_config)
    make, rows = metrics.real_pairs(dataset, studies.POINTS), []
    real = [make(500 + i) for i in range(draws)]
    floor = sum(metrics.w2(*pair) for pair in real) / draws
    method = "anchor" if run.model.anchored else "map"
    for nfe in NFES if method == "anchor" else (1,):
        drawn = [
            ifl.sample(
                run.model, studies.POINTS, nfe, method, 7000 + i, trajectory=method == "anchor"
            )
            for i in range(draws)
        ]
        finite = all(bool(torch.isfinite(d.x).all()) for d in drawn)
        w2 = (
            sum(metrics.w2(d.x, y) for d, (_, y) in zip(drawn, real)) / draws
            if finite
            else math.inf
        )
        rows.append(
            {
                "nfe": nfe,
                "w2_over_floor": w2 / floor,
                "spread": sum(
                    float(d.x.std(0).mean() / y.std(0).mean()) for d, (_, y) in zip(drawn, real)
                )
                / draws,
                "copy_share": sum(studies.copied(d) for d in drawn) / draws
                if method == "anchor"
                else math.nan,
            }
        )
    cost = calls_per_step(objective) * run.manifest["steps_done"]
    return {
        "rows": [
            {
                "part": "search",
                "dataset": dataset,
                "rule": rule or "identity",
                "setting": setting,
                "seed": 0,
                "evaluations": cost,
                **row,
            }
            for row in rows
        ],
        "manifest": run.manifest,
    }


def theorem(rule: str, seed: int, steps: int) -> dict:
    """Rows of the theorem for one rule: errors of x_0 at several times."""
    objective = ifl.X0Regression(rule)
    run, plain = (
        fit(objective, SETS[0], seed, steps),
        fit(ifl.X0Regression("none"), SETS[0], seed, steps),
    )
    n, data = DRAWN, data_sets.load(SETS[0]).x
    g = torch.Generator().manual_seed(10_000 + seed)
    index = torch.randint(len(data), (n,), generator=g)
    x_0, z = data[index], torch.randn(n, 2, generator=g)
    if objective.store is not None:
        anchor = objective.store.read(index).float()
    else:  # of other examples ("shared"), or none yet ("self"): one's own estimate from N(0, I), made below
        anchor = None
    rows = []
    for time in (0.25, 0.5, 0.75, 0.9, 1.0):
        t = torch.full((n,), time)
        x_t = (1 - time) * x_0 + time * z
        noise = torch.randn(n, 2, generator=g)
        with torch.no_grad():
            first = run.model(x_t, t, torch.zeros_like(t), noise)
            trained_on = anchor
            if rule == "self":
                trained_on = x_t - time * first
            elif rule == "shared":
                other = torch.randperm(n, generator=g)
                trained_on = (x_t - time * first)[other]
            errors = {
                name: float((x_t - time * u - x_0).square().mean())
                for name, u in (
                    (
                        "network, anchor of training",
                        run.model(x_t, t, torch.zeros_like(t), trained_on),
                    ),
                    ("network, anchor of sampling", first),
                    ("network, no anchor", plain.model(x_t, t, torch.zeros_like(t))),
                )
            }
        part = slice(0, 5000)
        best = diagnostics.anchor_variance(x_0[part], trained_on[part], x_t[part], seed=seed)
        errors |= {
            "best, no anchor": best.without,
            "best, anchor of training": best.knowing,
            "best, anchor of sampling": best.at_sampling,
        }
        rows += [
            {
                "part": "theorem",
                "dataset": SETS[0],
                "rule": rule,
                "seed": seed,
                "t": time,
                "quantity": name,
                "value": value,
            }
            for name, value in errors.items()
        ]
    return {"rows": rows, "manifest": run.manifest}


def relative_straightness(points: torch.Tensor, times: torch.Tensor) -> float:
    """S / E |Z_1 - Z_0|^2 of trajectories (k, n, ...) at times (k,) on the line."""
    gaps = (times[1:] - times[:-1]).reshape(-1, 1, 1)
    chord = (points[-1] - points[0]) / (times[-1] - times[0])
    square = ((points[1:] - points[:-1]) / gaps - chord).square().sum(2).mean(1)
    return float(
        (square * gaps.flatten().abs()).sum()
        / (times[-1] - times[0]).abs()
        / chord.square().sum(1).mean()
    )


def straight(seed: int, steps: int) -> dict:
    """Exact, learned and reflowed 1-RF of the eight Gaussians."""
    path = ifl.RectifiedFlow()
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    flow = analytic.MixtureFlow(
        path, math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], 1), std=0.1
    )
    times = torch.linspace(1, 0, 101, dtype=torch.float64)
    x = torch.randn(
        TRAJECTORIES, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    points = [x]
    for t, s in zip(times[:-1].tolist(), times[1:].tolist()):
        points.append(flow.flow_map(x=points[-1], t=t, s=s, tolerance=1e-6))
    found = {"exact": relative_straightness(torch.stack(points), times)}
    run = fit(ifl.FlowMatching(), SETS[0], seed, steps)
    torch.manual_seed(seed)
    again = ifl.FlowMap(ifl.MLP(dim=2, hidden=128, layers=4, features=3), path)
    config = ifl.TrainConfig(
        steps=steps, batch_size=512, lr=2e-3, seed=seed, device="cpu", progress=False
    )
    pairs = ifl.sampling.reflow(run.model, PAIRS, seed=seed)
    second = ifl.fit(again, ifl.FlowMatching(), pairs, config)
    for name, model in (("learned", run.model), ("learned, after a reflow", second.model)):
        walk = ifl.sample(model, TRAJECTORIES, 100, "euler", seed, trajectory=True)
        found[name] = relative_straightness(walk.trajectory.double(), walk.times.double())
    return {
        "rows": [
            {"part": "straight", "dataset": SETS[0], "seed": seed, "quantity": name, "value": value}
            for name, value in found.items()
        ],
        "manifest": run.manifest,
    }


def main() -> None:
    options = parser(__doc__, steps=1500, draws=3, seeds=SEEDS)
    options.add_argument("--rules", nargs="+", default=ANCHORS, choices=ANCHORS)
    options.add_argument("--settings", nargs="+", default=tuple(SETTINGS), choices=SETTINGS)
    given = options.parse_args()
    lines = [
        (rule, setting)
        for rule in given.rules
        for setting in given.settings
        if not (rule == "none" and SETTINGS[setting][0].get("blend"))
    ]  # nothing to blend with
    lines += [
        (None, name) for name in ("as described", "four times as long") if name in given.settings
    ]
    jobs = {
        f"search-{dataset}-{rule}-{setting}": partial(
            searched, rule, setting, dataset, given.steps, given.draws
        )
        for dataset in SETS
        for rule, setting in lines
    }
    jobs |= {
        f"theorem-{rule}-{seed}": partial(theorem, rule, seed, given.steps)
        for rule in given.rules
        if rule != "none"
        for seed in range(given.seeds)
    }
    jobs |= {
        f"straight-{seed}": partial(straight, seed, given.steps) for seed in range(given.seeds)
    }
    rows, manifests = [], {}
    for name, job in jobs.items():
        file = f"{name}-{given.steps}".replace(" ", "_").replace(":", "").replace(",", "")
        done = kept(given.runs / "recipe", file, job)
        rows += done["rows"]
        manifests[name] = done["manifest"]
        print(name, flush=True)
    table = save(given.out, "recipe", rows, {"runs": manifests})
    search = table[table.part == "search"]
    print(
        search.pivot_table(
            index=["rule", "setting"], columns=["dataset", "nfe"], values="w2_over_floor"
        ).round(2)
    )


if __name__ == "__main__":
    main()
