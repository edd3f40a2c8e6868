"""Does an estimate of x_0 help Integration Flow? ``python experiments/self_anchor.py``

``IntegralIdentity(anchor="self")`` against ``anchor=None``: two sets in the plane, three paths, the same MLP (128 x 4; the
anchored one has 2 inputs more), batch 512, Adam 2e-3 with half a cosine, EMA 0.999, seeds.

- Equal training cost: a step without an anchor is 4.5 network evaluations per example (forward 1, backward 2, half of
  the batch 3 more for the tangent and the difference), with one 5.5. So the anchored run has 9/11 of the steps. The
  measured seconds are in the table too.
- Equal NFE: an anchored model spends its first call of several on the anchor, and with NFE 1 has none.

Measured as exact W2, 2,000 samples against 2,000 fresh points, mean of ``--draws`` draws. Printed with the mean over
seeds of the difference "self" - None and its 95 % interval (Student t).
Writes self_anchor.csv and .manifest.json into --out (results/reference/bench); finished runs are kept in
results/runs/self_anchor and not trained again.
"""

import itertools
import math
from functools import partial

import torch
from scipy.stats import t as student

import iflow_lib as ifl
from experiments.common import calls_per_step, distances, kept, parser, save
from iflow_lib import data as data_sets
from iflow_lib.zoo import PATH_NAMES, make_path

SETS = ("eight_gaussians", "checkerboard")
POINTS, NFES = 2000, (1, 2, 4, 8)
COST = {anchor: calls_per_step(ifl.IntegralIdentity(anchor=anchor)) for anchor in (None, "self")}


def train(dataset: str, path: str, anchor: str | None, seed: int, steps: int, draws: int) -> dict:
    torch.manual_seed(seed)
    network = ifl.MLP(dim=2, hidden=128, layers=4, anchor=anchor is not None)
    model = ifl.FlowMap(network, make_path(path, images=False))
    objective = ifl.IntegralIdentity(anchor=anchor, derivative="difference", step=5e-3)
    config = ifl.TrainConfig(
        steps=round(steps * COST[None] / COST[anchor]),
        batch_size=512,
        lr=2e-3,
        seed=seed,
        device="cpu",
        progress=False,
    )
    trained = ifl.fit(model, objective, data_sets.load(dataset), config)
    found = {
        nfe: distances(
            lambda k, nfe=nfe: ifl.sample(trained.model, POINTS, nfe, "map", k).x,
            dataset,
            seed,
            draws,
        )
        for nfe in NFES
    }
    return {"w2": found, "manifest": trained.manifest}


def main() -> None:
    options = parser(__doc__, steps=4000, seeds=3, draws=10)
    options.add_argument("--sets", nargs="+", default=SETS, choices=SETS)
    arguments = options.parse_args()
    rows, manifests, steps, draws, n = [], {}, arguments.steps, arguments.draws, arguments.seeds
    for seed, dataset, path, anchor in itertools.product(
        range(n), arguments.sets, PATH_NAMES, (None, "self")
    ):
        name = f"{dataset}-{path}-{anchor}-{steps}-{draws}-{seed}"
        done = kept(
            arguments.runs / "self_anchor",
            name,
            partial(train, dataset, path, anchor, seed, steps, draws),
        )
        manifests[name] = done["manifest"]
        means = {int(nfe): sum(values) / len(values) for nfe, values in done["w2"].items()}
        rows += [
            {
                "dataset": dataset,
                "path": path,
                "anchor": anchor or "none",
                "seed": seed,
                "nfe": nfe,
                "steps": done["manifest"]["steps_done"],
                "w2": w2,
                "seconds": done["manifest"]["seconds"],
            }
            for nfe, w2 in means.items()
        ]
        print(name, {nfe: round(w2, 4) for nfe, w2 in means.items()}, flush=True)
    table = save(arguments.out, "self_anchor", rows, manifests)
    wide = table.pivot(
        index=["dataset", "path", "nfe", "seed"], columns="anchor", values="w2"
    ).reset_index()
    wide["difference"] = wide["self"] - wide["none"]
    cells = wide.groupby(["dataset", "path", "nfe"])
    shown = cells[["none", "self", "difference"]].mean()
    shown["+-"] = cells.difference.std() * (
        student.ppf(0.975, n - 1) / math.sqrt(n) if n > 1 else math.nan
    )
    print(shown.round(4).to_string())


if __name__ == "__main__":
    main()
