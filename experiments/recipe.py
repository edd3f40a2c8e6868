"""A fair attempt at the published recipe, and the theorem behind it: ``python -m experiments.recipe``

Part "search": ``X0Regression`` with every reading of its anchor, none at all included, and with the settings that the
available sources name or leave open (distance, DDDM's blend, learning rate, times, how much of the batch starts at pure
noise, length), eight Gaussians, rectified. Measured, at 1 to 100 refinements of the anchor: exact W2 over its floor, the
spread of the samples over that of the data, and how much of them the Gaussian start of the anchor explains
(``zoo.copied``). The integral identity with its defaults and as many steps is the last line.

Part "theorem": how much an anchor tells of x_0, where the paper's inequality holds and where it says nothing. The mean
squared error of x_0 per coordinate, estimated from draws (``metrics.anchor_variance``), when x_t alone is known, when
the anchor of training is known too, and with the anchor of sampling, N(0, I); and the error of the trained network itself
with either anchor.

Part "straight": straightness of 1-Rectified Flow (arXiv 2209.03003, eq. 8), per E |Z_1 - Z_0|^2: of the exact flow, of the
learned one, and of the learned one after a reflow. 0 is straight.

Writes recipe.csv and .manifest.json into --out (results/reference/bench).
"""

import math

import torch

import iflow_lib as ifl
from experiments.common import calls_per_step, choices, command_line, finished, plane_config
from experiments.store import Store, write_runs
from iflow_lib import analytic, metrics, zoo
from iflow_lib import data as data_sets
from iflow_lib.objectives import ANCHORS

SET, NFES = "eight_gaussians", (1, 2, 10, 100)
DRAWN, TRAJECTORIES, PAIRS = 20_000, 1000, 20_000  # the theorem, straightness, the reflow
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


def fit(kind: str, seed: int, steps: int, objective=None, data=None, **changes):
    """Train one model in the plane as ``zoo.train`` does, with another objective, data or configuration."""
    system = zoo.System("rectified", kind, SET)
    config = plane_config(steps, seed, **changes)
    data = data_sets.load(SET) if data is None else data
    return finished(ifl.fit(system.model(seed), objective or system.objective(), data, config))


def search(rule: str, setting: str, steps: int, draws: int) -> tuple[list[dict], dict]:
    """Rows of one line of the search. rule: of the anchor, or "identity" for the integral identity."""
    of_objective, changes = SETTINGS[setting]
    changes = dict(changes)
    steps *= changes.pop("longer", 1)
    if rule == "identity":
        kind, objective = "integral", ifl.IntegralIdentity(gap=None, tangent="network", **zoo.PAIRS)
    else:
        kind, objective = f"x0_{rule}", ifl.X0Regression(rule, **of_objective)
    run = fit(kind, 0, steps, objective, **changes)
    make, refined, rows = metrics.real_pairs(SET, zoo.POINTS), run.model.anchored, []
    real = [make(500 + i) for i in range(draws)]
    floor = sum(metrics.w2(*pair) for pair in real) / draws
    cost = calls_per_step(objective) * run.manifest["steps_done"]
    base = {"part": "search", "dataset": SET, "rule": rule, "setting": setting}
    base |= {"seed": 0, "evaluations": cost}
    for nfe in NFES if refined else (1,):
        drawn = [
            ifl.sample(
                run.model,
                zoo.POINTS,
                nfe,
                "anchor" if refined else "map",
                7000 + i,
                trajectory=refined,
            )
            for i in range(draws)
        ]
        pairs = [(d.x, y) for d, (_, y) in zip(drawn, real)]
        finite = all(bool(torch.isfinite(x).all()) for x, _ in pairs)
        w2 = sum(metrics.w2(x, y) for x, y in pairs) / draws if finite else math.inf
        spread = sum(float(x.std(0).mean() / y.std(0).mean()) for x, y in pairs) / draws
        copy = sum(zoo.copied(d) for d in drawn) / draws if refined else math.nan
        found = {"nfe": nfe, "w2_over_floor": w2 / floor, "spread": spread, "copy_share": copy}
        rows.append(base | found)
    return rows, run.manifest


