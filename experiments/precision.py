"""Is a faster step as good? ``python -m experiments.precision``

IntegralIdentity with its exact derivative (forward mode), with the central difference that a CPU takes by default, and with
the exact one in bfloat16 autocast. Otherwise the same: two sets in the plane, MLP 128 x 4, batch 512, Adam 2e-3 with half a
cosine, EMA 0.999, seeds. Exact W2 of one jump, 2,000 samples against 2,000 fresh points, mean of ``--draws`` draws.

Writes precision.csv and .manifest.json into --out (results/reference/bench).
"""

import itertools

import iflow_lib as ifl
from experiments.common import (
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

SETS = ("eight_gaussians", "checkerboard")
VARIANTS = {
    "jvp": ("jvp", "float32"),
    "difference": ("difference", "float32"),
    "jvp, bfloat16": ("jvp", "bfloat16"),
}


def train(dataset: str, variant: str, seed: int, steps: int, draws: int) -> tuple[list[dict], dict]:
    """The row and the manifest of one run."""
    derivative, precision = VARIANTS[variant]
    run = finished(
        ifl.fit(
            plane_model(ifl.RectifiedFlow(), seed),
            ifl.IntegralIdentity(derivative=derivative, tangent="network", **zoo.PAIRS),
            data_sets.load(dataset),
            plane_config(steps, seed, precision=precision),
        )
    )
    w2 = mean_w2(lambda k: ifl.sample(run.model, zoo.POINTS, 1, "map", k).x, dataset, seed, draws)
    row = {"dataset": dataset, "variant": variant, "seed": seed, "steps": steps, "nfe": 1, "w2": w2}
    return [row | {"seconds": run.manifest["seconds"]}], run.manifest


def main(arguments=None) -> None:
    options = command_line(__doc__, steps=4000, seeds=6, draws=10)
    choices(options, "--sets", SETS)
    given = options.parse_args(arguments)
    rest = {"steps": given.steps, "draws": given.draws}
    runs = {
        f"{dataset}/{variant}/seed{seed}": (
            train,
            {"dataset": dataset, "variant": variant, "seed": seed, **rest},
        )
        for seed, dataset, variant in itertools.product(range(given.seeds), given.sets, VARIANTS)
    }
    table = write_runs(given.out, "precision", Store(given.runs / "precision"), runs)
    print(table.groupby(["dataset", "variant"]).w2.agg(["mean", "min", "max"]).round(4).to_string())


if __name__ == "__main__":
    main()
