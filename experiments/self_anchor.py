"""Does an estimate of x_0 help Integration Flow? ``python -m experiments.self_anchor``

``IntegralIdentity(anchor="self")`` against ``anchor=None``: two sets in the plane, three paths, the same MLP (128 x 4; the
anchored one has 2 inputs more), batch 512, Adam 2e-3 with half a cosine, EMA 0.999, seeds.

- Equal training cost: a step without an anchor is 4.5 network evaluations per example (forward 1, backward 2, half of
  the batch 3 more for the tangent and the difference), with one 5.5. So the anchored run has 9/11 of the steps. The
  measured seconds are in the table too.
- Equal NFE: an anchored model spends its first call of several on the anchor, and with NFE 1 has none.

Measured as exact W2, 2,000 samples against 2,000 fresh points, mean of ``--draws`` draws. Printed with the mean over
seeds of the difference "self" - None and its 95 % interval (Student t).

Writes self_anchor.csv and .manifest.json into --out (results/reference/bench).
"""

import itertools

import iflow_lib as ifl
from experiments.common import (
    calls_per_step,
    choices,
    command_line,
    finished,
    mean_w2,
    plane_config,
    plane_model,
)
from experiments.store import Store, write_runs
from iflow_lib import data as data_sets
from iflow_lib import zoo
from iflow_lib.metrics import interval

SETS, NFES = ("eight_gaussians", "checkerboard"), (1, 2, 4, 8)
KINDS = {"none": "integral", "self": "integral_self"}


def train(
    dataset: str, path: str, anchor: str, seed: int, steps: int, draws: int
) -> tuple[list[dict], dict]:
    """Rows and manifest of one run."""
    system = zoo.System(path, KINDS[anchor], dataset)
    alone, own = calls_per_step(zoo.KINDS["integral"]()), calls_per_step(system.objective())
    model = plane_model(system.make_path(), seed, anchor=anchor == "self")
    config = plane_config(round(steps * alone / own), seed)
    run = finished(ifl.fit(model, system.objective(), data_sets.load(dataset), config))
    row = {"dataset": dataset, "path": path, "anchor": anchor, "seed": seed}
    how = {"steps": run.manifest["steps_done"], "seconds": run.manifest["seconds"]}
    rows = []
    for nfe in NFES:
        w2 = mean_w2(
            lambda k, nfe=nfe: ifl.sample(run.model, zoo.POINTS, nfe, "map", k).x,
            dataset,
            seed,
            draws,
        )
        rows.append(row | {"nfe": nfe, "steps": how["steps"], "w2": w2, "seconds": how["seconds"]})
    return rows, run.manifest


def main(arguments=None) -> None:
    options = command_line(__doc__, steps=4000, seeds=3, draws=10)
    choices(options, "--sets", SETS)
    given = options.parse_args(arguments)
    runs, rest = {}, {"steps": given.steps, "draws": given.draws}
    for seed, dataset, path, anchor in itertools.product(
        range(given.seeds), given.sets, zoo.PATH_NAMES, KINDS
    ):
        settings = {"dataset": dataset, "path": path, "anchor": anchor, "seed": seed, **rest}
        runs[f"{dataset}/{path}/{anchor}/seed{seed}"] = (train, settings)
    table = write_runs(given.out, "self_anchor", Store(given.runs / "self_anchor"), runs)
    wide = table.pivot(
        index=["dataset", "path", "nfe", "seed"], columns="anchor", values="w2"
    ).reset_index()
    wide["difference"] = wide["self"] - wide["none"]
    cells = wide.groupby(["dataset", "path", "nfe"])
    shown = cells[["none", "self", "difference"]].mean()
    shown["+-"] = cells.difference.agg(interval)
    print(shown.round(4).to_string())


if __name__ == "__main__":
    main()