def theorem(rule: str, seed: int, steps: int) -> tuple[list[dict], dict]:
    """Rows of the theorem for one rule: errors of x_0 at several times."""
    objective = ifl.X0Regression(rule)
    run, plain = fit(f"x0_{rule}", seed, steps, objective), fit("x0_none", seed, steps)
    n, data = DRAWN, data_sets.load(SET).x
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
        s = torch.zeros_like(t)
        x_t = (1 - time) * x_0 + time * z
        noise = torch.randn(n, 2, generator=g)
        with torch.no_grad():
            first = run.model(x_t, t, s, noise)
            trained_on = anchor
            if rule == "self":
                trained_on = x_t - time * first
            elif rule == "shared":
                other = torch.randperm(n, generator=g)
                trained_on = (x_t - time * first)[other]
            outputs = {
                "network, anchor of training": run.model(x_t, t, s, trained_on),
                "network, anchor of sampling": first,
                "network, no anchor": plain.model(x_t, t, s),
            }
        errors = {k: float((x_t - time * u - x_0).square().mean()) for k, u in outputs.items()}
        part = slice(0, 5000)
        best = metrics.anchor_variance(x_0[part], trained_on[part], x_t[part], seed=seed)
        errors |= {
            "best, no anchor": best.without,
            "best, anchor of training": best.knowing,
            "best, anchor of sampling": best.at_sampling,
        }
        base = {"part": "theorem", "dataset": SET, "rule": rule, "seed": seed, "t": time}
        rows += [base | {"quantity": name, "value": value} for name, value in errors.items()]
    return rows, run.manifest


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


def straight(seed: int, steps: int) -> tuple[list[dict], dict]:
    """Rows of straightness: exact, learned and reflowed 1-RF of the eight Gaussians."""
    flow = analytic.MixtureFlow(ifl.RectifiedFlow(), *ifl.data.modes(SET))
    times = torch.linspace(1, 0, 101, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    points = [torch.randn(TRAJECTORIES, 2, generator=generator, dtype=torch.float64)]
    for t, s in zip(times[:-1].tolist(), times[1:].tolist()):
        points.append(flow.flow_map(x=points[-1], t=t, s=s, tolerance=1e-6))
    found = {"exact": relative_straightness(torch.stack(points), times)}
    run = fit("velocity", seed, steps)
    pairs = ifl.reflow(run.model, PAIRS, seed=seed)
    second = fit("velocity", seed, steps, data=pairs)
    for name, model in (("learned", run.model), ("learned, after a reflow", second.model)):
        walk = ifl.sample(model, TRAJECTORIES, 100, "euler", seed, trajectory=True)
        found[name] = relative_straightness(walk.trajectory.double(), walk.times.double())
    base = {"part": "straight", "dataset": SET, "seed": seed}
    return [base | {"quantity": k, "value": v} for k, v in found.items()], run.manifest


def main(arguments=None) -> None:
    options = command_line(__doc__, steps=1500, draws=3, seeds=3)
    choices(options, "--rules", ANCHORS)
    choices(options, "--settings", SETTINGS)
    given = options.parse_args(arguments)
    lines = [
        (rule, setting)
        for rule in given.rules
        for setting in given.settings
        if not (rule == "none" and SETTINGS[setting][0].get("blend"))  # nothing to blend with
    ]
    longer = ("as described", "four times as long")
    lines += [("identity", name) for name in longer if name in given.settings]
    runs, steps = {}, {"steps": given.steps}
    for rule, setting in lines:
        settings = {"rule": rule, "setting": setting, "draws": given.draws, **steps}
        runs[f"search/{rule}/{setting}"] = (search, settings)
    for rule in given.rules:
        for seed in range(given.seeds) if rule != "none" else ():
            runs[f"theorem/{rule}/seed{seed}"] = (theorem, {"rule": rule, "seed": seed, **steps})
    for seed in range(given.seeds):
        runs[f"straight/seed{seed}"] = (straight, {"seed": seed, **steps})
    table = write_runs(given.out, "recipe", Store(given.runs / "recipe"), runs)
    found = table[table.part == "search"].pivot_table(
        index=["rule", "setting"], columns="nfe", values="w2_over_floor"
    )
    print(found.round(2).to_string())


if __name__ == "__main__":
    main()
